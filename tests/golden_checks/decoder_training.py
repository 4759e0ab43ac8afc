"""Stage 2: every term of the loss in the released form with gradients, and a training step of both optimizers."""

import math
import re

import torch
from torch import Tensor, nn

from ldm.nets.discriminator import PatchGAN
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.nets.spynet import SpyNet
from ldm.ops.flow import estimate_motion
from ldm.training.consistency import consistency_loss, sobel_edges, warping_error
from ldm.training.decoder import StageTwo
from ldm.training.decoder_loss import DecoderLoss
from ldm.training.losses import frame_changes, frame_difference_l1, hinge_discriminator
from ldm.training.optimization import Adam
from tests.golden_checks.autoencoder import known_settings
from tests.golden_checks.case import Case, assert_near, recipe_value

LOSS_LIMIT, GRADIENT_LIMIT = 1e-5, 1e-4  # relative
OUTPUT_LIMIT, FLOW_LIMIT = 3e-5, 2e-4
WEIGHTS = {"l1": "pixelloss", "perceptual": "perceptual", "difference": "diffloss", "consistency": "temploss"}


class MeanSquare(nn.Module):
    """The recorded stand-in of LPIPS."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean(dim=(1, 2, 3), keepdim=True)


class RecordedFlow(nn.Module):
    """Returns the flows of the case: `forwards` for (frame i, frame i+1), `backwards` for the other order."""

    def __init__(self, clip: Tensor, forwards: Tensor, backwards: Tensor) -> None:
        super().__init__()
        self.former, self.latter = (x.flatten(0, 1) for x in (clip[:, :-1], clip[:, 1:]))
        self.forwards, self.backwards = forwards, backwards

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        return torch.stack([self._one(a, b) for a, b in zip(img1, img2, strict=True)])

    def _one(self, a: Tensor, b: Tensor) -> Tensor:
        for i, (former, latter) in enumerate(zip(self.former, self.latter, strict=True)):
            if torch.equal(a, former) and torch.equal(b, latter):
                return self.forwards[i]
            if torch.equal(a, latter) and torch.equal(b, former):
                return self.backwards[i]
        raise AssertionError("asked for the flow of two frames that are no neighbours")


def near(actual: Tensor | float, expected: float, what: str) -> None:
    actual = float(actual.detach() if isinstance(actual, Tensor) else actual)
    assert math.isclose(actual, expected, rel_tol=LOSS_LIMIT, abs_tol=1e-7), f"{what}: {actual}, expected {expected}"


def near_gradient(actual: Tensor, case: Case, name: str) -> None:
    expected = case[name].reshape(actual.shape)
    scale = expected.abs().max().item()
    assert_near(actual, expected, limit=GRADIENT_LIMIT, relative_to=scale, what=f"{case.name} {name}")


def discriminator_state(case: Case) -> dict[str, Tensor]:
    prefix = "loss.discriminator."
    shapes = case.meta.get("discriminator") or case.meta["state_dict"]
    whole = {prefix + name: shape for name, shape in shapes.items() if name.startswith("main.")}
    return case.recipe_weights(whole or shapes, prefix)


def released_loss(case: Case, settings: dict, flow: nn.Module) -> DecoderLoss:
    weights = {ours: settings[f"{theirs}_weight"] for ours, theirs in WEIGHTS.items()}
    weights["adversarial"] = settings["disc_weight"] * settings["disc_factor"]
    state = discriminator_state(case)
    convolutions = [value for value in state.values() if value.ndim == 4]
    net = PatchGAN(in_channels=convolutions[0].shape[1], ndf=len(convolutions[0]), n_layers=len(convolutions) - 2)
    net.load_state_dict(state)
    start = settings["disc_start"]
    loss = DecoderLoss(
        discriminator=net, flow=flow, perceptual=MeanSquare(), weights=weights, start=start, form="released"
    )
    return loss.train()


def compare_generator(terms: dict[str, Tensor], logged: dict[str, float], loss: DecoderLoss, step: int) -> None:
    ours = {
        "total_loss": terms["total"],
        "logvar": loss.logvar,
        "nll_loss": terms["nll"],
        "rec_loss": loss.weights["l1"] * terms["l1"] + loss.weights["perceptual"] * terms["perceptual"],
        "d_weight": terms["d_weight"],
        "disc_factor": float(loss.active(step)),
        "g_loss": terms["adversarial"],
    }
    logged = {name.rpartition("/")[2]: value for name, value in logged.items() if "/" in name}
    assert logged.keys() <= ours.keys(), sorted(logged.keys() - ours.keys())
    for name, value in logged.items():
        near(ours[name], value, f"{name} at step {step}")


def compare_critic(terms: dict[str, Tensor], logged: dict[str, float], step: int) -> None:
    ours = {"disc_loss": terms["disc"], "logits_real": terms["real"], "logits_fake": terms["fake"]}
    logged = {name.rpartition("/")[2]: value for name, value in logged.items() if "/" in name}
    assert logged.keys() <= ours.keys(), sorted(logged.keys() - ours.keys())
    for name, value in logged.items():
        near(ours[name], value, f"{name} at step {step}")


def flow_of_case(case: Case, y: Tensor) -> nn.Module:
    if "flow_fwd" in case.tensors:
        return RecordedFlow(y, case["flow_fwd"].flatten(0, -4), case["flow_bwd"].flatten(0, -4))
    net = SpyNet()
    gains, state = dict(re.findall(r"(\d+\.weight): ([\d.]+\d)", case.meta["note"])), net.state_dict()
    for name in state.keys() - set(net.constant_buffers):
        gain = next((float(value) for leaf, value in gains.items() if name.endswith(leaf)), 1.0)
        state[name] = recipe_value(name, tuple(state[name].shape), case.meta["seed"], gain)
    net.load_state_dict(state)
    return net


def check_loss(case: Case) -> None:
    clips, frames, terms = case.meta["clips"], case.meta["frames"], case.meta["terms"]
    y, gt = (case[name].unflatten(0, (clips, frames)) for name in ("out.reconstruction", "gt"))
    flow = flow_of_case(case, y)
    loss = released_loss(case, case.meta["config"], flow)

    change = (frame_changes(y) - frame_changes(gt)).abs().flatten(0, 1)
    assert_near(change, case["out.l1_diff"].reshape(change.shape), limit=1e-6, relative_to=10.0, what="l1_diff")
    near(frame_difference_l1(y, gt), terms["l1_diff_mean"], "l1_diff_mean")
    if "out.sobel" in case.tensors:
        assert_near(sobel_edges(y.flatten(0, 1)), case["out.sobel"], limit=2e-6, what="sobel")
    check_consistency(case, y, gt, flow)
    check_terms(case, loss, gt)
    check_scores(case, loss, y)


def check_consistency(case: Case, y: Tensor, gt: Tensor, flow: nn.Module) -> None:
    terms = case.meta["terms"]
    y = y.clone().requires_grad_()
    swc = consistency_loss(y, gt, flow, form="released")
    near(swc, terms["swc_loss"], "swc")
    assert swc.requires_grad == terms["swc_loss_has_gradient_to_reconstruction"]
    if swc.requires_grad:
        near_gradient(torch.autograd.grad(swc, y)[0].flatten(0, 1), case, "out.grad_swc")
    if "out.flow_fwd" in case.tensors:
        with torch.no_grad():
            motion = estimate_motion(flow, y, size=tuple(y.shape[-2:]))
        for ours, name in ((motion.to_next, "out.flow_fwd"), (motion.to_prev, "out.flow_bwd")):
            assert_near(ours, case[name].reshape(ours.shape), limit=FLOW_LIMIT, what=name)
    swapped = warping_error(y, gt, flow_of_case(case, gt), pairing="released", pixels=gt)
    near(swapped, terms["swc_loss_arguments_swapped_back"], "swc with its arguments swapped back")


def check_terms(case: Case, loss: DecoderLoss, gt: Tensor) -> None:
    """Every logged number of every recorded step, and the gradient with respect to the reconstruction."""
    compared = 0
    for name, logged in case.meta["terms"].items():
        who, _, rest = name.partition(".step")
        if who not in ("generator", "discriminator"):
            continue
        step, _, layer = rest.partition(".last_layer_")
        weight = case["last_layer"].clone().requires_grad_(layer == "trainable")
        made = case["base"] + nn.functional.conv2d(case["feat"].clone().requires_grad_(), weight, padding=1)
        y = made.unflatten(0, gt.shape[:2])
        assert_near(made, case["out.reconstruction"], limit=OUTPUT_LIMIT, what="reconstruction")
        # the recorded flow knows the frames by their pixels
        loss.flownet = flow_of_case(case, y.detach())
        if who == "discriminator":
            compare_critic(loss.critic(y, gt, step=int(step)), logged, int(step))
        else:
            terms = loss.generator(y, gt, step=int(step), last_layer=weight)
            compare_generator(terms, logged, loss, int(step))
            if layer == "trainable" and f"out.grad_total_step{step}" in case.tensors:
                (slope,) = torch.autograd.grad(terms["total"], y)
                near_gradient(slope.flatten(0, 1), case, f"out.grad_total_step{step}")
        compared += 1
    assert compared, f"{case.name}: no recorded terms"


@torch.no_grad()
def check_scores(case: Case, loss: DecoderLoss, y: Tensor) -> None:
    """The discriminator's answers with the statistics of the batch and with its running ones, and their hinge."""
    scores = {}
    for mode, name in ((True, "out.logits_fake"), (False, "out.logits_fake_eval")):
        loss.discriminator.load_state_dict(discriminator_state(case))
        scores[name] = loss.discriminator.train(mode)(y.flatten(0, 1))
        assert_near(scores[name], case[name], limit=OUTPUT_LIMIT, what=name)
    near(hinge_discriminator(*scores.values()), case.meta["terms"]["hinge"], "hinge")


