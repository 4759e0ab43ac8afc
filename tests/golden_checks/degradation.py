"""Degradation ops against the recordings (cases i_*, h_usm).

The recorded draws came from numpy's and Python's legacy generators, whose streams are frozen; an adapter gives them the
methods that the ops call. Recorded pictures are BGR; where the order of channels matters it is exchanged here.
"""

import random
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from basicsr_deg import kernels
from basicsr_deg.codec import VideoCodec
from basicsr_deg.compression import jpeg
from basicsr_deg.resize import resized
from basicsr_deg.sharpen import unsharp_mask
from ldm import config
from tests.golden_checks.case import Case, assert_near

CONFIG = Path(__file__).parents[2] / "configs" / "degradations" / "realbasicvsr_released.yaml"
DRAWN = 1e-8  # tolerance of draws, which are recorded with nine digits
GREY_LEVEL = 1.0  # tolerance of uint8 pixels


class LegacyStreams:
    """Draws after `numpy.random.seed(s); random.seed(s)`; `drawn` lists the uniform numbers in order."""

    def __init__(self, seed: int):
        self.numpy, self.python, self.drawn = np.random.RandomState(seed), random.Random(seed), []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        self.drawn.append(self.numpy.uniform(low, high))
        return self.drawn[-1]

    def random(self) -> float:
        return self.numpy.random_sample()

    def choice(self, options):
        return self.python.choice(options)

    def standard_normal(self, size, dtype=np.float64):
        return self.numpy.standard_normal(size).astype(dtype)

    def poisson(self, lam):
        return self.numpy.poisson(lam)


def near(actual: np.ndarray, case: Case, name: str, *, limit: float) -> None:
    assert_near(torch.from_numpy(np.array(actual)), case[name], limit=limit, what=f"{case.name} {name}")


def blur_kernels(case: Case) -> None:
    for k, row in enumerate(case.meta["kernels"]):
        family, size = row["type"], row["size"]
        if family == "sinc":
            kernel = kernels.sinc(size, row["omega"])
        else:
            turned = {} if row["iso"] else {"sigma_y": row["sig_y"], "angle": row["theta"]}
            q = kernels.distance(size, row["sig_x"], **turned)
            made = {"gaussian": kernels.gaussian, "generalized": kernels.generalized_gaussian}
            made = made.get(family, kernels.plateau)
            kernel = made(q) if family == "gaussian" else made(q, row["beta"])
        near(padded(kernel, row.get("pad_to", size)), case, f"out.{k}", limit=1e-7)


