"""A metric of one clip, accumulated frame by frame."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import same_size
from ldm.metrics.scored_frame import ScoredFrame, Unavailable


class Recipe(NamedTuple):
    """How a metric is computed.

    Args:
        protocol: description for tables.
        score: called as `score(before, current)` with the previous `ScoredFrame` (None for the first frame) and the
            current one; returns a value, a tuple with one value per suffix of `series`, or None if `finish` computes
            the values.
        span: "frame", or "pair" for metrics that need a previous frame.
        series: suffixes of the names of the values.
        finish: called after the last frame; returns the values of the clip, and those of the scored frames or None.
    """

    protocol: str
    score: Callable
    span: str = "frame"
    series: Sequence[str] = ("",)
    finish: Callable | None = None


class Measure:
    """Accumulates a metric over the frames of a clip; only two frames are held in memory.

    Args:
        name: name with settings, such as "psnr:channels=y".
        recipe: computation and description.
        better: "higher" or "lower".
        reference: whether a ground truth is needed.
        missing: the reason why the metric cannot be computed, or None. If it is not None, `push` has no effect.
    """

    def __init__(self, name: str, recipe: Recipe, *, better: str, reference: bool, missing: str | None = None):
        self.name, self.protocol, self.better, self.reference = name, recipe.protocol, better, reference
        self.missing = missing
        self.chosen: Callable[[int], bool] = lambda number: True
        self.shared = SharedFrame()
        self._recipe = recipe
        self._before: ScoredFrame | None = None
        self._values: list[tuple[float, ...]] = []
        self._scored: list[int] = []
        self._of_clip: list[float] | None = None

    def push(self, frame: Tensor | np.ndarray, truth: Tensor | np.ndarray | None = None) -> None:
        """Add the next frame, (H, W, 3) uint8 RGB or (3, H, W) in [0, 1], and its ground truth.

        If a metric that needs a ground truth gets none, `missing` is set. Raises ValueError for sizes that differ, and
        for frames after `figures` or `per_frame`.
        """
        if self.missing is None and self.reference and truth is None:
            self.missing = "there is no truth to compare with"
        if self.missing is not None:
            return
        if self._of_clip is not None:
            raise ValueError(f"got a frame for {self.name} after its figures were read, expected a new measure")
        number = len(self._values)
        current, before = self.shared.scored(number, frame, truth), self._before
        if before is not None:
            same_size(before.frame, current.frame, what="neighbouring frames")
        self._before = current
        self._values.append((math.nan,) * len(self._recipe.series))
        wanted = self.chosen(number)
        if self._recipe.span == "pair":
            wanted = wanted and before is not None and self.chosen(number - 1)
        if wanted:
            self._score(number, before, current)

    def figures(self) -> dict[str, float]:
        """Return the values of the clip: `name`, and `name` + "_truth" for the ground truth itself, if it has one.

        They are means over frames, or over pairs of neighbouring frames, without NaNs; NaN if all values are NaN.
        """
        self._end()
        if self.missing is not None:
            means = [math.nan] * len(self._recipe.series)
        elif self._recipe.finish:
            means = self._of_clip
        else:
            columns = zip(*self._values, strict=True) if self._values else [()] * len(self._recipe.series)
            means = [_mean(column) for column in columns]
        return {f"{self.name}{ending}": value for ending, value in zip(self._recipe.series, means, strict=True)}

    def per_frame(self) -> list[float]:
        """Return a value per frame; NaN for frames that are not scored and for the first frame of a pair metric."""
        self._end()
        return [values[0] for values in self._values]

    def _score(self, number: int, before: ScoredFrame | None, current: ScoredFrame) -> None:
        try:
            values = self._recipe.score(before, current)
        except Unavailable as error:
            self.missing = str(error)
            return
        self._scored.append(number)
        if values is not None:
            self._values[number] = values if isinstance(values, tuple) else (values,)

    def _end(self) -> None:
        """Call `finish` of the recipe once."""
        if self._recipe.finish is None or self.missing is not None or self._of_clip is not None:
            return
        try:
            self._of_clip, values = self._recipe.finish()
        except Unavailable as error:
            self.missing = str(error)
            return
        if values and len(values) != len(self._scored):
            self.missing = f"{len(values)} values came back for {len(self._scored)} frames"
            return
        for number, value in zip(self._scored if values else (), values or (), strict=True):
            self._values[number] = (value,)


class SharedFrame:
    """Converts each frame once for several metrics; the latest one is cached."""

    def __init__(self):
        self._newest = None

    def scored(self, number: int, frame, truth) -> ScoredFrame:
        """Return the `ScoredFrame` of frame `number` and its ground truth."""
        known = self._newest
        if known is None or known[0] != number or known[1] is not frame or known[2] is not truth:
            self._newest = known = number, frame, truth, ScoredFrame(frame, truth)
        return known[3]


def _mean(values) -> float:
    """Return the mean of the values that are not NaN, or NaN if there are none."""
    counted = [value for value in values if not math.isnan(value)]
    return sum(counted) / len(counted) if counted else math.nan
