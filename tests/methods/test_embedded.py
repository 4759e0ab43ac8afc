"""The embedded model, if its weights exist: it loads, and guidance reduces the motion loss."""

from dataclasses import replace
from pathlib import Path

import pytest

from ldm import config, video
from ldm.diffusion.guidance import motion_loss
from ldm.engine.assemble import EMBEDDED, load_method, used_files
from ldm.methods.mgld.restoration import motion_between
from ldm.ops.resize import resize
from ldm.streaming.pipeline import stack
from scripts import upscale
from scripts.upscale_jobs import choose_settings, weights_of

pytestmark = pytest.mark.skipif(
    not (EMBEDDED / "mgldvsr_unet.safetensors").is_file(), reason=f"no embedded weights in {EMBEDDED.name}"
)
CLIP = Path(__file__).parents[2] / "assets" / "demo" / "clip.mp4"


@pytest.fixture(scope="module")
def method():
    """The teacher: the student samples in one step, without guidance."""
    return load_method(preset="teacher")


@pytest.fixture(scope="module")
def work():
    """Five frames of the moving demo clip, enlarged: (1, 5, 3, 256, 320) in [0, 1]."""
    lq = video.read_clip(CLIP, stop=5)[:, :, 10:74, 20:100]
    return resize(lq[None], (256, 320)).clamp(0, 1)


def final_loss(method, work, guidance: str) -> float:
    """The motion loss (form "paper") of latents sampled with a form of guidance; noise and flow are equal for all."""
    method = replace(method, sampling=replace(method.sampling, guidance=guidance, guidance_scale=None))
    frames = method.latents(work[0], seed=42)
    return motion_loss(stack(frames, "x"), motion_between(frames), form="paper").item()


@pytest.mark.slow
def test_paper_guidance_lowers_the_motion_loss(method, work, record_property):
    losses = {form: final_loss(method, work, form) for form in ("none", "released", "paper")}
    for form, loss in losses.items():
        record_property(form, loss)
    assert losses["paper"] < 0.95 * losses["none"], losses


def test_guidance_keeps_the_content(method, work):
    lq = resize(work, (64, 80), antialias=True)[0]
    sr = method.restore(lq[:2])
    back = resize(sr, (64, 80), antialias=True)
    assert tuple(sr.shape) == (2, 3, 256, 320)
    assert (back - lq[:2]).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ([], "student"),
        (["--ddpm_steps", "1"], "student"),
        (["--guidance", "none"], "student"),
        (["--preset", "teacher"], "teacher"),
        (["--ddpm_steps", "6"], "teacher"),
        (["--guidance", "paper"], "teacher"),
        (["--preset", "teacher", "--ddpm_steps", "1", "--guidance", "none"], "teacher"),
        (["--preset", "released"], "teacher"),
    ],
)
def test_settings_choose_between_the_student_and_its_teacher(words, model):
    args = upscale.arguments(words)
    weights = weights_of(args)
    settings = choose_settings(weights, args)
    used = {entry.name for entry in used_files(settings)}
    assert ("student_unet" in used) == (model == "student") and "mgldvsr_unet" in used
    sampling = config.instantiate(settings.method.params.sampling)
    steps = 1 if model == "student" or "1" in words else 6 if "6" in words else 4
    assert (sampling.steps, sampling.initial) == (steps, {"student": "lq", "teacher": "noised"}[model])
    guidance = "released" if "released" in words else "none" if model == "student" or "none" in words else "paper"
    assert sampling.guidance == guidance


def test_weights_are_small():
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) <= 25e6
