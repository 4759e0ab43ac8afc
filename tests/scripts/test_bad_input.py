"""Input that cannot work: one line that says why, exit status 2, nothing left behind."""

import os
import pickle

import av
import pytest
import torch

from ldm import config
from ldm.methods.mgld.method import MGLD
from ldm.weights import checkpoint
from scripts import upscale, upscale_jobs
from tests.marks import mostly_slow
from tests.scripts import toy

FAST = ["--upscale", "2", "--ddpm_steps", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.make_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(autouse=True)
def nothing_is_sampled(monkeypatch):
    monkeypatch.setattr(MGLD, "restore", lambda *args, **kwargs: pytest.fail("bad input came as far as sampling"))


def refuse(capfd, folder, *words):
    """The one line of a run that leaves `folder` as it was."""
    before = toy.left_behind(folder)
    capfd.readouterr()
    assert upscale.main([*map(str, words)]) == 2
    said = capfd.readouterr()
    assert said.out == "" and said.err.startswith("upscale.py: ") and said.err.count("\n") == 1, said
    assert toy.left_behind(folder) == before
    return said.err


def empty(path):
    path.touch()


def text(path):
    path.write_text("these are only words\n" * 50)


def truncated(path):
    toy.make_clip(path, 12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        container.start_encoding()


def mixed(path):
    return toy.make_mixed(path.with_suffix(""))


def no_images(path):
    path = path.with_suffix("")
    path.mkdir()
    text(path / "notes.txt")
    return path


def tiny(path):
    toy.make_clip(path, 2, size=(8, 24))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "no such file or folder"),
        (empty, "the file is empty"),
        (text, "not a readable video"),
        (truncated, "cut short"),
        (no_frames, "no frames|no video stream|not a readable video"),
        (mixed, "expected one size"),
        (no_images, "no images"),
        (tiny, "at least 16 pixels a side"),
    ],
)
def test_inputs(tmp_path, capfd, monkeypatch, make, why):
    monkeypatch.setattr(upscale_jobs, "find_weights", lambda *args: pytest.fail("weights were looked for"))
    path = tmp_path / "in.mp4"
    path = make(path) or path
    line = refuse(capfd, tmp_path, "-i", path, "-o", tmp_path / "new" / "out.mp4")
    assert str(path) in line
    assert any(part in line for part in why.split("|")), line


def another_slot(folder, state):
    checkpoint.save(folder / "mgldvsr_unet.safetensors", state[1])


def not_a_number(folder, state):
    name = "model.diffusion_model.out.2.weight"
    bad = state[0][name].clone()
    bad.view(-1)[3] = float("nan")
    checkpoint.save(folder / "mgldvsr_unet.safetensors", state[0] | {name: bad})


class Foreign:
    """Pickles as a call, which an unpickler that trusts the file would make."""

    def __reduce__(self):
        return os.mkdir, ("called",)


def foreign_code(folder, state):
    (folder / "mgldvsr_unet.safetensors").unlink()
    torch.save({"state_dict": state[0], "more": Foreign()}, folder / "mgldvsr_unet.ckpt")


def bare_pickle(folder, state):
    (folder / "mgldvsr_unet.safetensors").unlink()
    (folder / "mgldvsr_unet.ckpt").write_bytes(pickle.dumps(Foreign()))


def half_a_file(folder, state):
    path = folder / "mgldvsr_unet.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def missing(folder, state):
    (folder / "video_vae_cfw.safetensors").unlink()


def other_widths(folder, state):
    name = "model.diffusion_model.out.2.bias"
    checkpoint.save(folder / "mgldvsr_unet.safetensors", state[0] | {name: torch.zeros(5)})


