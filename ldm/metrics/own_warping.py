"""Warping error of EvalCrafter and QuantVSR, along the optical flow of the restored frames themselves."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.metrics.fidelity import same_size, unit_batch
from ldm.ops.flow import flow_warp

ALPHA, BETA = 0.01, 0.5  # of the consistency check
EDGE_ALPHA, EDGE_BETA = 0.01, 0.002  # of the motion's boundaries


def own_warping_error(
    before: Tensor | np.ndarray,
    frame: Tensor | np.ndarray,
    flow: Callable[[Tensor, Tensor], Tensor],
    *,
    released: bool = True,
) -> float:
    """E*_warp of a pair of frames, as in the tables of DOVE, QuantVSR and others.

    At half the size, the squared difference between `before` and `frame` warped along its own flow, summed over
    channels and averaged over visible pixels, times 1000. Pixels with inconsistent forward and backward flow and motion
    boundaries are not visible; 0 if no pixel is visible.

    Args:
        before, frame: neighbouring frames, (H, W, 3) uint8 RGB or (3, H, W) in [0, 1].
        flow: RAFT (raft-things, 20 iterations), (1, 3, H, W) in [0, 1] -> (1, 2, H, W).
        released: True divides the input of `flow` by 255 again, which makes it almost black, as the released code does.
    Raises:
        ValueError: frames that differ in size or are smaller than two pixels.
        FloatingPointError: a flow is not finite.
    """
    pixels = same_size(before, frame, what="neighbouring frames", fix=" of at least 2x2")
    if min(pixels[0].shape[:2]) < 2:
        raise ValueError(f"got frames of {pixels[0].shape[1]}x{pixels[0].shape[0]}, expected at least 2x2")
    old, new = (_half(picture) for picture in pixels)
    shade = 255 if released else 1
    forth, back = (flow(a / shade, b / shade).float().cpu() for a, b in ((old, new), (new, old)))
    if not (torch.isfinite(forth).all() and torch.isfinite(back).all()):
        raise FloatingPointError("the flow between two frames is not finite; check the estimator")
    visible = ~(_lost(forth, flow_warp(back, forth, padding="border")) | _boundary(forth))
    difference = (flow_warp(new, forth, padding="border") - old).square().sum(dim=1)[visible]
    return 1000 * difference.double().mean().item() if visible.any() else 0.0


def _half(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, h, w) in [0, 1] at half the size, its border repeated up to multiples of 8."""
    image = F.interpolate(unit_batch(pixels), scale_factor=0.5, mode="bilinear", align_corners=False)
    down, across = (-side % 8 for side in image.shape[-2:])
    return F.pad(image, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")


def _lost(forth: Tensor, back: Tensor) -> Tensor:
    """(1, h, w): forward and backward flow are inconsistent."""
    reach = forth.square().sum(dim=1) + back.square().sum(dim=1)
    return (forth + back).square().sum(dim=1) > ALPHA * reach + BETA


def _boundary(flow: Tensor) -> Tensor:
    """(1, h, w): the flow changes between a pixel and its lower or right neighbour."""
    across = F.pad(flow[..., :-1] - flow[..., 1:], (0, 1))
    down = F.pad(flow[..., :-1, :] - flow[..., 1:, :], (0, 0, 0, 1))
    change = (across.square() + down.square()).sum(dim=1)
    return change > EDGE_ALPHA * flow.square().sum(dim=1) + EDGE_BETA
