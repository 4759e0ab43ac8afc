"""scripts/upscale.py as a person uses it, on a toy model with random weights."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from ldm import video
from ldm.engine.assemble import EMBEDDED, find_weights
from ldm.engine.restoring import ROUNDING
from scripts import upscale, upscale_jobs
from tests.scripts import toy

NTSC = Fraction(30000, 1001)
SCALE = "method.params.sampling.params.guidance_scale"
FAST = ["--upscale", "2", "--ddpm_steps", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(toy.make_model(tmp_path_factory.mktemp("weights") / "model"))


def test_a_clip_keeps_its_count_and_rate(tmp_path, model, capfd):
    clip = toy.make_clip(tmp_path / "clip.mp4", 4, NTSC)
    output = tmp_path / "made" / "clip.mkv"
    words = ["-i", str(clip), "-o", str(output), "--weights", model, *FAST, "--compare", "--n_frames", "3"]
    assert upscale.main(words) == 0
    made = video.probe(output)
    assert (made.width, made.height, made.frames, made.rate) == (64, 48, 4, NTSC)
    assert video.probe(output.parent / "clip.compare.png").width > 64
    assert toy.left_behind(output.parent) == ["clip.compare.png", "clip.mkv", "clip.mkv.json"]
    said = capfd.readouterr()
    assert "clip.mkv: sampled in tiles of 16" in said.out and f"{output}: 4 frames of 64x48, " in said.out
    assert said.err == ""


def test_clips_of_a_folder_keep_their_names_and_one_may_fail(tmp_path, model, monkeypatch, capfd):
    toy.without_networks(monkeypatch)
    toy.make_clip(tmp_path / "in" / "a", 4)
    toy.make_clip(tmp_path / "in" / "b.mkv", 3)
    toy.make_mixed(tmp_path / "in" / "c")
    (tmp_path / "in" / "notes").mkdir()
    words = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", model, *FAST]
    assert upscale.main([*words, "--start", "1", "--max_frames", "2", "--compare"]) == 2
    pictures = ["a.compare.png", "b.compare.png"]
    assert toy.left_behind(tmp_path / "out") == sorted(
        ["a", "a/4.png", "a/5.png", "a.json", "b.mkv", "b.mkv.json", *pictures]
    )
    lines = capfd.readouterr().err.splitlines()
    errors = [line for line in lines if not line.endswith("1 entries are passed over: notes")]
    assert "expected one size" in errors[0] and errors[1:] == ["upscale.py: 1 of 3 inputs failed"]
    enlarged = toy.make_frames(2)[1].repeat(2, 0).repeat(2, 1)
    assert (next(video.read(tmp_path / "out" / "a")) == enlarged).all()


def test_one_frame_is_one_frame(tmp_path, model, monkeypatch, capfd):
    toy.without_networks(monkeypatch)
    clip = toy.make_clip(tmp_path / "clip.mp4", 2)
    words = ["-i", str(clip), "-o", str(tmp_path / "o.mp4"), "--weights", model, *FAST, "--max_frames"]
    assert upscale.main([*words, "1"]) == 0 and "o.mp4: 1 frame of 64x48" in capfd.readouterr().out


def test_outputs_of_a_folder_do_not_collide(tmp_path):
    for name in ("a.mp4", "a.avi", "b.avi"):
        (tmp_path / name).touch()
    found = upscale.find_jobs(tmp_path, Path("out"))
    assert [job.output.name for job in found] == ["a.avi.mp4", "a.mp4.mp4", "b.mp4"]
    with pytest.raises(ValueError, match="leave out the suffix"):
        upscale.find_jobs(tmp_path, Path("out.mp4"))
    (tmp_path / "a.avi.webm").touch()
    with pytest.raises(ValueError, match="several clips that would become a.avi.mp4, expected one; rename"):
        upscale.find_jobs(tmp_path, Path("out"))


def settings_after(model, *words):
    args = upscale.arguments(["-i", "x", "-o", "y", *words])
    return upscale_jobs.choose_settings(find_weights(model), args).method.params


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ddpm_steps", "7"], {"sampling.params.steps": 7}),
        (["--colorfix_type", "wavelet", "--dec_w", "0.25"], {"decoding.params.color_fix": "wavelet"}),
        (["--precision", "bf16"], {"precision": "bf16"}),
        (["--guidance", "released"], {"sampling.params.guidance": "released", "sampling.params.guidance_scale": None}),
        (["--guidance", "paper"], {"sampling.params.guidance_scale": 0.01}),
        (["--guidance", "none", f"{SCALE}=3"], {"sampling.params.guidance_scale": 3}),
        (["--n_frames", "7"], {"windows.params.n_frames": 7, "windows.params.frame_overlap": 2}),
        (["--n_frames", "2"], {"decoding.params.windows.params.n_frames": 2, "windows.params.n_frames": 2}),
        (["--tile_overlap", "0"], {"windows.params.tile_overlap": 0}),
        (["--vqgantile_size", "32"], {"decoding.params.windows.params.tile": 8}),
        (["--vqgantile_size", "40", "--vqgantile_stride", "24"], {"decoding.params.windows.params.tile_stride": 6}),
    ],
)
def test_flags_change_the_settings_they_name(model, words, expected):
    params = settings_after(model, *words)
    assert {key: find(params, key) for key in expected} == expected


def test_flags_change_the_released_patches(model):
    params = settings_after(model, "--vqgantile_size", "512", "--n_frames", "4", "--preset", "released")
    assert (params.patch, params.stride, params.n_frames) == (512, None, 4)
    assert params.decoding.params.windows.params.tile == 100000


def find(tree, key):
    for part in key.split("."):
        tree = tree[part]
    return tree


def test_overrides_after_weights_are_no_weights():
    args = upscale.arguments(["-i", "x", "--weights", "a", "b", "c.d=1", "-o", "y", "e=2"])
    assert args.weights == ["a", "b"] and sorted(args.overrides) == ["c.d=1", "e=2"]


def test_released_rounding_cuts_grey_levels_off():
    frame = torch.tensor([0.0, 0.9 / 255, 1.5 / 255, 1.0]).view(1, 1, 4).expand(3, 2, 4)
    assert ROUNDING["truncate"](frame)[0, :, 0].tolist() == [0, 0, 1, 255]


def test_a_clip_that_does_not_fit_is_refused(tmp_path, model, capfd):
    clip, output = toy.make_clip(tmp_path / "clip.mp4", 6), tmp_path / "out.mp4"
    assert upscale.main(["-i", str(clip), "-o", str(output), "--weights", model, *FAST, "--memory", "1M"]) == 2
    said = capfd.readouterr().err
    assert "got 0.0 GB of memory, expected" in said and said.count("\n") == 1
    assert toy.left_behind(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (torch.OutOfMemoryError("CUDA out of memory.\nMore words"), 2, "out of memory with the smallest tiles"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "out of memory with the smallest tiles",
        ),
        (FloatingPointError("the sample is not finite after step 3"), 2, "not finite after step 3"),
    ],
)
def test_nothing_is_left_of_a_run_that_stops(tmp_path, model, monkeypatch, capfd, error, status, line):
    def stop(lq):
        raise error

    toy.without_networks(monkeypatch, stop)
    clip = toy.make_clip(tmp_path / "clip.mp4", 2)
    assert upscale.main(["-i", str(clip), "-o", str(tmp_path / "new" / "o"), "--weights", model, *FAST]) == status
    said = capfd.readouterr().err.splitlines()
    assert line in said[-1] and all("going on" in other for other in said[:-1])
    assert toy.left_behind(tmp_path) == ["clip.mp4"]


def test_a_mistake_in_the_code_keeps_its_traceback(tmp_path, model, monkeypatch):
    toy.without_networks(monkeypatch, lambda lq: None)
    clip = toy.make_clip(tmp_path / "clip.mp4", 2)
    with pytest.raises(TypeError):
        upscale.main(["-i", str(clip), "-o", str(tmp_path / "o.mp4"), "--weights", model, *FAST])
    assert toy.left_behind(tmp_path) == ["clip.mp4"]


@pytest.mark.slow  # a process that loads torch
def test_it_runs_from_anywhere_as_a_script(tmp_path):
    script = Path(upscale.__file__).resolve()
    done = subprocess.run(
        [sys.executable, str(script), "-i", "missing.mp4", "-o", "o.mp4"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "upscale.py: missing.mp4: no such file or folder\n"


def test_the_embedded_model(tmp_path):
    missing = [name for name in ("mgldvsr_unet", "video_vae_cfw") if not (EMBEDDED / f"{name}.safetensors").is_file()]
    if missing:
        pytest.skip(f"{EMBEDDED.name} has no {missing[0]}.safetensors yet")
    clip = toy.make_clip(tmp_path / "clip.mp4", 2)
    assert upscale.main(["-i", str(clip), "-o", str(tmp_path / "o"), "--ddpm_steps", "1", "--device", "cpu"]) == 0
    made = video.read_clip(tmp_path / "o")
    assert made.shape == (2, 3, 96, 128) and made.std() > 0.05
