"""The measures of StableVSR's evaluation that the house does not count otherwise (its eval.py and flow_utils.py)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.metrics.fidelity import rgb8
from ldm.metrics.temporal import ALPHA, BETA
from ldm.ops.flow import flow_warp

DECIMALS = {
    "psnr": 2, "ssim": 3, "lpips": 3, "dists": 3, "musiq": 2, "niqe": 2, "clipiqa": 3, "tlpips": 2, "tof": 3,
}  # fmt: skip
SCALES = {"tlpips": 1000.0, "tof": 10.0}  # factors that tables print a measure with


def visible_pixels(flow: Tensor, back: Tensor, *, grid: str = "released") -> Tensor:
    """1 where going with `flow` and coming `back`, both (n, 2, h, w), returns to the start, else 0: (n, h, w) float32.

    Visible unless |f + b'|^2 > 0.01 (|f|^2 + |b'|^2) + 0.5 with b' the flow back, fetched along f; the released code
    calls this map occlusion. `grid` as for `flow_warp`.
    """
    back = flow_warp(back, flow, grid=grid)
    miss, reach = (flow + back).square().sum(dim=1), (flow.square() + back.square()).sum(dim=1)
    return (miss <= ALPHA * reach + BETA).float()


def warp_error(
    current: Tensor, previous: Tensor, flow: Tensor, *, visible: Tensor | None = None, grid: str = "released"
) -> Tensor:
    """Mean squared difference between frames and those before fetched along `flow`, (n,), over pixels and channels.

    current, previous (n, c, h, w), flow (n, 2, h, w), visible (n, h, w): pixels that count, all where None; NaN where
    none does. The released code handles a batch of 1 only where pixels are chosen.
    """
    error = (current - flow_warp(previous, flow, grid=grid)).square()
    if visible is None:
        return error.mean(dim=(1, 2, 3))
    return (error * visible[:, None]).sum(dim=(1, 2, 3)) / (error.shape[1] * visible.sum(dim=(1, 2)))


def flow_change(
    output: tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    truth: tuple[Tensor | np.ndarray, Tensor | np.ndarray],
    flow: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """tOF of a pair: mean |flow(frame, before) - the truth's|, over pixels and components; tables have it times 10.

    Each pair is (before, frame), (3, H, W) in [0, 1] or (H, W, 3) uint8. flow(img1, img2), (1, 3, H, W) in [0, 1] ->
    (1, 2, H, W). The released code gives RAFT pictures in [0, 1], which expects [-1, 1]: its figures need an estimator
    with `scaling="released"`. Raises ValueError for sizes that differ.
    """
    flows = []
    for before, frame in (output, truth):
        old, new = (torch.from_numpy(rgb8(x).copy()).permute(2, 0, 1)[None].float() / 255 for x in (before, frame))
        with torch.no_grad():
            flows.append(flow(new, old))
    if flows[0].shape != flows[1].shape:
        raise ValueError(f"got flows {tuple(flows[0].shape)} and {tuple(flows[1].shape)}, expected frames of one size")
    return (flows[0] - flows[1]).abs().double().mean().item()


def mean_of_clips(values: Sequence[Sequence[float]], measure: str) -> float:
    """The figure of a table: mean over the frames of each clip, then over clips, scaled and rounded as released.

    Raises ValueError where a clip has no value.
    """
    if not values or not all(len(clip) for clip in values):
        raise ValueError(f"got a clip without {measure}, expected a value for some frame of each")
    mean = float(np.mean([np.mean(clip) for clip in values]))
    return round(mean * SCALES.get(measure, 1.0), DECIMALS[measure])


def figures_of_clips(clips: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """`mean_of_clips` of every measure that the clips have: {measure: values of its frames} for each."""
    return {name: mean_of_clips([clip[name] for clip in clips], name) for name in (clips[0] if clips else {})}
