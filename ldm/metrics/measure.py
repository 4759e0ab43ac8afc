"""One metric over one clip, computed frame by frame; `figures` gives the result at the end."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import same_size
from ldm.metrics.look import Look, Unavailable


class Recipe(NamedTuple):
    """How a metric is computed.

    `protocol` describes it. `score(before, look)` gives the value of a frame, or one value for each suffix of `series`,
    or None where it is known only at the end; then `finish()` gives the clip's figures and the values of the scored
    frames (or None). `before` is the previous frame; with `span` "pair" it is never None.
    """

    protocol: str
    score: Callable
    span: str = "frame"
    series: Sequence[str] = ("",)
    finish: Callable | None = None


class Measure:
    """A metric that takes one frame at a time and holds two, whatever the clip's length.

    `name` with its settings; `protocol` in one line; `better` "higher" or "lower"; `reference`: whether it needs a
    truth; `missing`: None, or why there is no figure, and then `push` does nothing.
    """

    def __init__(self, name: str, recipe: Recipe, *, better: str, reference: bool, missing: str | None = None):
        self.name, self.protocol, self.better, self.reference = name, recipe.protocol, better, reference
        self.missing = missing
        self.chosen: Callable[[int], bool] = lambda number: True
        self.shared = SharedLook()
        self._recipe = recipe
        self._before: Look | None = None
        self._values: list[tuple[float, ...]] = []
        self._scored: list[int] = []
        self._of_clip: list[float] | None = None

    def push(self, frame: Tensor | np.ndarray, truth: Tensor | np.ndarray | None = None) -> None:
        """Add the next frame, (H, W, 3) uint8 RGB or (3, H, W) in [0, 1], and the truth's.

        Without a truth a metric that needs one becomes `missing`. Raises ValueError for sizes that differ, and for
        frames after the end.
        """
        if self.missing is None and self.reference and truth is None:
            self.missing = "there is no truth to compare with"
        if self.missing is not None:
            return
        if self._of_clip is not None:
            raise ValueError(f"got a frame for {self.name} after its figures were read, expected a new measure")
        number = len(self._values)
        look, before = self.shared.look(number, frame, truth), self._before
        if before is not None:
            same_size(before.frame, look.frame, what="neighbouring frames")
        self._before = look
        self._values.append((math.nan,) * len(self._recipe.series))
        wanted = self.chosen(number)
        if self._recipe.span == "pair":
            wanted = wanted and before is not None and self.chosen(number - 1)
        if wanted:
            self._score(number, before, look)

    def figures(self) -> dict[str, float]:
        """The clip's figures: the metric under `name`, the truth's own value, if any, under `name` + "_truth".

        A mean over frames or over pairs of neighbours without NaN values; NaN where all are.
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
        """A value for each frame; NaN for frames that do not count and the first frame of pairs."""
        self._end()
        return [values[0] for values in self._values]

    def _score(self, number: int, before: Look | None, look: Look) -> None:
        try:
            values = self._recipe.score(before, look)
        except Unavailable as error:
            self.missing = str(error)
            return
        self._scored.append(number)
        if values is not None:
            self._values[number] = values if isinstance(values, tuple) else (values,)

    def _end(self) -> None:
        """Compute once what is known only at the end."""
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


class SharedLook:
    """The newest frame of several metrics, prepared once for all of them."""

    def __init__(self):
        self._newest = None

    def look(self, number: int, frame, truth) -> Look:
        """The `Look` of these frames, whichever metric asks first."""
        known = self._newest
        if known is None or known[0] != number or known[1] is not frame or known[2] is not truth:
            self._newest = known = number, frame, truth, Look(frame, truth)
        return known[3]


def _mean(values) -> float:
    """The mean of the values that are not NaN; NaN where there are none."""
    counted = [value for value in values if not math.isnan(value)]
    return sum(counted) / len(counted) if counted else math.nan
