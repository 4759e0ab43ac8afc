"""Detection of scene cuts: neighbouring frames that motion cannot explain."""

import torch
from torch import Tensor

from ldm.ops.flow import Motion, flow_warp
from ldm.ops.resize import resize

# Measured with DIS on 17 clips (film, animation, hand-held, night) for neighbouring frames, frames 29 apart, and first
# frames of different clips. Unmatched pixels: up to 0.44, up to 0.65, at least 0.97. Correlation: at least 0.87, at
# least 0.57, up to 0.48.
MIN_CORRELATION = 0.5  # of brightness; a lower value means different content ...
MIN_DIFFERENCE = 0.1  # ... if the mean difference is also larger than this (noise on a uniform surface is not)


def scene_ends(first: Tensor, second: Tensor, motion: Motion, *, unmatched: float = 0.85) -> bool:
    """Return whether a scene ends between two frames (1, 3, h, w) in [0, 1], given their motion (T = 2, any grid).

    A scene ends if, in both frames, more than the fraction `unmatched` of the pixels has no consistent match in the
    other. This misses images of fine texture, for which the estimator finds no motion. Therefore a scene also ends if
    the second frame, warped to the first, has a low correlation of brightness with it and a large mean difference.
    """
    if torch.minimum(motion.occluded_next.mean(), motion.occluded_prev.mean()).item() > unmatched:
        return True
    grid = motion.to_next.shape[-2:]
    here, there = (resize(frame.mean(1, keepdim=True), grid, mode="area") for frame in (first, second))
    fetched = flow_warp(there, motion.to_next[:, 0], padding="border")
    return bool((fetched - here).abs().mean() > MIN_DIFFERENCE) and _correlation(here, fetched) < MIN_CORRELATION


def _correlation(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two images; 0 if one of them is constant."""
    a, b = ((x - x.mean()).flatten().cpu().double() for x in (a, b))  # on the CPU: some devices lack float64
    return (torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)).item()
