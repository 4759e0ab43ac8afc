"""Trainings of StableVSR: trained parameters, random numbers and exports; both commands at toy width."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main
from ldm import config
from ldm.nets.configurations import control_settings
from ldm.nets.control import TemporalConditioning
from ldm.ops.resize import resize
from ldm.training.control_folder import CONFIG, WEIGHTS, write_control_folder
from ldm.training.frame_upscaler import FrameUpscaler
from ldm.training.recompute import recompute_blocks
from ldm.training.temporal_control import ControlObjective, TemporalControl
from tests.training import runs

FOLDER = runs.CONFIGS / "stablevsr"


def settings(stage: str):
    return config.load(FOLDER / f"{stage}.yaml", FOLDER / "toy.yaml", overrides=["clips=rendered"])


def lively(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p[0].numel() if p.ndim > 1 else 100) ** -0.5)
    return module


@pytest.fixture(scope="module")
def built() -> dict[str, torch.nn.Module]:
    return {stage: lively(config.instantiate(settings(stage).model)) for stage in ("tcm", "unet")}


@pytest.fixture
def control(built) -> TemporalControl:
    return copy.deepcopy(built["tcm"])


@pytest.fixture
def upscaler(built) -> FrameUpscaler:
    return copy.deepcopy(built["unet"])


def batch_of(numbers, frames=3, size=32):
    gt = torch.stack([torch.rand(frames, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in numbers])
    return {"gt": gt, "lq": resize(gt, (size // 4, size // 4), mode="area"), "index": torch.tensor(numbers)}


def test_only_the_control_network_is_trained(control):
    before = copy.deepcopy(control.state_dict())
    optimizer = control.configure_optimizers()["optimizer"]
    control.batch_terms(batch_of([3]), "train")["loss"].backward()
    optimizer.step()
    changed = {
        name.partition(".")[0] for name, value in control.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"controlnet"}
    trained = {name.partition(".")[0] for name, p in control.named_parameters() if p.requires_grad}
    assert trained == {"controlnet"}
    assert len(optimizer.param_groups[0]["params"]) == len(list(control.controlnet.parameters()))


def test_random_numbers_depend_on_the_sample(control):
    with torch.no_grad():
        both, alone = (
            control.batch_terms(batch_of([4, 9]), "train"),
            [control.batch_terms(batch_of([n]), "train") for n in (4, 9)],
        )
    for name in ("prediction", "target", "condition"):
        torch.testing.assert_close(both[name], torch.cat([part[name] for part in alone]), atol=1e-4, rtol=1e-4)
    objective, like = control.objective, torch.empty(40, 4, 2, 2)
    drawn = objective.draw("train", torch.arange(40), like)
    assert set(drawn.neighbour.tolist()) == {0, 2} and len(set(drawn.t.tolist())) > 30 and drawn.t.max() < 1000
    other = ControlObjective(objective.scheduler, seed=43).draw("train", torch.arange(40), like)
    assert not torch.equal(other.noise, drawn.noise)
    assert not torch.equal(drawn.noise, drawn.noise_neighbour) and not torch.equal(drawn.eps, drawn.noise)
    assert not torch.equal(objective.draw("validation", torch.arange(40), like).t, drawn.t)


def test_the_drawn_neighbour_guides(control):
    batch, like = batch_of([5]), torch.empty(1, 4, 8, 8)
    draws = control.objective.draw("train", batch["index"], like)
    spoilt = {name: value.clone() for name, value in batch.items()}
    other, used = 2 - draws.neighbour.item(), draws.neighbour.item()
    with torch.no_grad():
        whole = control.batch_terms(batch, "train")
        spoilt["gt"][:, other], spoilt["lq"][:, other] = 0, 0
        assert torch.equal(control.batch_terms(spoilt, "train")["prediction"], whole["prediction"])
        spoilt["gt"][:, used] = 0
        assert not torch.equal(control.batch_terms(spoilt, "train")["condition"], whole["condition"])


def test_clips_of_another_length_are_refused(control):
    with pytest.raises(ValueError, match="got clips of 2 frames, expected 3"):
        control.batch_terms(batch_of([1], frames=2), "train")


def test_recomputation_gives_the_same_gradients(control):
    copied = copy.deepcopy(control)
    assert recompute_blocks(copied) > 10
    losses = [model.batch_terms(batch_of([7]), "train")["loss"] for model in (control, copied)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    pairs = zip(control.controlnet.parameters(), copied.controlnet.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-7) for a, b in pairs)


def test_previews_depend_only_on_the_sample(control, upscaler):
    for model in (control.eval(), upscaler.eval()):
        batch, state = batch_of([5]), torch.get_rng_state()
        out = model.restore(batch)
        assert out.shape == batch["gt"].shape and out.min() >= 0 and out.max() <= 1
        assert torch.equal(out, model.restore(batch)) and torch.equal(state, torch.get_rng_state())
    alone = upscaler.restore({name: value[:, :1] if name != "index" else value for name, value in batch.items()})
    torch.testing.assert_close(alone[:, 0], out[:, 0])


def test_the_upscaler_is_trained_on_single_frames(upscaler):
    with torch.no_grad():
        both = upscaler.losses(batch_of([4, 9], frames=1), "train")["loss"]
        alone = [upscaler.losses(batch_of([n], frames=1), "train")["loss"] for n in (4, 9)]
    assert both.item() == pytest.approx(sum(loss.item() for loss in alone) / 2, rel=1e-4)
    upscaler.losses(batch_of([4], frames=2), "train")["loss"].backward()
    learning = {name.partition(".")[0] for name, p in upscaler.named_parameters() if p.grad is not None}
    assert learning == {"unet"}


def test_a_control_folder_has_the_format_of_diffusers(control, tmp_path):
    write_control_folder(control.controlnet, tmp_path / "controlnet", half=True)
    written = json.loads((tmp_path / "controlnet" / CONFIG).read_text())
    again = TemporalConditioning(**control_settings(written))
    state = load_file(tmp_path / "controlnet" / WEIGHTS)
    again.load_state_dict({name: value.float() for name, value in state.items()})
    assert all(torch.equal(v, control.controlnet.state_dict()[k].half().float()) for k, v in again.state_dict().items())
    assert written["_class_name"] == "ControlNetModel" and written["conditioning_embedding_out_channels"] == [4, 4, 8]


# ---- the commands


def run(stage: str, folder: Path, *words: str, name: str | None = None) -> Path:
    base = ["--base", str(FOLDER / f"{stage}.yaml"), str(FOLDER / "toy.yaml")]
    flags = ["--logdir", str(folder / "logs"), "--name", name or stage]
    assert main.main(["--train", *base, *words, "clips=rendered", "pictures.every=0", *flags]) == 0
    return runs.run_of(folder, name or stage)


@pytest.mark.slow  # four trainings
def test_an_upscaler_is_trained_and_then_its_control_network(tmp_path):
    upscaler, out = tmp_path / "unet.safetensors", tmp_path / "out"
    run("unet", tmp_path, "steps=1", f"export.file={upscaler}")
    state = load_file(upscaler)
    assert all(name.startswith("unet.") for name in state)
    entries = config.plain(config.load(FOLDER / "tiny_tcm.yaml", overrides=[f"upscaler_weights={upscaler}"]))["init"]
    entries[0]["modules"] = ["unet"]  # the toy's autoencoder is not in the file
    config.save({"init": entries}, tmp_path / "start.yaml")
    words = [str(tmp_path / "start.yaml"), f"export_folder={out}"]
    whole = run("tcm", tmp_path, "steps=2", *words)
    settings = json.loads((out / "controlnet" / CONFIG).read_text())
    control = TemporalConditioning(**control_settings(settings))
    last = runs.saved(whole)["state_dict"]
    control.load_state_dict(load_file(out / "controlnet" / WEIGHTS))
    assert all(torch.equal(value, last[f"controlnet.{name}"]) for name, value in control.state_dict().items())
    assert all(torch.equal(state[name], last[name]) for name in state)
    part = run("tcm", tmp_path, "steps=1", *words, name="part")
    assert main.main(["--train", "--resume", str(part), "steps=2"]) == 0
    assert not runs.differing(runs.learned(runs.saved(whole)), runs.learned(runs.saved(part)))


@pytest.mark.parametrize("name", ["tcm", "unet", "tiny_unet", "tiny_tcm"])
def test_the_configurations_are_complete(name):
    loaded = config.plain(config.load(FOLDER / f"{name}.yaml", overrides=["clips=rendered"]))
    with torch.device("meta"):
        model = config.instantiate({"target": loaded["model"]["target"], "params": loaded["model"]["params"]})
    assert model.needs == ("gt", "lq")
    assert config.instantiate(loaded["data"]).train.frames == (1 if "unet" in name else 3)
