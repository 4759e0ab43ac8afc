"""Measures by name, each with the protocol that belongs beside its number: `measures(["psnr:channels=y", "e_warp"])`.

A name is a word of `METRICS`, behind a colon its settings: `psnr:channels=y,crop=4`, `niqe:frames=0+50+99`.
docs/METRICS.md has the definitions, their sources, and what they were checked against.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
from torch import Tensor

from ldm.metrics import learned, video_quality
from ldm.metrics.fidelity import CHANNELS, WINDOWS, psnr, ssim
from ldm.metrics.look import Look, Unavailable
from ldm.metrics.measure import Measure, Recipe, SharedLook
from ldm.metrics.niqe import load_pristine, niqe
from ldm.metrics.own_warping import own_warping_error
from ldm.metrics.sharpness import edge_sharpness
from ldm.metrics.stablevsr import flow_change
from ldm.metrics.temporal import e_warp, flow_distance
from ldm.ops.dis import DISFlow

Flow = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """What measures need besides frames.

    `flows`: by the name that `flow=` says, how an estimator is called beside a number, and the estimator, e.g.
    {"raft": ("RAFT, 20 iterations", raft)}; "dis" is always there.
    `niqe_params`: the official .npz. `ffmpeg`: an executable with libvmaf. `dover`: a checkout of DOVER's code with
    its weights. `device`: where learned measures run.
    """

    flows: Mapping[str, tuple[str, Flow]] = field(default_factory=dict)
    niqe_params: Path | None = None
    ffmpeg: Path | None = None
    dover: Path | None = None
    device: str = "cpu"


class Words:
    """The settings behind a name, taken out one by one. Raises ValueError for one that is said twice."""

    def __init__(self, name: str):
        self.name = name
        self.metric, _, rest = name.partition(":")
        pairs = [word.partition("=") for word in rest.split(",") if word]
        self._left = {key.strip(): value.strip() for key, _, value in pairs}
        if len(self._left) < len(pairs):
            raise ValueError(f"got {name!r}, expected every setting once")
        self._known: list[str] = []

    def text(self, key: str, default: str) -> str:
        """Any word."""
        self._known.append(key)
        return self._left.pop(key, default)

    def word(self, key: str, *choices: str) -> str:
        """One of the choices, the first by default. Raises ValueError for another."""
        value = self.text(key, choices[0])
        if value not in choices:
            raise ValueError(f"got {self.name!r}, expected {key}= one of {', '.join(choices)}")
        return value

    def number(self, key: str, default: int) -> int:
        """A whole number, at least 0. Raises ValueError for anything else."""
        value = self.text(key, str(default))
        if not (value.isascii() and value.isdecimal()):
            raise ValueError(f"got {self.name!r}, expected {key}= a whole number")
        return int(value)

    def close(self) -> None:
        """Raises ValueError for settings that nobody took."""
        for key in self._left:
            raise ValueError(f"got setting {key!r} in {self.name!r}, expected one of {', '.join(self._known)}")


class Metric(NamedTuple):
    """A measure of the table: which direction is better, whether it needs a truth, and how its recipe is made."""

    better: str
    reference: bool
    recipe: Callable[[Words, Options], Recipe]


def measures(names: Sequence[str], *, options: Options | None = None, count: int | None = None) -> list[Measure]:
    """Fresh measures for one clip, in the order of the names; push every frame to each of them, then read figures.

    Those of one list share their work. `count`, the clip's number of frames, is needed for `frames=centre`. What cannot
    be had here comes as a measure with its reason in `missing`. Raises ValueError for unknown names or settings, and
    for a file of statistics that is not the official one.
    """
    made = [_measure(Words(name), options or Options(), count) for name in names]
    shared = SharedLook()
    for measure in made:
        measure.shared = shared
    return made


def _measure(words: Words, options: Options, count: int | None) -> Measure:
    if words.metric not in METRICS:
        near = difflib.get_close_matches(words.metric, METRICS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"got metric {words.metric!r}, expected one of {', '.join(METRICS)}{hint}")
    metric = METRICS[words.metric]
    chosen, said = _chosen(words, count)
    missing = None
    try:
        recipe = metric.recipe(words, options)
        recipe = recipe._replace(protocol=f"{recipe.protocol}, {said}")
    except Unavailable as error:
        recipe, missing = Recipe("", None), str(error)
    words.close()
    measure = Measure(words.name, recipe, better=metric.better, reference=metric.reference, missing=missing)
    measure.chosen = chosen
    return measure


def _chosen(words: Words, count: int | None) -> tuple[Callable[[int], bool], str]:
    """Which frames count, and how that is said: `all`, `centre`, `first25`, or numbers from 0 as in `0+50+99`."""
    word = words.text("frames", "all")
    if word == "all":
        return lambda number: True, "all frames"
    if word == "centre":
        if count is None:
            raise ValueError(f"got {words.name!r} for a clip of unknown length, expected its number of frames")
        return lambda number: number == count // 2, "centre frame"
    first = word.removeprefix("first")
    if first != word and first.isascii() and first.isdecimal() and int(first):
        return lambda number: number < int(first), f"first {int(first)} frames"
    parts = word.split("+")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"got {words.name!r}, expected frames= all, centre, first25, or numbers as in 0+50+99")
    numbers = {int(part) for part in parts}
    return lambda number: number in numbers, f"frames {', '.join(parts)} as far as a clip has them"


# ---- the measures: each takes its settings first, then looks whether it can be had


def _fidelity(words: Words, options: Options, *, compare: Callable, unit: str) -> Recipe:
    channels, crop = words.word("channels", *CHANNELS), words.number("crop", 0)

    def score(before: Look | None, look: Look) -> float:
        return compare(look.frame, look.truth, channels=channels, crop=crop)

    return Recipe(f"{unit}, {CHANNELS[channels]}, 8 bit, crop {crop}", score)


def _ssim(words: Words, options: Options) -> Recipe:
    windows = words.word("windows", *WINDOWS)
    unit = "Gaussian 11x11, " + ("whole windows" if windows == "inside" else "reflected borders as torchmetrics")
    return _fidelity(words, options, compare=partial(ssim, windows=windows), unit=unit)


def _sharpness(words: Words, options: Options) -> Recipe:
    protocol = "gradient of Y on the strongest quarter of the truth's edges, 1 = the truth's"
    return Recipe(protocol, lambda before, look: edge_sharpness(look.frame, look.truth))


def _e_warp(words: Words, options: Options) -> Recipe:
    name = words.text("flow", "dis")
    flow, said = _estimator(name, options)

    def score(before: Look, look: Look) -> tuple[float, float]:
        motion = look.truth_motion(before, flow)
        return e_warp(before.frame, look.frame, motion), e_warp(before.truth, look.truth, motion)

    protocol = f"mean squared error (0..1) along the truth's flow to the frame before ({said}), consistent pixels"
    return Recipe(protocol, score, span="pair", series=("", "_truth"))


def _e_warp_quantvsr(words: Words, options: Options) -> Recipe:
    released, name = words.word("input", "released", "corrected") == "released", words.text("flow", "raft")
    flow, said = _estimator(name, options)

    def score(before: Look, look: Look) -> tuple[float, float]:
        pairs = [(before.frame, look.frame)] + ([(before.truth, look.truth)] if look.truth is not None else [])
        values = [own_warping_error(*pair, flow, released=released) for pair in pairs]
        return values[0], values[1] if len(values) == 2 else float("nan")

    dark = "input divided by 255 twice as released" if released else "input in its range"
    protocol = f"x1000, EvalCrafter as in QuantVSR: own flow ({said}, {dark}) at half size, non-occluded pixels"
    return Recipe(protocol, score, span="pair", series=("", "_truth"))


def _estimator(name: str, options: Options) -> tuple[Flow, str]:
    """The flow of that name, and how it is called. Raises Unavailable for one that is not there."""
    if name not in ("dis", "raft", *options.flows):
        raise ValueError(f"got flow={name}, expected dis or raft")
    if name not in options.flows and name != "dis":
        raise Unavailable("needs raft-things.pth: --raft FILE, or in the folder of --weights")
    said, flow = options.flows.get(name) or (f"DIS medium, OpenCV {cv2.__version__}", _DIS)
    return flow, said


_DIS = DISFlow("medium")


def _tof(words: Words, options: Options) -> Recipe:
    if words.word("form", "tecogan", "stablevsr") == "stablevsr":
        return _tof_stablevsr(words, options)
    protocol = f"pixels, mean end-point distance of Farneback flows (TecoGAN's settings, OpenCV {cv2.__version__})"
    score = lambda before, look: flow_distance(look.frame_flow(before), look.truth_flow(before))  # noqa: E731
    return Recipe(protocol, score, span="pair")


def _tof_stablevsr(words: Words, options: Options) -> Recipe:
    flow, said = _estimator(words.text("flow", "raft"), options)

    def score(before: Look, look: Look) -> float:
        return 10 * flow_change((before.frame, look.frame), (before.truth, look.truth), flow)

    return Recipe(
        f"x10, pixels, mean difference of flows to the frame before ({said}), as StableVSR", score, span="pair"
    )


def _niqe(words: Words, options: Options) -> Recipe:
    channels, crop = words.word("channels", "y", "gray"), words.number("crop", 0)
    pristine = load_pristine(options.niqe_params)
    said = "Y (BT.601, 16-235)" if channels == "y" else "gray (full range)"

    def score(before: Look | None, look: Look) -> float:
        return niqe(look.frame, pristine, channels=channels, crop=crop)

    return Recipe(f"official statistics, blocks of 96, {said}, 8 bit, crop {crop}", score)


def _lpips(words: Words, options: Options) -> Recipe:
    net = words.word("net", *learned.NETS)
    version, score = learned.version_of("lpips"), learned.lpips_score(net, options.device)
    protocol = f"{net} v0.1 (lpips {version}), RGB, 8 bit"
    return Recipe(protocol, lambda before, look: score(look.frame, look.truth))


def _tlpips(words: Words, options: Options) -> Recipe:
    net = words.word("net", *learned.NETS)
    version, score = learned.version_of("lpips"), learned.lpips_score(net, options.device)

    def change(before: Look, look: Look) -> float:
        return 1000 * abs(score(look.frame, before.frame) - score(look.truth, before.truth))

    protocol = f"x1000, |LPIPS between neighbours - the truth's|, {net} v0.1 (lpips {version}), RGB, 8 bit"
    return Recipe(protocol, change, span="pair")


def _dists(words: Words, options: Options) -> Recipe:
    version, score = learned.version_of("DISTS-pytorch"), learned.dists_score(options.device)
    return Recipe(f"DISTS-pytorch {version}, RGB, 8 bit", lambda before, look: score(look.frame, look.truth))


def _pyiqa(words: Words, options: Options, *, name: str) -> Recipe:
    version, score = learned.version_of("pyiqa"), learned.pyiqa_score(name, options.device)
    return Recipe(f"pyiqa {version} {name}, its defaults, 8 bit", lambda before, look: score(look.frame))


def _brisque(words: Words, options: Options) -> Recipe:
    if words.word("package", "pyiqa", "brisque") == "pyiqa":
        return _pyiqa(words, options, name="brisque")
    version, score = learned.version_of("brisque"), learned.brisque_score()
    return Recipe(f"brisque {version}, the model in its wheel, gray, 8 bit", lambda before, look: score(look.frame))


def _vmaf(words: Words, options: Options) -> Recipe:
    model = words.word("model", *video_quality.MODELS)
    ffmpeg, version = video_quality.find_ffmpeg(options.ffmpeg)
    vmaf = video_quality.Vmaf(ffmpeg, model)
    protocol = f"{video_quality.MODELS[model]} (libvmaf of ffmpeg {version}), yuv420p, mean over frames"
    return Recipe(protocol, vmaf.push, finish=vmaf.finish)


def _dover(words: Words, options: Options) -> Recipe:
    checkout, version = video_quality.find_dover(options.dover)
    dover = video_quality.Dover(checkout, options.device)
    program = f"{video_quality.DOVER_SCRIPT} of DOVER ({version})"
    protocol = f"fused score 0..1 by {program}, lossless RGB mp4 at {video_quality.RATE}/s"
    return Recipe(protocol, dover.push, finish=dover.finish)


METRICS: dict[str, Metric] = {
    "psnr": Metric("higher", True, partial(_fidelity, compare=psnr, unit="dB")),
    "ssim": Metric("higher", True, _ssim),
    "lpips": Metric("lower", True, _lpips),
    "dists": Metric("lower", True, _dists),
    "vmaf": Metric("higher", True, _vmaf),
    "sharpness": Metric("higher", True, _sharpness),
    "e_warp": Metric("lower", True, _e_warp),
    "e_warp_quantvsr": Metric("lower", False, _e_warp_quantvsr),
    "tof": Metric("lower", True, _tof),
    "tlpips": Metric("lower", True, _tlpips),
    "niqe": Metric("lower", False, _niqe),
    "brisque": Metric("lower", False, _brisque),
    "musiq": Metric("higher", False, partial(_pyiqa, name="musiq")),
    "clipiqa": Metric("higher", False, partial(_pyiqa, name="clipiqa")),
    "maniqa": Metric("higher", False, partial(_pyiqa, name="maniqa")),
    "ilniqe": Metric("lower", False, partial(_pyiqa, name="ilniqe")),
    "nrqm": Metric("higher", False, partial(_pyiqa, name="nrqm")),
    "dover": Metric("higher", False, _dover),
}
