"""Temporal metrics: warping error along the flow of the ground truth (E_warp), and difference of optical flow (tOF).

Both are computed for pairs of neighbouring frames; the value of a clip is the mean over its pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ldm.metrics.fidelity import same_size, unit_batch
from ldm.ops.flow import flow_warp, warp_validity

ALPHA, BETA = 0.01, 0.5  # of the consistency check, as in Ruder et al. 2016
FARNEBACK = {
    "pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0,
}  # fmt: skip


class Backward(NamedTuple):
    """Motion of a frame to the previous one: `flow` (1, 2, H, W) in pixels, and `visible` (H, W) bool, the pixels that
    are visible in the previous frame."""

    flow: Tensor
    visible: Tensor


def motion_back(
    before: Tensor | np.ndarray, frame: Tensor | np.ndarray, flow: Callable[[Tensor, Tensor], Tensor]
) -> Backward:
    """Estimate the motion of the ground truth from frame t to t - 1, which all compared outputs share.

    `flow(img1, img2)`, (1, 3, H, W) in [0, 1] -> (1, 2, H, W), is an estimator such as `ldm.ops.dis.DISFlow`. A pixel p
    is visible if p + F is in the frame and |F + B(p + F)|^2 <= 0.01 (|F|^2 + |B|^2) + 0.5 for the flow F to the
    previous frame and the flow B from there (Sundaram et al. 2010).

    Raises ValueError for frames that differ in size, FloatingPointError for a flow that is not finite.
    """
    old, new = _pair(before, frame)
    back, forth = flow(new, old).float().cpu(), flow(old, new).float().cpu()
    if not torch.isfinite(back.sum() + forth.sum()):  # of sums: far quicker than of every pixel
        raise FloatingPointError("the flow between two frames of the truth is not finite; check the estimator")
    forth = flow_warp(forth, back)
    miss, reach = (back + forth).square().sum(dim=1), (back.square() + forth.square()).sum(dim=1)
    visible = (miss <= ALPHA * reach + BETA) & (warp_validity(back)[:, 0] > 0)
    return Backward(back, visible[0])


def e_warp(before: Tensor | np.ndarray, frame: Tensor | np.ndarray, motion: Backward) -> float:
    """E_warp of a pair of frames: mean squared error between a frame and the warped previous one (Lai et al. 2018).

    Pixels are in [0, 1]; the previous frame is warped bilinearly along the motion of the ground truth. The mean is over
    visible pixels and channels, and NaN if no pixel is visible. Static or blurred outputs have low values, which should
    be compared with that of the ground truth. Papers report it times 1000.

    Raises ValueError for frames that differ in size from each other or from the motion.
    """
    old, new = _pair(before, frame)
    if new.shape[-2:] != motion.flow.shape[-2:]:
        height, width = motion.flow.shape[-2:]
        got = f"frames of {new.shape[-1]}x{new.shape[-2]} and motion of {width}x{height}"
        raise ValueError(f"got {got}, expected one size; resize the frames first")
    difference = (new - flow_warp(old, motion.flow))[0].square().mean(dim=0)
    return difference[motion.visible].double().mean().item()


def farneback_flow(before: Tensor | np.ndarray, frame: Tensor | np.ndarray) -> np.ndarray:
    """Optical flow from a frame to the next, (H, W, 2) in pixels, which tOF compares.

    Farneback 2003 by OpenCV, on 8-bit grey, with the settings of TecoGAN. Raises ValueError for sizes that differ.
    """
    pixels = same_size(before, frame, what="neighbouring frames")
    old, new = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pixels)
    return cv2.calcOpticalFlowFarneback(old, new, None, **FARNEBACK)


def flow_distance(flow: np.ndarray, truth: np.ndarray) -> float:
    """Mean end-point error of a flow (H, W, 2) in pixels against the flow of the ground truth.

    With `farneback_flow` of both it is tOF of a pair of frames (Chu et al. 2020). Raises ValueError for sizes that
    differ.
    """
    if flow.shape != truth.shape:
        raise ValueError(f"got flows {flow.shape} and {truth.shape}, expected one size; resize the frames first")
    return float(np.linalg.norm(flow - truth, axis=2).mean(dtype=np.float64))


def flow_change(
    output: tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    truth: tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    flow: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """tOF of a pair of frames as in StableVSR's evaluation, whose tables print 10 times this value.

    It is the mean absolute difference, over pixels and components, between flow(frame, before) of the output and of the
    ground truth. Each pair is (before, frame), `flow` as for `motion_back`. The released code gives RAFT pictures in
    [0, 1], although it expects [-1, 1]; its values need an estimator with `scaling="released"`.

    Raises ValueError for sizes that differ.
    """
    flows = []
    for before, frame in (output, truth):
        old, new = _pair(before, frame)
        with torch.no_grad():
            flows.append(flow(new, old))
    if flows[0].shape != flows[1].shape:
        raise ValueError(f"got flows {tuple(flows[0].shape)} and {tuple(flows[1].shape)}, expected frames of one size")
    return (flows[0] - flows[1]).abs().double().mean().item()


def _pair(before, frame) -> tuple[Tensor, Tensor]:
    """Two frames as 8-bit pixels in [0, 1], (1, 3, H, W) each."""
    old, new = same_size(before, frame, what="neighbouring frames")
    return unit_batch(old), unit_batch(new)
