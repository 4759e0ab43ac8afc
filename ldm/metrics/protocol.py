"""Metrics by name, each with its protocol: `measures(["psnr:channels=y", "e_warp"])`.

A name is a key of `METRICS`, then a colon and its settings: `psnr:channels=y,crop=4`, `niqe:frames=0+50+99`.
docs/METRICS.md has definitions, sources and the values they were checked against.
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
from ldm.metrics.measure import Measure, Recipe, SharedFrame
from ldm.metrics.niqe import load_pristine, niqe
from ldm.metrics.own_warping import own_warping_error
from ldm.metrics.scored_frame import ScoredFrame, Unavailable
from ldm.metrics.sharpness import edge_sharpness
from ldm.metrics.stlpips import stlpips_score
from ldm.metrics.stlpips import version as stlpips_version
from ldm.metrics.temporal import e_warp, flow_change, flow_distance
from ldm.ops.dis import DISFlow

Flow = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """Files and estimators that metrics need.

    Args:
        flows: value of `flow=` -> description for the protocol, and optical flow estimator, such as
            {"raft": ("RAFT, 20 iterations", raft)}; "dis" is built in.
        niqe_params: .npz with the official statistics of NIQE.
        ffmpeg: executable with libvmaf.
        dover: checkout of DOVER's code with its weights.
        device: device of learned metrics.
    """

    flows: Mapping[str, tuple[str, Flow]] = field(default_factory=dict)
    niqe_params: Path | None = None
    ffmpeg: Path | None = None
    dover: Path | None = None
    device: str = "cpu"


class Settings:
    """Parser of the settings in the name of a metric. Raises ValueError for a repeated setting."""

    def __init__(self, name: str):
        self.name = name
        self.metric, _, rest = name.partition(":")
        pairs = [word.partition("=") for word in rest.split(",") if word]
        self._left = {key.strip(): value.strip() for key, _, value in pairs}
        if len(self._left) < len(pairs):
            raise ValueError(f"got {name!r}, expected every setting once")
        self._known: list[str] = []

    def text(self, key: str, default: str) -> str:
        """Return a setting as text."""
        self._known.append(key)
        return self._left.pop(key, default)

    def word(self, key: str, *choices: str) -> str:
        """Return one of `choices`, by default the first. Raises ValueError for any other word."""
        value = self.text(key, choices[0])
        if value not in choices:
            raise ValueError(f"got {self.name!r}, expected {key}= one of {', '.join(choices)}")
        return value

    def number(self, key: str, default: int) -> int:
        """Return a non-negative integer. Raises ValueError for any other text."""
        value = self.text(key, str(default))
        if not (value.isascii() and value.isdecimal()):
            raise ValueError(f"got {self.name!r}, expected {key}= a whole number")
        return int(value)

    def close(self) -> None:
        """Raise ValueError for unknown settings."""
        for key in self._left:
            raise ValueError(f"got setting {key!r} in {self.name!r}, expected one of {', '.join(self._known)}")


class Metric(NamedTuple):
    """A metric: "higher" or "lower" is better, whether it needs a ground truth, and the function that builds it."""

    better: str
    reference: bool
    recipe: Callable[[Settings, Options], Recipe]


def measures(names: Sequence[str], *, options: Options | None = None, count: int | None = None) -> list[Measure]:
    """Return measures for one clip, in the order of the names, which share the conversion of frames.

    Push every frame to each measure, then read `figures`. A metric that cannot be computed has the reason in
    `missing`.

    Args:
        names: metrics with settings, such as "psnr:channels=y".
        options: files and estimators of metrics.
        count: number of frames of the clip, needed for `frames=centre`.
    Raises:
        ValueError: an unknown name or setting, or statistics of NIQE other than the official ones.
    """
    made = [_measure(Settings(name), options or Options(), count) for name in names]
    shared = SharedFrame()
    for measure in made:
        measure.shared = shared
    return made


def _measure(settings: Settings, options: Options, count: int | None) -> Measure:
    if settings.metric not in METRICS:
        near = difflib.get_close_matches(settings.metric, METRICS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"got metric {settings.metric!r}, expected one of {', '.join(METRICS)}{hint}")
    metric = METRICS[settings.metric]
    chosen, about = _chosen(settings, count)
    missing = None
    try:
        recipe = metric.recipe(settings, options)
        recipe = recipe._replace(protocol=f"{recipe.protocol}, {about}")
    except Unavailable as error:
        recipe, missing = Recipe("", None), str(error)
    settings.close()
    measure = Measure(settings.name, recipe, better=metric.better, reference=metric.reference, missing=missing)
    measure.chosen = chosen
    return measure


def _chosen(settings: Settings, count: int | None) -> tuple[Callable[[int], bool], str]:
    """Return a predicate of scored frames and its description; see `frames=` in docs/METRICS.md."""
    word = settings.text("frames", "all")
    if word == "all":
        return lambda number: True, "all frames"
    if word == "centre":
        if count is None:
            raise ValueError(f"got {settings.name!r} for a clip of unknown length, expected its number of frames")
        return lambda number: number == count // 2, "centre frame"
    first = word.removeprefix("first")
    if first != word and first.isascii() and first.isdecimal() and int(first):
        return lambda number: number < int(first), f"first {int(first)} frames"
    parts = word.split("+")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"got {settings.name!r}, expected frames= all, centre, first25, or numbers as in 0+50+99")
    numbers = {int(part) for part in parts}
    return lambda number: number in numbers, f"frames {', '.join(parts)} as far as a clip has them"


# ---- metrics: each parses its settings before it checks that it can be computed


def _fidelity(settings: Settings, options: Options, *, compare: Callable, unit: str) -> Recipe:
    channels, crop = settings.word("channels", *CHANNELS), settings.number("crop", 0)

    def score(before: ScoredFrame | None, current: ScoredFrame) -> float:
        return compare(current.frame, current.truth, channels=channels, crop=crop)

    return Recipe(f"{unit}, {CHANNELS[channels]}, 8 bit, crop {crop}", score)


def _ssim(settings: Settings, options: Options) -> Recipe:
    windows = settings.word("windows", *WINDOWS)
    where = "windows inside the frame" if windows == "inside" else "reflected borders as torchmetrics"
    return _fidelity(settings, options, compare=partial(ssim, windows=windows), unit=f"Gaussian 11x11, {where}")


def _with_truth(protocol: str, score: Callable) -> Recipe:
    """Return a full-reference metric; `score` compares a frame with its ground truth, each (H, W, 3) uint8."""
    return Recipe(protocol, lambda before, now: score(now.frame, now.truth))


def _sharpness(settings: Settings, options: Options) -> Recipe:
    return _with_truth("gradient of Y on the strongest quarter of the truth's edges, 1 = the truth's", edge_sharpness)


def _e_warp(settings: Settings, options: Options) -> Recipe:
    name = settings.text("flow", "dis")
    flow, about = _estimator(name, options)

    def score(before: ScoredFrame, current: ScoredFrame) -> tuple[float, float]:
        motion = current.truth_motion(before, flow)
        return e_warp(before.frame, current.frame, motion), e_warp(before.truth, current.truth, motion)

    protocol = f"mean squared error (0..1) along the truth's flow to the frame before ({about}), consistent pixels"
    return Recipe(protocol, score, span="pair", series=("", "_truth"))


def _e_warp_quantvsr(settings: Settings, options: Options) -> Recipe:
    released, name = settings.word("input", "released", "corrected") == "released", settings.text("flow", "raft")
    flow, about = _estimator(name, options)

    def score(before: ScoredFrame, current: ScoredFrame) -> tuple[float, float]:
        pairs = [(before.frame, current.frame)] + ([(before.truth, current.truth)] if current.truth is not None else [])
        values = [own_warping_error(*pair, flow, released=released) for pair in pairs]
        return values[0], values[1] if len(values) == 2 else float("nan")

    dark = "input divided by 255 twice as released" if released else "input in its range"
    protocol = f"x1000, EvalCrafter as in QuantVSR: own flow ({about}, {dark}) at half size, non-occluded pixels"
    return Recipe(protocol, score, span="pair", series=("", "_truth"))


def _estimator(name: str, options: Options) -> tuple[Flow, str]:
    """Return an optical flow estimator and its description. Raises Unavailable if its weights are missing."""
    if name not in ("dis", *FLOW_FILES, *options.flows):
        raise ValueError(f"got flow={name}, expected dis, {' or '.join(FLOW_FILES)}")
    if name not in options.flows and name != "dis":
        file, flag = FLOW_FILES[name]
        raise Unavailable(f"needs {file}: {flag} FILE, or in the folder of --weights")
    about, flow = options.flows.get(name) or (f"DIS medium, OpenCV {cv2.__version__}", _DIS)
    return flow, about


_DIS = DISFlow("medium")
FLOW_FILES = {  # the file of an estimator, and the flag that names it
    "raft": ("raft-things.pth", "--raft"),
    "raft_large": ("raft_large_C_T_SKHT_V2-ff5fadd5.pth of torchvision", "--raft_large"),
}


def _tof(settings: Settings, options: Options) -> Recipe:
    def score(before: ScoredFrame, current: ScoredFrame) -> float:
        return flow_distance(current.frame_flow(before), current.truth_flow(before))

    protocol = f"pixels, mean end-point distance of Farneback flows (TecoGAN's settings, OpenCV {cv2.__version__})"
    return Recipe(protocol, score, span="pair")


def _tof_stablevsr(settings: Settings, options: Options) -> Recipe:
    flow, about = _estimator(settings.text("flow", "raft_large"), options)

    def score(before: ScoredFrame, current: ScoredFrame) -> float:
        return 10 * flow_change((before.frame, current.frame), (before.truth, current.truth), flow)

    protocol = f"x10, pixels, mean difference of flows to the frame before ({about}), as StableVSR"
    return Recipe(protocol, score, span="pair")


def _niqe(settings: Settings, options: Options) -> Recipe:
    channels, crop = settings.word("channels", "y", "gray"), settings.number("crop", 0)
    pristine = load_pristine(options.niqe_params)
    about = "Y (BT.601, 16-235)" if channels == "y" else "gray (full range)"

    def score(before: ScoredFrame | None, current: ScoredFrame) -> float:
        return niqe(current.frame, pristine, channels=channels, crop=crop)

    return Recipe(f"official statistics, blocks of 96, {about}, 8 bit, crop {crop}", score)


def _lpips(settings: Settings, options: Options) -> Recipe:
    about, score = _lpips_network(settings.word("net", *learned.NETS), options)
    return _with_truth(f"{about}, RGB, 8 bit", score)


def _lpips_network(net: str, options: Options) -> tuple[str, Callable]:
    """Description and score of LPIPS with a network. Raises Unavailable without its package."""
    return f"{net} v0.1 (lpips {learned.version_of('lpips')})", learned.lpips_score(net, options.device)


def _stlpips(settings: Settings, options: Options) -> Recipe:
    protocol = f"alex, shift-tolerant vST0.0 (weights of stlpips-pytorch {stlpips_version()}), RGB, 8 bit"
    return _with_truth(protocol, stlpips_score(options.device))


def _tlpips(settings: Settings, options: Options) -> Recipe:
    net = settings.word("net", *learned.NETS, "stlpips")
    if net == "stlpips":
        about, score = f"ST-LPIPS (stlpips-pytorch {stlpips_version()})", stlpips_score(options.device)
    else:
        about, score = _lpips_network(net, options)

    def change(before: ScoredFrame, current: ScoredFrame) -> float:
        return 1000 * abs(score(current.frame, before.frame) - score(current.truth, before.truth))

    return Recipe(f"x1000, |LPIPS between neighbours - the truth's|, {about}, RGB, 8 bit", change, span="pair")


def _dists(settings: Settings, options: Options) -> Recipe:
    version = learned.version_of("DISTS-pytorch")
    return _with_truth(f"DISTS-pytorch {version}, RGB, 8 bit", learned.dists_score(options.device))


def _pyiqa(settings: Settings, options: Options, *, name: str) -> Recipe:
    version, score = learned.version_of("pyiqa"), learned.pyiqa_score(name, options.device)
    return Recipe(f"pyiqa {version} {name}, its defaults, 8 bit", lambda before, now: score(now.frame))


def _brisque(settings: Settings, options: Options) -> Recipe:
    if settings.word("package", "pyiqa", "brisque") == "pyiqa":
        return _pyiqa(settings, options, name="brisque")
    version, score = learned.version_of("brisque"), learned.brisque_score()
    return Recipe(f"brisque {version}, the model in its wheel, gray, 8 bit", lambda before, now: score(now.frame))


def _vmaf(settings: Settings, options: Options) -> Recipe:
    model = settings.word("model", *video_quality.MODELS)
    ffmpeg, version = video_quality.find_ffmpeg(options.ffmpeg)
    vmaf = video_quality.Vmaf(ffmpeg, model)
    protocol = f"{video_quality.MODELS[model]} (libvmaf of ffmpeg {version}), yuv420p, mean over frames"
    return Recipe(protocol, vmaf.push, finish=vmaf.finish)


def _dover(settings: Settings, options: Options) -> Recipe:
    checkout, version = video_quality.find_dover(options.dover)
    dover = video_quality.Dover(checkout, options.device)
    program = f"{video_quality.DOVER_SCRIPT} of DOVER ({version})"
    protocol = f"fused score 0..1 by {program}, lossless RGB mp4 at {video_quality.RATE}/s"
    return Recipe(protocol, dover.push, finish=dover.finish)


METRICS: dict[str, Metric] = {
    "psnr": Metric("higher", True, partial(_fidelity, compare=psnr, unit="dB")),
    "ssim": Metric("higher", True, _ssim),
    "lpips": Metric("lower", True, _lpips),
    "stlpips": Metric("lower", True, _stlpips),
    "dists": Metric("lower", True, _dists),
    "vmaf": Metric("higher", True, _vmaf),
    "sharpness": Metric("higher", True, _sharpness),
    "e_warp": Metric("lower", True, _e_warp),
    "e_warp_quantvsr": Metric("lower", False, _e_warp_quantvsr),
    "tof": Metric("lower", True, _tof),
    "tof_stablevsr": Metric("lower", True, _tof_stablevsr),
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
