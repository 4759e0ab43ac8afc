"""Measures by name, each with the protocol that belongs beside its number: `measures(["psnr:channels=y", "e_warp"])`.

A name is a word of `METRICS`, behind a colon its settings: `psnr:channels=y,crop=4`, `niqe:frames=0+50+99`.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import psnr, ssim
from ldm.metrics.look import Look, Unavailable
from ldm.metrics.sharpness import edge_sharpness
from ldm.metrics.temporal import e_warp, flow_distance
from ldm.ops.dis import DISFlow

Flow = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """What measures need besides frames.

    `flows`: estimators by the name that `flow=` says, e.g. {"raft": RAFT}; "dis" is always there. `niqe_params`: the
    official .npz. `ffmpeg`: an executable with libvmaf. `device`: where learned measures run.
    """

    flows: Mapping[str, Flow] = field(default_factory=dict)
    niqe_params: Path | None = None
    ffmpeg: Path | None = None
    device: str = "cpu"


class Measure:
    """One measure over one clip, fed frame by frame; holds two moments, whatever the clip's length.

    `name` as asked for; `protocol` one line for people; `better` "higher" or "lower"; `reference`: whether it compares
    with a truth; `missing`: None, or why there is no figure ("n/a (reason)"), and then `push` does nothing.
    """

    def __init__(
        self, name: str, *, protocol: str, better: str, score: Callable | None, span: str = "frame",
        reference: bool = True, series: Sequence[str] = ("",), finish: Callable | None = None,
    ):  # fmt: skip
        self.name, self.protocol, self.better, self.reference = name, protocol, better, reference
        self.missing: str | None = None
        self.chosen: Callable[[int], bool] = lambda number: True
        self._score, self._finish, self._span, self._series = score, finish, span, series
        self._shared = _Shared()
        self._before: Look | None = None
        self._values: list[tuple[float, ...]] = []

    def push(self, frame: Tensor | np.ndarray, truth: Tensor | np.ndarray | None = None) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB or (3, H, W) in [0, 1], and the truth's.

        Without a truth a measure that needs one becomes `missing`. Raises ValueError for sizes that differ.
        """
        if self.missing:
            return
        number, nothing = len(self._values), (math.nan,) * len(self._series)
        if self.reference and truth is None:
            self.missing = "there is no truth to compare with"
            return
        look = self._shared.look(number, frame, truth)
        before, self._before = self._before, look
        if before is not None and before.frame.shape != look.frame.shape:
            sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (before.frame, look.frame))
            raise ValueError(f"got neighbouring frames of {sizes}, expected one size")
        wanted = self.chosen(number) and (self._span != "pair" or (before is not None and self.chosen(number - 1)))
        try:
            values = self._score(before, look) if wanted else None
        except Unavailable as error:
            self.missing, values = str(error), None
        self._values.append(nothing if values is None else tuple(np.atleast_1d(values).tolist()))

    def figures(self) -> dict[str, float]:
        """The clip's figures: under `name` the measure itself, under `name` + "_truth" the truth's own if it has one.

        A mean over frames or over pairs of neighbours; values that say nothing (NaN) do not count, NaN where none does.
        """
        means = self._of_clip() if self._finish else None
        if means is None:
            columns = zip(*self._values, strict=True) if self._values else [()] * len(self._series)
            means = [_mean(column) for column in columns]
        return {f"{self.name}{ending}": value for ending, value in zip(self._series, means, strict=True)}

    def per_frame(self) -> list[float]:
        """A value for each frame pushed; NaN where there is none: frames not chosen, the first of pairs."""
        if self._finish:
            self._of_clip()
        return [values[0] for values in self._values]

    def _of_clip(self) -> list[float] | None:
        """The figure of a measure that is known only at the end; its values per frame go to their place."""
        if self.missing:
            return [math.nan] * len(self._series)
        try:
            means, values = self._finish()
        except Unavailable as error:
            self.missing = str(error)
            return self._of_clip()
        if values is not None:
            self._values = [(value,) for value in values]
        return means


class _Shared:
    """The newest moment of the measures that are fed together."""

    def __init__(self):
        self._newest = None

    def look(self, number, frame, truth) -> Look:
        """The moment of these very frames, whichever measure asks."""
        known = self._newest
        if known is None or known[0] != number or known[1] is not frame or known[2] is not truth:
            self._newest = known = number, frame, truth, Look(frame, truth)
        return known[3]


class Words:
    """The settings behind a name, taken out one by one."""

    def __init__(self, name: str):
        self.name = name
        self.metric, _, rest = name.partition(":")
        pairs = [word.partition("=") for word in rest.split(",") if word]
        self._left = {key.strip(): value.strip() for key, _, value in pairs}
        self._known: list[str] = []

    def word(self, key: str, *choices: str) -> str:
        """One of the choices, the first by default. Raises ValueError for another."""
        self._known.append(key)
        value = self._left.pop(key, choices[0])
        if value not in choices:
            raise ValueError(f"got {self.name!r}, expected {key}= one of {', '.join(choices)}")
        return value

    def number(self, key: str, default: int) -> int:
        """A whole number, at least 0. Raises ValueError for anything else."""
        self._known.append(key)
        value = self._left.pop(key, str(default))
        if not value.isdecimal():
            raise ValueError(f"got {self.name!r}, expected {key}= a whole number")
        return int(value)

    def text(self, key: str, default: str) -> str:
        """Any word."""
        self._known.append(key)
        return self._left.pop(key, default)

    def close(self) -> None:
        """Raises ValueError for settings that nobody took."""
        for key in self._left:
            known = f"one of {', '.join(self._known)}" if self._known else "no settings"
            raise ValueError(f"got setting {key!r} in {self.name!r}, expected {known}")


