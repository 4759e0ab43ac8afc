"""A frame of a clip and its ground truth, with values that several metrics share."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import RESIZE, rgb8, same_size
from ldm.metrics.temporal import Backward, farneback_flow, motion_back


class Unavailable(RuntimeError):
    """A metric cannot be computed on this machine; tables show the message as "n/a (message)"."""


class ScoredFrame:
    """A restored frame and its ground truth, each (H, W, 3) uint8 RGB, with optical flow that several metrics use.

    `truth` may be None. Raises ValueError for sizes that differ.
    """

    def __init__(self, frame: Tensor | np.ndarray, truth: Tensor | np.ndarray | None = None):
        # Copies, because a caller may use one buffer for all frames.
        self.frame = rgb8(frame).copy()
        self.truth = None if truth is None else same_size(self.frame, truth, fix=RESIZE)[1].copy()
        self._from: tuple[ScoredFrame, dict] | None = None

    def truth_motion(self, before: "ScoredFrame", flow: Callable[[Tensor, Tensor], Tensor]) -> Backward:
        """Return the motion of the ground truth to the previous frame, estimated by `flow`; see `motion_back`."""
        return self._once(before, ("motion", id(flow)), lambda: motion_back(before.truth, self.truth, flow))

    def frame_flow(self, before: "ScoredFrame") -> np.ndarray:
        """Return the Farneback flow of the restored frames from the previous frame, (H, W, 2) in pixels."""
        return self._once(before, "frame flow", lambda: farneback_flow(before.frame, self.frame))

    def truth_flow(self, before: "ScoredFrame") -> np.ndarray:
        """Return the Farneback flow of the ground truth from the previous frame, (H, W, 2) in pixels."""
        return self._once(before, "truth flow", lambda: farneback_flow(before.truth, self.truth))

    def _once(self, before, key, compute):
        """Return the cached value for this previous frame, or `compute()`."""
        if self._from is None or self._from[0] is not before:
            self._from, before._from = (before, {}), None  # otherwise each frame would keep all earlier ones
        kept = self._from[1]
        if key not in kept:
            kept[key] = compute()
        return kept[key]
