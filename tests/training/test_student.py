"""The one-step student: what it learns towards, and low-rank changes that end in the released names."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import main
from ldm import config
from ldm.diffusion.schedule import Schedule
from ldm.nets.lora import add_low_rank, merge_low_rank
from ldm.ops.resize import resize
from ldm.training.losses import GradientDistance
from ldm.training.optimization import Adam
from ldm.training.student import OneStep, StudentTraining
from tests.methods import toy
from tests.training import runs

# Lightning advises on workers, folders and hardware, and lags behind torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def module(**settings) -> StudentTraining:
    networks = config.instantiate(toy.settings().networks)
    networks = {name: toy.randomise(net, k) for k, (name, net) in enumerate(networks.items())}
    return StudentTraining(
        networks, **({"step": OneStep(), "optimizer": Adam(lr=1e-3), "scale_factor": 0.5} | settings)
    )


def batch_of(model, frames=2, size=32):
    gt = toy.clip(frames, size, size, seed=0)[None]
    batch = {"gt": gt, "lq": gt[..., ::4, ::4], "index": torch.tensor([0])}
    with torch.no_grad():
        latent = model.predict(batch)
    return batch | {"latent": latent.unflatten(0, (1, frames))}


def test_the_student_s_own_samples_cost_nothing_and_nothing_is_random():
    model = module()
    batch = batch_of(model)
    terms = model.terms(batch)
    assert terms["teacher"] < 1e-10 and terms["latent"] > 0
    assert set(terms) == {"latent", "teacher", "loss"}
    assert terms["loss"].item() == pytest.approx(terms["latent"].item())
    assert model.terms(batch)["loss"] == terms["loss"]


def test_a_network_that_predicts_zero_velocity_shrinks_the_latents():
    """x0 = sqrt(abar) x - sqrt(1 - abar) v."""
    model = module()
    last = model.model["diffusion_model"].out[2]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    batch = batch_of(model)
    z = model.latents(resize(batch["lq"], (32, 32)).clamp(0, 1))
    factor = Schedule.linear_sd().abar[399].sqrt().item()
    assert torch.allclose(model.predict(batch), factor * z, atol=1e-5)


def test_terms_of_pictures_are_weighted_and_reach_the_networks():
    weights = {"teacher": 0.0, "pixel": 1.0, "perceptual": 0.5, "difference": 2.0}
    model = module(weights=weights, perceptual=GradientDistance(scales=1))
    assert model.needs == ("gt", "lq")
    batch = batch_of(model)
    terms = model.terms(batch)
    expected = terms["latent"] + terms["pixel"] + 0.5 * terms["perceptual"] + 2 * terms["difference"]
    assert torch.allclose(terms["loss"], expected)
    terms["loss"].backward()
    assert all(p.grad is not None for p in model.structcond_stage_model.parameters())
    assert not any(p.requires_grad for p in model.first_stage_model.parameters())
    assert model.restore(batch).shape == batch["gt"].shape


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_inference_of_the_student_is_its_training(kind):
    """`initial: lq` and one step give the latents that the loss compares, for the same frames and networks."""
    model = module(step=OneStep(prediction=kind))
    batch, nets = batch_of(model, frames=3), model.model["diffusion_model"]
    words = ["initial=lq", "level=399", "steps=1", "guidance=none", f"prediction={kind}"]
    method = toy.method(
        *(f"sampling.{word}" for word in words),
        unet=nets,
        structure=model.structcond_stage_model,
        autoencoder=model.first_stage_model,
        text=model.cond_stage_model["model"],
    )
    pictures = resize(batch["lq"], (32, 32)).clamp(0, 1)[0]
    assert len(pictures) <= method.windows.n_frames and max(pictures.shape[-2:]) // 4 <= method.windows.tile
    with torch.no_grad():
        wanted = model.predict(batch)
    for seed in (1, 2):
        x = torch.cat([frame["x"] for frame in method.latents(pictures, seed=seed)])
        torch.testing.assert_close(x, wanted, atol=2e-5, rtol=1e-4)


def test_cards_of_students_sample_as_they_train():
    student = {
        "tiny": ["method.params.sampling.params.initial=lq"],
        "mgldvsr": [],
    }  # the small one has both
    for family, words in student.items():
        card = config.load(runs.CONFIGS / family / "student.yaml", overrides=words)
        step, sampling = (config.instantiate(node) for node in (card.model.params.step, card.method.params.sampling))
        assert (sampling.steps, sampling.initial, sampling.guidance) == (1, "lq", "none")
        assert (sampling.level, sampling.prediction) == (step.level, step.prediction)
        assert sampling.schedule.t.tolist() == [step.level]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rank": -1}, "got rank=-1, expected at least 0"),
        ({"weights": {"lpips": 1}}, "got weight 'lpips', expected some of latent, teacher"),
        ({"weights": {"perceptual": 1}}, "without a network"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        module(**settings)
    with pytest.raises(ValueError, match="got level=1000, expected 0 to 999"):
        OneStep(level=1000)


# ---- the published model's recipe, at toy size

NAME = "mgldvsr_unet.safetensors"
WIDTHS = {
    "unet": {
        "model_channels": 32,
        "channel_mult": [1],
        "attention_resolutions": [1],
        "num_res_blocks": 1,
        "num_head_channels": 16,
        "context_dim": 8,
        "semb_channels": 32,
    },
    "structure": {
        "model_channels": 32,
        "out_channels": 32,
        "channel_mult": [1],
        "attention_resolutions": [1],
        "num_res_blocks": 1,
        "num_heads": 2,
    },
    "autoencoder": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
}


@pytest.mark.slow  # two trainings
def test_the_recipe_of_the_published_model_trains_and_writes_the_released_names(tmp_path):
    words = [f"networks.{name}.params.{key}={value}" for name, own in WIDTHS.items() for key, value in own.items()]
    words += ["networks.text={target: ldm.nets.text.FixedContext, params: {tokens: 1, width: 8}}"]
    card = config.load(runs.CONFIGS / "mgldvsr" / "student.yaml", overrides=words)
    teacher = StudentTraining(
        config.instantiate(card.networks), step=OneStep(), optimizer=Adam(lr=1.0), scale_factor=1.0
    )
    state = {name: value for name, value in teacher.state_dict().items() if not name.startswith("perceptual")}
    save_file(state, tmp_path / "teacher.safetensors")
    runs.write_set(tmp_path / "set", frames=2, size=32, shrink=2)
    words += [
        f"teacher={tmp_path / 'teacher.safetensors'}",
        f"latents={tmp_path / 'set'}",
        f"student={tmp_path / 'own'}",
    ]
    words += ["init.0.modules=[model.diffusion_model, structcond_stage_model, first_stage_model]", "num_workers=0"]
    words += ["steps=2", "accumulate=1", "num_frames=2", "pictures.every=0", "checkpoints.every=1"]
    base = [
        "--base",
        str(runs.CONFIGS / "mgldvsr" / "student.yaml"),
        "--logdir",
        str(tmp_path / "logs"),
        "--name",
        "toy",
    ]
    assert main.main(["--train", *base, *words, "steps=1"]) == 0
    again = ["--resume", str(runs.run_of(tmp_path)), "steps=2", f"export.file={tmp_path / 'own' / NAME}"]
    assert main.main(["--train", *again]) == 0
    written = load_file(tmp_path / "own" / NAME)
    assert written.keys() == state.keys()
    changed = {name for name, value in written.items() if not torch.equal(value, state[name])}
    assert "model.diffusion_model.input_blocks.1.0.out_layers.3.weight" in changed
    assert any("spade" in name for name in changed) and not any("first_stage_model" in name for name in changed)


# ---- low rank


def test_low_rank_changes_start_as_none_and_are_merged():
    model = module(rank=2)
    unet = model.model["diffusion_model"]
    names, batch = set(unet.state_dict()), batch_of(model)
    before = copy.deepcopy(unet.state_dict())
    start = model.terms(batch | {"latent": batch["latent"] + 1})["loss"].item()
    model.configure_model()
    model.configure_model()  # of a run that is resumed: once is enough
    assert model.terms(batch | {"latent": batch["latent"] + 1})["loss"].item() == pytest.approx(start, rel=1e-5)
    optimizer = model.configure_optimizers()["optimizer"]
    for _ in range(3):
        optimizer.zero_grad()
        model.terms(batch | {"latent": batch["latent"] + 1})["loss"].backward()
        optimizer.step()
    learned = model.terms(batch)["loss"].item()
    model.on_fit_end()
    assert set(unet.state_dict()) == names
    assert model.terms(batch)["loss"].item() == pytest.approx(learned, rel=1e-4)
    change = unet.state_dict()["input_blocks.0.0.weight"] - before["input_blocks.0.0.weight"]
    assert 0 < torch.linalg.matrix_rank(change.flatten(1), atol=1e-6) <= 2


def test_layers_that_are_trained_whole_stay_as_they_are():
    net = nn.ModuleDict({"spade": nn.Conv2d(3, 3, 1), "conv": nn.Conv2d(3, 4, 3), "norm": nn.GroupNorm(1, 4)})
    assert add_low_rank(net, rank=9, whole=("spade",)) == 1
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    own = {f"conv.parametrizations.weight.0.{name}" for name in ("up", "down")}
    assert trained == {"spade.weight", "spade.bias"} | own
    assert net["conv"].parametrizations.weight[0].up.shape == (4, 4)  # no more than the matrix has
    merge_low_rank(net)
    assert "conv.weight" in net.state_dict()
    with pytest.raises(ValueError, match="without a layer to change"):
        add_low_rank(nn.GroupNorm(1, 4), rank=1)
    with pytest.raises(ValueError, match="got rank 0"):
        add_low_rank(net, rank=0)