def padded(kernel: np.ndarray, size: int) -> np.ndarray:
    return np.pad(kernel, (size - len(kernel)) // 2)


def single_ops(case: Case) -> None:
    image, kernel = case.tensors["img"].numpy(), case.tensors["kernel"].numpy()
    for name in case.tensors:
        kind, _, rest = name.removeprefix("out.").partition("_")
        if kind == "filter":
            near(filtered(image.astype(rest), kernel), case, name, limit=GREY_LEVEL if rest == "uint8" else 1e-3)
        elif kind == "resize":
            interpolation, size = rest.split("_")
            size = tuple(int(side) for side in size.split("x"))
            near(resized(image, size, interpolation), case, name, limit=1e-3)
        elif kind == "jpeg":
            assert_alike(jpeg(image[..., ::-1], int(rest))[..., ::-1], case, name)
        elif kind == "clip":
            near(clip_rescaled(image), case, name, limit=1e-6)
    for row in case.meta["rows"]:
        if row["op"] == "mpeg":
            video_codec(case, row)


def filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The released blur with its kernels replaced by a given one."""
    blur = released_stages()["blur_1"]
    blur.kernels = lambda rng, notes: iter([kernel])
    return next(blur([image], None))


def clip_rescaled(image: np.ndarray) -> np.ndarray:
    """Pass 1.3 image - 30 (float) through a degradation that only clips and divides."""
    degradation = config.instantiate(config.load(CONFIG).degradation)
    degradation.stages = {}
    frames = [1.3 * image.astype(np.float32) - 30]
    return next(degradation.stream(frames, np.random.default_rng(0), size=image.shape[:2], trace=None))


def assert_alike(actual: np.ndarray, case: Case, name: str) -> None:
    """Compare with a wide tolerance, since builds of the codec library differ."""
    difference = np.abs(actual.astype(float) - case.tensors[name].numpy())
    assert difference.mean() < 1, f"{case.name} {name}: mean difference {difference.mean():.2f} grey levels"


def video_codec(case: Case, row: dict) -> None:
    clip = case.tensors["mpeg_in"].numpy()[: row["frames"]]
    codec = VideoCodec({row["codec"]: 1.0}, [row["bit_rate"]] * 2, channels="rgb")  # recorded as BGR
    out = np.stack(list(codec.coded(clip, row["codec"], row["bit_rate"])))
    change = np.abs(out - clip).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(change, row["mean_abs_change"], rtol=0.05, err_msg=f"{case.name} {row}")


def released_stages() -> dict:
    return config.instantiate(config.load(CONFIG).degradation.params.stages)


def walks(case: Case) -> None:
    replay = {"RandomBlur": kernel_walk, "blur_final": kernel_walk, "RandomResize": size_walk}
    replay |= {"RandomNoise": noise_walk, "RandomJPEGCompression": quality_walk}
    stages, clip = released_stages(), case.tensors["clip"].numpy()
    for row in case.meta["rows"]:
        kind, _, method = row["op"].partition(".")
        where, _, seed = row["key"].rpartition(".s")
        names = {
            "RandomBlur": "blur",
            "RandomResize": "resize",
            "RandomNoise": "noise",
            "RandomJPEGCompression": "jpeg",
        }
        stage = stages["sinc" if where == "final" else f"{names[kind]}_{where[-1]}"]
        replay[kind](case, row, stage, clip, LegacyStreams(int(seed)))


def kernel_walk(case: Case, row: dict, blur, clip: np.ndarray, rng: LegacyStreams) -> None:
    """Compare the family, the size and the kernel of every frame."""
    notes, recorded = {}, case[f"out.{row['key']}.kernels"]
    made = list(islice(blur.kernels(rng, notes=notes), len(recorded)))
    assert notes["size"] == row["kernel_size"], f"{case.name} {row['key']}"
    assert notes["family"] == row.get("kernel_type", "sinc"), f"{case.name} {row['key']}"
    near([padded(kernel, recorded.shape[-1]) for kernel in made], case, f"out.{row['key']}.kernels", limit=1e-7)


def size_walk(case: Case, row: dict, resize, clip: np.ndarray, rng: LegacyStreams) -> None:
    out = list(resize(clip, rng))
    assert [list(frame.shape[:2]) for frame in out] == row["sizes"], f"{case.name} {row['key']}"
    if (name := f"out.{row['key']}.resized_last") in case.tensors:
        near(out[-1], case, name, limit=1e-3)
    assert_draws(row, rng)


def noise_walk(case: Case, row: dict, noise, clip: np.ndarray, rng: LegacyStreams) -> None:
    kind = "gaussian" if "gaussian" in row["op"] else "poisson"
    out = list(getattr(noise, kind)(clip, rng))
    if (name := f"out.{row['key']}.{kind.replace('ian', '')}_01") in case.tensors:
        near(out[: len(case[name])], case, name, limit=1e-3)
    assert_draws(row, rng)


def quality_walk(case: Case, row: dict, compression, clip: np.ndarray, rng: LegacyStreams) -> None:
    out = [frame[..., ::-1] for frame in compression(clip[..., ::-1], rng)]
    if (name := f"out.{row['key']}.jpeg_01") in case.tensors:
        assert_alike(np.stack(out[: len(case[name])]), case, name)
    assert_draws(row, rng)


def assert_draws(row: dict, rng: LegacyStreams) -> None:
    recorded = [value for name, value in row["draws"] if name == "np.uniform"]
    np.testing.assert_allclose(rng.drawn, recorded, rtol=DRAWN, atol=DRAWN, err_msg=f"{row['key']} {row['op']}")


def sharpening(case: Case) -> None:
    """Compare both recorded forms: grey levels 0..255, and 0..1 (n, 3, h, w)."""
    for k, row in enumerate(case.meta["rows"]):
        image = case.tensors[f"img.{k}"].numpy()
        sharp = unsharp_mask(image, **row["args"])
        near(sharp, case, f"out.usm.{k}", limit=1e-3)
        if f"out.usm_torch.{k}" in case.tensors:
            near(sharp.transpose(2, 0, 1)[None] / 255, case, f"out.usm_torch.{k}", limit=1e-5)


CHECKS = {"i_kernels": blur_kernels, "i_ops": single_ops, "i_walk": walks, "h_usm": sharpening}
