"""Propagation of latents along the optical flow, without weights (Upscale-A-Video, section 3.3).

Two sweeps, from the last frame to the first and back; where the flows agree, a frame takes part of its neighbour.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.ops.flow import flow_warp, pair_of

_SCALINGS = ("released", "per_axis")


class Propagation(NamedTuple):
    """How strongly and where neighbours are fused; the defaults are those of the released pipeline.

    interpolation: "nearest" or "bilinear" fetching of latents.
    fuse: part of the neighbour in a fused pixel; 1 copies it ("copy").
    alpha1, alpha2: of the consistency test |p + q|^2 < alpha1 (|p|^2 + |q|^2) + alpha2 in squared pixels.
    """

    interpolation: str = "nearest"
    fuse: float = 0.5
    alpha1: float = 0.001
    alpha2: float = 0.05


RELEASED = Propagation()


def consistent(flow: Tensor, back: Tensor, *, alpha1: float, alpha2: float) -> Tensor:
    """Pixels (n, 1, h, w) bool at which following `flow` and returning with `back` ends near the start.

    Both (n, 2, h, w) in pixels; `back` is fetched bilinearly, with zeros outside. float32.
    """
    flow = flow.float()
    returned = flow_warp(back.float(), flow)
    squares = [part.square().sum(1, keepdim=True) for part in (flow + returned, flow, returned)]
    return squares[0] < alpha1 * (squares[1] + squares[2]) + alpha2


def consistency_masks(
    to_next: Tensor, to_prev: Tensor, *, how: Propagation = RELEASED, cuts: Collection[int] = ()
) -> tuple[Tensor, Tensor]:
    """Masks (B, T-1, 1, h, w) bool for fetching from the next and from the previous frame of each pair.

    `cuts` are pairs i (frames i and i+1) between which a scene ends: nothing is fetched there.
    """
    clip, limits = to_next.shape[:2], {"alpha1": how.alpha1, "alpha2": how.alpha2}
    ahead, behind = to_next.flatten(0, 1), to_prev.flatten(0, 1)
    masks = [consistent(a, b, **limits).unflatten(0, clip) for a, b in ((ahead, behind), (behind, ahead))]
    for pair in cuts:
        for mask in masks:
            mask[:, pair] = False
    return masks[0], masks[1]


def propagate(
    x: Tensor, to_next: Tensor, to_prev: Tensor, *, how: Propagation = RELEASED, cuts: Collection[int] = ()
) -> Tensor:
    """Latents (B, T, C, h, w) after a sweep from the last frame to the first and one back.

    Args:
        x: a clip. Each frame multiplies another's influence by `fuse`: at 0.5, blocks of a clip agree with the whole to
            3e-5 of latents of unit scale with 16 frames of context on either side, and to 3e-7 with 24.
        to_next: at frame i, the flow to frame i+1, (B, T-1, 2, h, w) in pixels of the latents.
        to_prev: at frame i+1, the flow to frame i.
        how: strength and limits.
        cuts: pairs between which a scene ends.

    One frame is returned unchanged.

    Raises:
        ValueError: flows of another size, or a cut outside the clip.
    """
    pairs = x.shape[1] - 1
    expected = (x.shape[0], pairs, 2, *x.shape[3:])
    for name, flow in (("to_next", to_next), ("to_prev", to_prev)):
        if tuple(flow.shape) != expected:
            raise ValueError(f"got flow {name} {tuple(flow.shape)}, expected {expected}; resize it to the latents")
    if any(not 0 <= pair < pairs for pair in cuts):
        raise ValueError(f"got cuts {sorted(cuts)}, expected pairs from 0 to {pairs - 1}")
    if pairs == 0:
        return x
    keep_next, keep_prev = consistency_masks(to_next, to_prev, how=how, cuts=cuts)
    frames = list(x.unbind(1))
    for i in reversed(range(pairs)):
        frames[i] = _fused(frames[i], frames[i + 1], to_next[:, i], keep_next[:, i], how)
    for i in range(1, pairs + 1):
        frames[i] = _fused(frames[i], frames[i - 1], to_prev[:, i - 1], keep_prev[:, i - 1], how)
    return torch.stack(frames, 1)


def _fused(frame: Tensor, neighbour: Tensor, flow: Tensor, keep: Tensor, how: Propagation) -> Tensor:
    """The frame with part of its neighbour, fetched along the flow, where `keep`; all (B, ..., h, w)."""
    fetched = flow_warp(neighbour, flow, mode=how.interpolation)
    return torch.where(keep, how.fuse * fetched + (1 - how.fuse) * frame, frame)


def latent_flow(flow: Tensor, size: tuple[int, int], *, scaling: str = "per_axis") -> Tensor:
    """A flow (B, P, 2, H, W) on the grid `size` of the latents: averaged over areas, in pixels of that grid.

    `scaling` "released" multiplies both components by the ratio of the widths (quirk U21); "per_axis" each by its
    own. Raises ValueError for another word.
    """
    if scaling not in _SCALINGS:
        raise ValueError(f"got scaling {scaling!r}, expected one of {_SCALINGS}")
    h, w = flow.shape[-2:]
    if tuple(size) == (h, w) or flow.shape[1] == 0:
        return flow if flow.shape[1] else flow.new_zeros(*flow.shape[:3], *size)
    ratios = (size[1] / w, size[1] / w if scaling == "released" else size[0] / h)
    resized = F.interpolate(flow.flatten(0, 1), size=tuple(size), mode="area")
    return (resized * pair_of(*ratios, flow).view(1, 2, 1, 1)).unflatten(0, flow.shape[:2])
