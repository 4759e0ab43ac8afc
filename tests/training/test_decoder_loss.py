"""The terms of the stage-2 loss in both forms, and its frozen networks."""

import math

import pytest
import torch
from torch import nn

from ldm.nets.perceptual import LPIPS
from ldm.ops.dis import DISFlow
from ldm.training.consistency import consistency_loss
from ldm.training.decoder_loss import DecoderLoss
from ldm.training.losses import GradientDistance, frame_difference_l1

FLAT = {"perceptual": 0, "difference": 0, "consistency": 0}  # weights that leave L1 and the discriminator


class Linear(nn.Module):
    """A stateless discriminator: the score of a pixel is a weighted sum of its channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        nn.init.constant_(self.conv.weight, 0.5)

    def forward(self, x):
        return self.conv(x)


class Forbidden(nn.Module):
    def forward(self, a, b):
        raise AssertionError("asked for what has no weight")


class Lost(nn.Module):
    def forward(self, a, b):
        return a[:, :2] * math.nan


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, a, b):
        return a.new_full((len(a), 1, 1, 1), self.value)


def clips(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(b=2, t=3, size=32):
    gt = clips(b, t, 3, size, size)
    return (gt + 0.3 * clips(b, t, 3, size, size, seed=1)).requires_grad_(), gt


def loss_of(**settings):
    parts = {"discriminator": Linear(), "flow": DISFlow("ultrafast"), **settings}
    return DecoderLoss(**parts)


# ---- the terms


@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_total_is_the_weighted_sum_in_either_normalisation(form):
    y, gt = pair()
    weights = {"l1": 2.0, "perceptual": 0.3, "difference": 0.7, "consistency": 0.2, "adversarial": 0}
    loss = loss_of(weights=weights, form="paper", exceptions={"normalisation": form})
    terms = loss.distances(y, gt, step=0)
    l1, swc = (y - gt).abs().mean().item(), consistency_loss(y, gt, loss.flownet).item()
    edges, change = (
        GradientDistance()(y.flatten(0, 1), gt.flatten(0, 1)).mean().item(),
        frame_difference_l1(y, gt).item(),
    )
    frames, changes = (1, 1) if form == "paper" else (6, 4)
    expected = (2 * l1 + 0.3 * edges) / frames + 0.7 * change / changes + 0.2 * swc
    assert terms["total"].item() == pytest.approx(expected, rel=1e-5)
    assert [terms[k].item() for k in ("l1", "perceptual", "difference", "consistency")] == pytest.approx(
        [l1, edges, change, swc], rel=1e-5
    )


def test_a_term_of_weight_zero_is_not_computed():
    y, gt = pair()
    loss = loss_of(
        flow=Forbidden(), perceptual=Forbidden(), discriminator=Forbidden(), weights={**FLAT, "adversarial": 0}
    )
    assert set(loss.generator(y, gt, step=999, last_layer=y)) == {"l1", "nll", "total"}


def test_temporal_terms_of_one_frame_are_zero():
    y, gt = pair(t=1)
    for form in ("paper", "released"):
        terms = loss_of(form=form).distances(y, gt, step=0)
        assert terms["difference"] == 0 == terms["consistency"] and terms["total"] > 0


@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_adversarial_term_is_active_from_its_start(form):
    y, gt = pair()
    loss = loss_of(start=4, form=form, weights=FLAT)
    weight = torch.ones(1)  # a last layer that is frozen
    before, after = (loss.generator(y, gt, step=step, last_layer=weight) for step in (3, 4))
    assert before["total"] == before["nll"] == after["nll"]
    assert after["total"].item() == pytest.approx((after["nll"] + after["d_weight"] * after["adversarial"]).item())
    assert ("adversarial" in before) == (form == "released") == loss.judges(3)
    assert loss.critic(y, gt, step=3)["disc"] == 0 < loss.critic(y, gt, step=4)["disc"]


def test_the_ratio_is_of_gradients_of_the_last_layer():
    loss, gt = loss_of(start=0, weights=FLAT), clips(1, 2, 3, 16, 16)
    layer = torch.tensor([0.3, 0.2, 0.4], requires_grad=True)
    y = gt * layer.view(1, 1, 3, 1, 1)
    terms = loss.generator(y, gt, step=0, last_layer=layer)
    slopes = [
        torch.autograd.grad(term, layer, retain_graph=True)[0].norm() for term in (terms["nll"], terms["adversarial"])
    ]
    assert terms["d_weight"].item() == pytest.approx(0.025 * (slopes[0] / (slopes[1] + 1e-4)).item(), rel=1e-5)
    assert not terms["d_weight"].requires_grad


def test_with_a_frozen_last_layer_the_ratio_does_not_depend_on_picture_size():
    weights = {**FLAT, "l1": 0.8}
    for size in (16, 48):
        y, gt = torch.zeros(1, 2, 3, size, size, requires_grad=True), torch.ones(1, 2, 3, size, size)
        paper, released = (
            loss_of(start=0, weights=weights, form=form).generator(y, gt, step=0, last_layer=torch.ones(1))["d_weight"]
            for form in ("paper", "released")
        )
        # both gradients are the same at each value: 0.8 / N, and 0.5 / (N / 3) through the weight of 0.5
        assert paper.item() == pytest.approx(0.025 * 0.8 / 1.5, rel=1e-3)
        assert released.item() == pytest.approx(0.025)


def test_the_ratio_is_finite_for_a_constant_discriminator():
    y, gt = pair()
    net = Linear()
    nn.init.zeros_(net.conv.weight)
    terms = loss_of(discriminator=net, start=0, weights=FLAT).generator(y, gt, step=0, last_layer=torch.ones(1))
    assert math.isfinite(terms["total"].item())


def test_the_critic_gives_the_reconstruction_no_gradient():
    y, gt = pair()
    loss = loss_of(start=0)
    judged = loss.critic(y, gt, step=0)
    grads = torch.autograd.grad(judged["disc"], [y, loss.discriminator.conv.weight], allow_unused=True)
    assert grads[0] is None and grads[1].abs().max() > 0
    assert judged["real"].item() == pytest.approx(loss.discriminator(gt.flatten(0, 1)).mean().item())


@pytest.mark.parametrize(
    ("broken", "settings"),
    [
        ("l1", {}),
        ("perceptual", {"perceptual": Constant(math.nan)}),
        ("perceptual", {"perceptual": Constant(math.inf), "form": "released"}),
    ],
)
def test_a_term_that_is_not_finite_is_named_with_its_step(broken, settings):
    y, gt = pair()
    y = y * math.nan if broken == "l1" else y
    with pytest.raises(FloatingPointError, match=f"{broken} loss of .* at step 17"):
        loss_of(**settings).generator(y, gt, step=17, last_layer=torch.ones(1))


def test_a_flow_that_is_not_finite_is_named():
    y, gt = pair()
    with pytest.raises(FloatingPointError, match="flow"):
        loss_of(flow=Lost()).distances(y, gt, step=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"form": "best"}, "got form 'best'"),
        ({"exceptions": {"consistency": "best"}}, "got form 'best'"),
        ({"exceptions": {"l1": "paper"}}, "got part 'l1', expected some of consistency"),
        ({"weights": {"lpips": 1.0}}, "got term 'lpips', expected some of l1"),
    ],
)
def test_unknown_names_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        loss_of(**settings)


# ---- the perceptual network


def trained_lpips():
    torch.manual_seed(0)
    net = LPIPS(width=4)
    for k in range(5):
        getattr(net, f"lin{k}").model[1].weight.data.abs_()
    return net


def test_only_the_released_form_has_dropout_drawn_for_each_sample():
    y, gt = pair()
    index, state = torch.tensor([5, 9]), torch.get_rng_state()
    measure = [
        loss_of(perceptual=trained_lpips(), form=form, weights={"consistency": 0}) for form in ("paper", "released")
    ]

    def value(loss, order, index=index):
        return loss.distances(y[order], gt[order], step=0, index=index[order])["perceptual"].item()

    paper, released = (value(loss, [0, 1]) for loss in measure)
    torch.set_rng_state(state)
    plain = trained_lpips().eval()(y.flatten(0, 1), gt.flatten(0, 1)).mean().item()
    assert paper == pytest.approx(plain, rel=1e-5) and released != pytest.approx(plain, rel=1e-4)
    assert released == value(measure[1], [0, 1]) == pytest.approx(value(measure[1], [1, 0]), rel=1e-6)
    assert released == pytest.approx((value(measure[1], [0]) + value(measure[1], [1])) / 2, rel=1e-6)
    assert released != pytest.approx(value(measure[1], [0, 1], index + 1), rel=1e-5)
    before = torch.get_rng_state()
    value(measure[1], [0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    assert value(measure[1].eval(), [0, 1]) == pytest.approx(plain, rel=1e-5)


def test_frozen_networks_stay_frozen_in_train_mode():
    flow = nn.Sequential(nn.BatchNorm2d(3))
    loss = loss_of(perceptual=trained_lpips(), flow=flow).train()
    assert not flow[0].training and not loss.perceptual_loss.training and loss.discriminator.training
    frozen = {name.split(".")[0] for name, p in loss.named_parameters() if not p.requires_grad}
    assert frozen == {"logvar", "perceptual_loss", "flownet"}
