"""All measures of a clip in one pass: frames of the output and of the truth go in as they come."""

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import psnr, rgb8, ssim
from ldm.metrics.sharpness import edge_sharpness
from ldm.metrics.temporal import e_warp, farneback_flow, flow_distance, motion_back


class Judge:
    """Compares one output with its truth; holds two frames of each, whatever the clip's length.

    `flow(img1, img2)` estimates the truth's motion for the warping error (`ldm.metrics.temporal.motion_back`). In the
    figures "psnr" (dB, RGB), "ssim" (RGB) and "sharpness" are means over frames; "e_warp", beside it the truth's own
    "e_warp_truth", and "tof" (pixels) are means over pairs of neighbours. Pairs and frames for which a measure says
    nothing (NaN) do not count; where none counts, the figure is NaN.
    """

    def __init__(self, flow: Callable[[Tensor, Tensor], Tensor]):
        self.flow = flow
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def push(self, frame: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> None:
        """Take the next frame of both. Raises ValueError for frames that differ in size, from each other or in time."""
        frame, truth = rgb8(frame), rgb8(truth)
        values = {"psnr": psnr(frame, truth), "ssim": ssim(frame, truth), "sharpness": edge_sharpness(frame, truth)}
        if self._before is not None:
            old_frame, old_truth = self._before
            back = motion_back(old_truth, truth, self.flow)
            values["e_warp"] = e_warp(old_frame, frame, back)
            values["e_warp_truth"] = e_warp(old_truth, truth, back)
            flows = farneback_flow(old_frame, frame), farneback_flow(old_truth, truth)
            values["tof"] = flow_distance(*flows)
        self._before = frame, truth
        for name, value in values.items():
            if not math.isnan(value):
                self._sums[name] += value
                self._counts[name] += 1

    def figures(self) -> dict[str, float]:
        """The means so far."""
        names = ("psnr", "ssim", "sharpness", "e_warp", "e_warp_truth", "tof")
        return {name: self._sums[name] / self._counts[name] if self._counts[name] else math.nan for name in names}