# ---- one step


def stage_two(case: Case) -> StageTwo:
    decoder = SequenceAutoencoder(**known_settings(SequenceAutoencoder, case.meta))
    loss = released_loss(case, case.meta["loss"], nn.Identity())
    settings = case.meta["optimizer_ae"]
    adam = Adam(lr=settings["lr"], betas=settings["betas"], weight_decay=settings["weight_decay"])
    model = StageTwo(decoder, loss, optimizer=adam, scale_factor=0.18215)
    model.load_state_dict({**case.recipe_weights(), "loss.logvar": torch.zeros(())}, strict=True)
    return model.train()


def check_step(case: Case) -> None:
    model, step = stage_two(case), case.meta.get("global_step", 0)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(trainable) == sorted(case.meta["trainable"])
    check_optimizers(model, case)

    batch = {"lq": case["lqs"], "gt": case["gts"], "latent": case["lts"]}
    y, gt = model.reconstruct(batch), case["gts"] * 2 - 1
    assert_near(case["out.latent"], case["lts"].flatten(0, 1) / model.scale_factor, limit=1e-5, what="latent")
    assert_near(y.flatten(0, 1), case["out.reconstruction"], limit=OUTPUT_LIMIT, what="reconstruction")
    model.loss.flownet = RecordedFlow(y.detach(), case["flow_fwd"].flatten(0, -4), case["flow_bwd"].flatten(0, -4))
    terms = model.loss.generator(y, gt, step=step, last_layer=model.decoder.conv_out.weight)
    compare_generator(terms, case.meta["generator_logs"], model.loss, step)
    near(terms["total"], case.meta["generator_loss"], "generator loss")
    judged = model.loss.critic(y, gt, step=step)
    compare_critic(judged, case.meta["discriminator_logs"], step)
    near(judged["disc"], case.meta["discriminator_loss"], "discriminator loss")
    assert judged["disc"].requires_grad == case.meta["discriminator_loss_requires_grad"]
    check_gradient_norms(model, terms["total"], case)


