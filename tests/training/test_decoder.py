"""Stage 2: trained parameters, and two optimizers with one step count."""

import copy
import math

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader

from ldm.nets.discriminator import PatchGAN
from ldm.nets.perceptual import LPIPS
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.nets.spynet import SpyNet
from ldm.ops.dis import DISFlow
from ldm.training.decoder import StageTwo
from ldm.training.decoder_loss import DecoderLoss
from ldm.training.optimization import Adam

# Lightning warns about workers, folders and hardware, and uses deprecated parts of torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, a, b):
        return a.new_full((len(a), 1, 1, 1), self.value)


def clips(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trained_lpips():
    torch.manual_seed(0)
    net = LPIPS(width=4)
    for k in range(5):
        getattr(net, f"lin{k}").model[1].weight.data.abs_()
    return net


def vae():
    torch.manual_seed(1)
    return SequenceAutoencoder(ch=32, ch_mult=[1, 1, 1], num_res_blocks=1, num_fuse_block=1, norm_groups=8)


def module(*, lr=1e-3, accumulate=1, trained="released", gradient_clip=None, drop_features=0.0, **settings):
    torch.manual_seed(2)
    defaults = {
        "flow": DISFlow("ultrafast"),
        "discriminator": PatchGAN(ndf=4, n_layers=1),
        "weights": {"consistency": 0},
        "start": 0,
    }
    loss = DecoderLoss(**(defaults | settings))
    return StageTwo(
        vae(), loss, optimizer=Adam(lr=lr, betas=(0.5, 0.9), weight_decay=0.0), scale_factor=0.5,
        trained=trained, accumulate=accumulate, gradient_clip=gradient_clip, drop_features=drop_features,
    )  # fmt: skip


def batch_of(number, b=1, t=2, size=32):
    gt = clips(b, t, 3, size, size, seed=number) / 2 + 0.5
    return {"lq": gt[..., ::4, ::4], "gt": gt, "latent": clips(b, t, 4, size // 4, size // 4, seed=number + 50),
            "index": torch.arange(number * b, number * b + b)}  # fmt: skip


def fit(model, batches, steps, **settings):
    """Train for `steps` steps and return the logged values, one row per step."""
    rows = []

    class Kept(DummyLogger):
        def log_metrics(self, metrics, step=None):
            rows.append({**metrics, "step": step})

    trainer = Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, logger=Kept(), log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        **settings,
    )  # fmt: skip
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return trainer, [row for row in rows if "train/total" in row]


def test_trained_parameters_are_selected_by_name():
    expected = {
        "released": lambda n: n.startswith("decoder.") and ("temporal" in n or "fusion_layer" in n),
        "decoder": lambda n: n.startswith(("decoder.", "post_quant_conv.")),
        "features": lambda n: n.startswith(("decoder.", "post_quant_conv.", "encoder.")),
    }
    for trained, chosen in expected.items():
        model = module(trained=trained)
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        critic = {name for name in names if name.startswith("loss.")}
        assert critic == {f"loss.discriminator.{n}" for n, _ in model.loss.discriminator.named_parameters()}
        assert names - critic == {name for name, _ in model.named_parameters() if chosen(name)}
        groups = [
            {id(p) for g in o["optimizer"].param_groups for p in g["params"]} for o in model.configure_optimizers()
        ]
        named = dict(model.named_parameters())
        assert groups == [{id(named[n]) for n in names - critic}, {id(named[n]) for n in critic}]
    with pytest.raises(ValueError, match="trained='encoder', expected one of released, decoder"):
        module(trained="encoder")
    with pytest.raises(ValueError, match="accumulate=0"):
        module(accumulate=0)
    with pytest.raises(ValueError, match="drop_features=2, expected a probability"):
        module(drop_features=2)


def test_features_are_dropped_in_a_part_of_the_batches():
    """A batch without features gives its fusion layers no gradient; which batches these are follows their samples."""
    model, dropped = module(drop_features=0.4), []
    for number in range(60):
        weight = model.fusion_weight(torch.tensor([number, number + 1]))
        assert weight == model.fusion_weight(torch.tensor([number]))
        dropped.append(weight == 0)
    assert 12 < sum(dropped) < 36
    batch = batch_of(0)
    model.reconstruct(batch, fusion_w=0.0).sum().backward()
    fusion = [p for name, p in model.named_parameters() if "fusion_layer" in name]
    assert fusion and all(p.grad is None for p in fusion)
    assert not torch.equal(model.reconstruct(batch), model.reconstruct(batch, fusion_w=0.0))


def test_weights_have_the_released_names_and_order():
    state = module(perceptual=trained_lpips(), flow=SpyNet()).state_dict()
    prefixes = list(dict.fromkeys(".".join(name.split(".")[: 2 if name.startswith("loss") else 1]) for name in state))
    losses = ["loss.logvar", "loss.perceptual_loss", "loss.flownet", "loss.discriminator"]
    assert prefixes == ["encoder", "decoder", *losses, "quant_conv", "post_quant_conv"]
    inner = [name for name in state if not name.startswith("loss.")]
    assert sorted(inner) == sorted(vae().state_dict())


def test_a_step_changes_only_trained_parameters():
    model = module(lr=1e-2)
    before = copy.deepcopy(model.state_dict())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    fit(model, [batch_of(0)], 2)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert changed <= trained | statistics
    # a bias in front of a norm of single channels may stand still
    assert len(trained - changed) < 0.1 * len(trained)
    assert all(p.grad is None for p in model.parameters())


def test_the_generator_leaves_no_gradient_in_the_discriminator():
    model, met = module(), []

    def critic(*args, judge=model.loss.critic, **settings):
        met.extend(p.grad for p in model.loss.discriminator.parameters())
        return judge(*args, **settings)

    model.loss.critic = critic
    fit(model, [batch_of(0)], 1)
    assert met and all(grad is None for grad in met)
    assert all(p.requires_grad for p in model.loss.discriminator.parameters())


def test_reconstruction_uses_unscaled_latents_and_features_of_enlarged_frames():
    model, batch, networks = module().eval(), batch_of(0, b=2), vae().eval()
    networks.load_state_dict({name: value for name, value in model.state_dict().items() if name[:5] != "loss."})
    lq = nn.functional.interpolate(batch["lq"].flatten(0, 1), scale_factor=4, mode="bicubic").clamp(0, 1)
    features = networks.features(lq * 2 - 1)
    frames = networks.decode(batch["latent"].flatten(0, 1) * 2, features, num_frames=2)
    torch.testing.assert_close(model.reconstruct(batch).flatten(0, 1), frames)


def test_only_generator_steps_are_counted():
    model = module(accumulate=3, start=1)
    critic = copy.deepcopy(model.loss.discriminator.state_dict())
    seen = []
    model.loss.distances = lambda *a, step, f=model.loss.distances, **k: seen.append(step) or f(*a, step=step, **k)
    trainer, rows = fit(model, [batch_of(k) for k in range(4)], 2)
    assert trainer.global_step == 2 and seen == [0, 0, 0, 1, 1, 1] and [row["step"] for row in rows] == [1, 2]
    assert ["train/disc" in row for row in rows] == [False, True]
    after = model.loss.discriminator.state_dict()
    assert any(not torch.equal(critic[name], after[name]) for name in critic)


def test_accumulated_batches_equal_one_batch():
    """Without the discriminator, whose batch norm depends on the batch; logged rows are means over a step."""
    weights = {"consistency": 0, "adversarial": 0}
    single = [batch_of(k) for k in range(4)]
    double = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in (single[:2], single[2:])]
    rows = [
        fit(module(accumulate=accumulate, weights=weights, gradient_clip=1.0), batches, 4)[1]
        for accumulate, batches in ((2, single), (1, double))
    ]
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=2e-4), name


