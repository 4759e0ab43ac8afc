"""One frame of a clip and its truth, with what several metrics need of them, computed once."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import RESIZE, rgb8, same_size
from ldm.metrics.temporal import Backward, farneback_flow, motion_back


class Unavailable(RuntimeError):
    """A metric that cannot be computed here; the message is the reason that tables show as "n/a (reason)"."""


class Look:
    """A frame of an output and the truth's, (H, W, 3) uint8 RGB each, with values that several metrics share.

    `truth` is None where there is none. Raises ValueError for sizes that differ.
    """

    def __init__(self, frame: Tensor | np.ndarray, truth: Tensor | np.ndarray | None = None):
        # Copies, because a caller may use one buffer for all frames.
        self.frame = rgb8(frame).copy()
        self.truth = None if truth is None else same_size(self.frame, truth, fix=RESIZE)[1].copy()
        self._from: tuple[Look, dict] | None = None

    def truth_motion(self, before: "Look", flow: Callable[[Tensor, Tensor], Tensor]) -> Backward:
        """The truth's motion to the previous frame, by an estimator."""
        return self._once(before, ("motion", id(flow)), lambda: motion_back(before.truth, self.truth, flow))

    def frame_flow(self, before: "Look") -> np.ndarray:
        """Farneback's flow of the output from the previous frame."""
        return self._once(before, "frame flow", lambda: farneback_flow(before.frame, self.frame))

    def truth_flow(self, before: "Look") -> np.ndarray:
        """Farneback's flow of the truth from the previous frame."""
        return self._once(before, "truth flow", lambda: farneback_flow(before.truth, self.truth))

    def _once(self, before, key, compute):
        """The cached value for the same previous frame, or `compute()`."""
        if self._from is None or self._from[0] is not before:
            self._from, before._from = (before, {}), None  # without the None each frame would hold all before it
        kept = self._from[1]
        if key not in kept:
            kept[key] = compute()
        return kept[key]