def check_optimizers(model: StageTwo, case: Case) -> None:
    """Ours hold only what is trained; the recorded one also the frozen rest of encoder and decoder."""
    made = [item["optimizer"] for item in model.configure_optimizers()]
    sizes = [sum(len(group["params"]) for group in optimizer.param_groups) for optimizer in made]
    assert sizes == [case.meta["n_trainable_in_opt_ae"], case.meta["n_in_opt_disc"]]
    for optimizer, name in zip(made, ("optimizer_ae", "optimizer_disc"), strict=True):
        for key in ("lr", "eps", "weight_decay"):
            assert optimizer.defaults[key] == case.meta[name][key], key
        assert list(optimizer.defaults["betas"]) == case.meta[name]["betas"]


def check_gradient_norms(model: StageTwo, loss: Tensor, case: Case) -> None:
    """Those of the generator's loss, which reach the discriminator (by 0 before its start) where it is not frozen."""
    named, norms = dict(model.named_parameters()), case.meta["generator_grad_norms"]
    slopes = torch.autograd.grad(loss, [named[name] for name in norms])
    for (name, norm), slope in zip(norms.items(), slopes, strict=True):
        # some vanish by construction: what is left there is rounding
        limit = GRADIENT_LIMIT * norm + 1e-7
        assert_near(slope.norm(), torch.tensor(norm), limit=limit, what=f"gradient norm of {name}")


CHECKS = {"h_decoder_loss": check_loss, "h_stage2_step": check_step}