@pytest.mark.parametrize("form", ["paper", "released"])
def test_a_few_steps_lower_the_loss(form):
    model = module(lr=5e-3, form=form, trained="decoder", weights={"adversarial": 0.01}, start=2)
    _, rows = fit(model, [batch_of(0)], 6)
    assert rows[-1]["train/nll"] < 0.95 * rows[0]["train/nll"]
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_the_discriminator_is_trained_only_by_its_own_loss():
    model = module(
        lr=1e-2, weights={"l1": 1e-6, "perceptual": 0, "difference": 0, "consistency": 0, "adversarial": 1e-6}
    )
    _, rows = fit(model, [batch_of(0)], 10)
    assert rows[-1]["train/disc"] < 0.8 * rows[0]["train/disc"]
    assert rows[-1]["train/real"] > rows[-1]["train/fake"]


def test_a_loss_that_is_not_finite_names_term_and_step():
    model = module(weights={"consistency": 0}, perceptual=Constant(math.nan))
    with pytest.raises(FloatingPointError, match="perceptual loss of nan at step 0"):
        fit(model, [batch_of(0)], 1)


def test_validation_and_pictures():
    model, batch = module(weights={"adversarial": 0}), batch_of(0, b=2)
    trainer, _ = fit(model, [batch_of(1)], 1)
    trainer.validate(model, DataLoader([batch], batch_size=None), verbose=False)
    values = trainer.callback_metrics
    picture = model.eval().restore(batch)
    assert picture.shape == batch["gt"].shape and picture.min() >= 0 and picture.max() <= 1
    error = (picture - batch["gt"]).square().mean()
    assert values["val/psnr"].item() == pytest.approx(-10 * math.log10(error), abs=1e-3)
    terms = model.loss.distances(model.reconstruct(batch), batch["gt"] * 2 - 1, step=0)
    assert values["val/l1"].item() == pytest.approx(terms["l1"].item(), rel=1e-5)
    assert values["val/loss"].item() == pytest.approx(terms["total"].item(), rel=1e-5)


class Precision:
    def __init__(self, precision):
        self.precision, self.log_every_n_steps = precision, 5


@pytest.mark.parametrize(
    ("settings", "precision", "says"),
    [
        ({}, "16-mixed", "got precision 16-mixed, expected 32 or bf16-mixed"),
        ({"perceptual": LPIPS(width=4)}, "32-true", "LPIPS with random weights"),
    ],
)
def test_unsupported_precision_and_random_lpips_are_refused(settings, precision, says):
    model, trainer = module(**settings), Precision(precision)
    model.trainer = trainer
    with pytest.raises(ValueError, match=says):
        model.on_fit_start()


def test_the_replacement_of_lpips_is_logged(caplog):
    trainer = Precision("bf16-mixed")
    said = {}
    for name, settings in (
        ("none", {}),
        ("weightless", {"weights": {"perceptual": 0}}),
        ("lpips", {"perceptual": trained_lpips()}),
    ):
        model = module(**settings)
        model.trainer = trainer
        caplog.clear()
        model.on_fit_start()
        said[name] = [record.getMessage() for record in caplog.records]
    assert len(said["none"]) == 1 and "GradientDistance" in said["none"][0]
    assert len(said["weightless"]) == 1 and "weight is 0" in said["weightless"][0]
    assert said["lpips"] == []