@mostly_slow(
    ("spoil", "why"),
    [
        (another_slot, "looks like video_vae_cfw.ckpt, expected mgldvsr_unet"),
        (not_a_number, "model.diffusion_model.out.2.weight holds 1 NaN"),
        (foreign_code, "more than weights; nothing of it was run"),
        (bare_pickle, "mgldvsr_unet.ckpt"),
        (half_a_file, "damaged"),
        (missing, "none of video_vae_cfw.safetensors"),
        (other_widths, "1 mis-shaped: model.diffusion_model.out.2.bias"),
    ],
    fast=3,
)
def test_weights(tmp_path, capfd, monkeypatch, spoil, why):
    monkeypatch.chdir(tmp_path)
    clip, folder = toy.make_clip(tmp_path / "in.mp4", 2), toy.make_model(tmp_path / "model")
    spoil(folder, toy.states())
    assert why in refuse(capfd, tmp_path, "-i", clip, "-o", tmp_path / "out", "--weights", folder, *FAST)


@mostly_slow(
    ("words", "why"),
    [
        (["method.params.sampling.params.step=3"], "nearest known is method.params.sampling.params.steps"),
        (["just words"], "expected key=value"),
        (["--ddpm_steps", "many"], "--ddpm_steps: got 'many', expected a whole number from 1"),
        (["--upscale", "-1"], "--upscale"),
        (["--upscale", "inf"], "expected a number above 0"),
        (["--colorfix", "sepia"], "sepia"),
        (["--preset", "relaesed"], "expected one of four_steps, overlapped, released"),
        (["--flow", "raff"], "expected one of dis, raft"),
        (["--flow", "raft"], "raft-things"),
        (["--device", "abacus"], "got device 'abacus'"),
        (["--start", "2"], "expected less than its 2 frames"),
        (["--crf", "60"], "expected 0 (best) to 51"),
        (["--vqgantile_stride", "100000"], "stride <= tile"),
        (["output.rounding=up"], "expected one of nearest, truncate"),
        (["--weights", "nowhere"], "there is no folder nowhere"),
        (["--config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (["--device", "meta"], "got device 'meta'"),
    ],
    fast=8,
)
def test_words(tmp_path, capfd, model, words, why):
    clip = toy.make_clip(tmp_path / "in.mp4", 2)
    assert why in refuse(capfd, tmp_path, "-i", clip, "-o", tmp_path / "o.mp4", "--weights", model, *FAST, *words)


def test_an_unknown_key_in_a_yaml(tmp_path, capfd, model):
    clip, card = toy.make_clip(tmp_path / "in.mp4", 2), tmp_path / "typo.yaml"
    settings = toy.settings()
    settings["networks"]["unet"]["params"]["model_chanels"] = 32
    config.save(settings, card)
    line = refuse(capfd, tmp_path, "-i", clip, "-o", tmp_path / "o.mp4", "--weights", model, "--config", card)
    assert "'model_chanels'" in line and "the nearest known is model_channels" in line
    card.write_text("a: [1")
    line = refuse(capfd, tmp_path, "-i", clip, "-o", tmp_path / "o.mp4", "--weights", model, "--config", card)
    assert "not valid YAML" in line


def in_a_file(folder):
    text(folder / "file")
    return folder / "file" / "out.mp4"


def locked(folder):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (folder / "locked").mkdir(mode=0o555)
    return folder / "locked" / "out.mp4"


def in_use(folder):
    (folder / "used").mkdir()
    text(folder / "used" / "letter.txt")
    return folder / "used"


def pipe(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (pipe, "is no folder"),
        (in_a_file, "cannot be written"),
        (locked, "cannot be written"),
        (in_use, "not empty"),
        (lambda folder: folder / "out.xyz", "cannot write .xyz"),
        (lambda folder: folder / "in.mp4", "is, or holds, the input"),
    ],
)
def test_outputs(tmp_path, capfd, monkeypatch, make, why):
    monkeypatch.setattr(upscale_jobs, "find_weights", lambda *args: pytest.fail("weights were looked for"))
    clip = toy.make_clip(tmp_path / "in.mp4", 2)
    assert why in refuse(capfd, tmp_path, "-i", clip, "-o", make(tmp_path))