def measures(names: Sequence[str], *, options: Options | None = None, count: int | None = None) -> list[Measure]:
    """Fresh measures for one clip, in the order of the names; push every frame to each of them, then read figures.

    `count`, the clip's number of frames, is needed for `frames=centre`. What cannot be had here comes as a measure
    with its reason in `missing`. Raises ValueError for unknown names or settings.
    """
    options, shared = options or Options(), _Shared()
    made = []
    for name in names:
        words = Words(name)
        if words.metric not in METRICS:
            near = difflib.get_close_matches(words.metric, METRICS, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"got metric {words.metric!r}, expected one of {', '.join(METRICS)}{hint}")
        chosen, said = _chosen(words, count)
        measure = METRICS[words.metric](words, options)
        words.close()
        measure.chosen, measure._shared = chosen, shared
        measure.protocol = f"{measure.protocol}, {said}"
        made.append(measure)
    return made


def _chosen(words: Words, count: int | None) -> tuple[Callable[[int], bool], str]:
    """Which frames count, and how that is said: `all`, `centre`, `first25` or numbers from 0 as in `0+50+99`."""
    word = words.text("frames", "all")
    if word == "all":
        return lambda number: True, "all frames"
    if word == "centre":
        return lambda number: count is not None and number == count // 2, "centre frame"
    first = word.removeprefix("first")
    if first != word and first.isdecimal() and int(first):
        return lambda number: number < int(first), f"first {int(first)} frames"
    parts = word.split("+")
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"got {words.name!r}, expected frames= all, centre, first25 or numbers as in 0+50+99")
    numbers = {int(part) for part in parts}
    return lambda number: number in numbers, f"frames {', '.join(parts)}"


def _mean(values) -> float:
    """The mean of the values that are not NaN; NaN where there are none."""
    counted = [value for value in values if not math.isnan(value)]
    return math.fsum(counted) / len(counted) if counted and all(map(math.isfinite, counted)) else _loose_mean(counted)


def _loose_mean(counted) -> float:
    return float(np.mean(counted)) if counted else math.nan


# ---- the measures


def _fidelity(compare, unit: str):
    def make(words: Words, options: Options) -> Measure:
        channels, crop = words.word("channels", "rgb", "y"), words.number("crop", 0)
        said = "RGB" if channels == "rgb" else "Y (BT.601, 16-235, float)"
        return Measure(
            words.name, protocol=f"{unit}, {said}, 8 bit, crop {crop}", better="higher",
            score=lambda before, look: compare(look.frame, look.truth, channels=channels, crop=crop),
        )  # fmt: skip

    return make


def _sharpness(words: Words, options: Options) -> Measure:
    return Measure(
        words.name, protocol="gradient of Y on the truth's strongest quarter of edges, 1 = the truth's",
        better="higher", score=lambda before, look: edge_sharpness(look.frame, look.truth),
    )  # fmt: skip


def _estimator(words: Words, options: Options) -> tuple[Flow, str]:
    """The flow that `flow=` names, and how it is called. Raises ValueError for a name that is not there."""
    flows = {"dis": DISFlow("medium"), **options.flows}
    name = words.word("flow", *flows)
    return flows[name], f"DIS medium (OpenCV {cv2.__version__})" if name == "dis" else name


def _e_warp(words: Words, options: Options) -> Measure:
    flow, said = _estimator(words, options)

    def score(before: Look, look: Look):
        motion = look.truth_motion(before, flow)
        return e_warp(before.frame, look.frame, motion), e_warp(before.truth, look.truth, motion)

    protocol = f"mean squared error 0..1 along the truth's flow t -> t-1 ({said}), consistent pixels, mean over pairs"
    return Measure(
        words.name, protocol=protocol, better="lower", score=score, span="pair", series=("", "_truth")
    )  # fmt: skip


def _tof(words: Words, options: Options) -> Measure:
    protocol = f"end-point distance of Farneback flows (TecoGAN's settings, OpenCV {cv2.__version__}), pixels, pairs"
    return Measure(
        words.name, protocol=protocol, better="lower", span="pair",
        score=lambda before, look: flow_distance(look.frame_flow(before), look.truth_flow(before)),
    )  # fmt: skip


METRICS: dict[str, Callable[[Words, Options], Measure]] = {
    "psnr": _fidelity(psnr, "dB"),
    "ssim": _fidelity(ssim, "Gauss 11x11, valid windows"),
    "sharpness": _sharpness,
    "e_warp": _e_warp,
    "tof": _tof,
}
