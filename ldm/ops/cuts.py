"""Where a scene ends: two neighbouring frames that no motion turns into one another."""

import torch
from torch import Tensor

from ldm.ops.flow import Motion, flow_warp
from ldm.ops.resize import resize

# Measured with DIS on 17 clips (film, animation, hand-held, night): pairs within a clip, frames 29 apart, first frames
# of different clips. Unmatched pixels: up to 0.44, 0.65, from 0.97. Likeness: from 0.87, 0.57, up to 0.48.
LIKENESS = 0.5  # correlation of brightness below which two pictures show different things ...
CHANGE = 0.1  # ... if they also differ by this much, which noise on a plain surface does not


def scene_ends(first: Tensor, second: Tensor, motion: Motion, *, unmatched: float = 0.85) -> bool:
    """Whether a scene ends between two frames (1, 3, h, w) in [0, 1] whose motion (T = 2, any grid) is given.

    It does where more than the part `unmatched` of the pixels of both has no consistent match in the other. That misses
    pictures of fine texture, in which the estimator finds no motion at all; so it also does where the second, fetched
    along the motion, neither looks like the first (correlation of brightness) nor is near it (mean difference).
    """
    if min(motion.occluded_next.mean().item(), motion.occluded_prev.mean().item()) > unmatched:
        return True
    grid = motion.to_next.shape[-2:]
    here, there = (resize(frame.mean(1, keepdim=True), grid, mode="area") for frame in (first, second))
    fetched = flow_warp(there, motion.to_next[:, 0], padding="border")
    return bool((fetched - here).abs().mean() > CHANGE) and _likeness(here, fetched) < LIKENESS


def _likeness(a: Tensor, b: Tensor) -> float:
    """Correlation of two pictures; 0 where one of them is plain."""
    a, b = ((x - x.mean()).flatten().cpu().double() for x in (a, b))  # on the CPU: not every device knows float64
    return (torch.dot(a, b) / (a.norm() * b.norm()).clamp_min(1e-12)).item()
