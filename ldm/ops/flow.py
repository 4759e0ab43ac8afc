"""Operations on optical flow: warping, resizing, occlusion, and the motion of a clip.

A flow (n, 2, h, w) holds displacements (x, y), in pixels of its own grid, from each pixel of the first image to its
position in the second. Flows are named `to_next` and `to_prev`, because "forward" and "backward" have opposite meanings
in the reference implementations.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.ops.finite import checked_finite
from ldm.ops.tiling import Tile

_GRIDS = ("aligned", "released")
_VALID = 0.9999  # a warp of ones below this has read outside the image


def _check_flow(flow: Tensor, name: str = "flow") -> None:
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"got {name} of shape {tuple(flow.shape)}, expected (n, 2, h, w); put x and y in dimension 1")


def pixel_grid(h: int, w: int, like: Tensor) -> Tensor:
    """Return the positions (x, y) of all pixels, (1, 2, h, w), on the device and in the dtype of `like`."""
    y, x = torch.meshgrid(
        torch.arange(h, device=like.device, dtype=like.dtype),
        torch.arange(w, device=like.device, dtype=like.dtype),
        indexing="ij",
    )
    return torch.stack((x, y))[None]


def pair_of(x: float, y: float, like: Tensor) -> Tensor:
    """Return two numbers (2,) on the device and in the dtype of `like`, made there: without a copy from the host."""
    return torch.cat([like.new_full((1,), x), like.new_full((1,), y)])


def flow_warp(
    x: Tensor, flow: Tensor, *, mode: str = "bilinear", padding: str = "zeros", grid: str = "aligned"
) -> Tensor:
    """Warp an image backwards along a flow: out(p) = x(p + flow(p)).

    x (n, c, h, w) and flow (n, 2, h, w) in pixels -> (n, c, h, w) in the dtype of x; sampled in float32 or better.
    `mode` "bilinear", "nearest" or "bicubic", `padding` "zeros", "border" or "reflection", as in grid_sample.

    `grid`: "aligned" has align_corners True throughout (SPEC 2.5). "released" is the warp of the released StableVSR:
    positions are normalised for align_corners True but sampled with False, so that a side of S pixels is sampled at
    (p + flow) S / (S - 1) - 0.5: exact in the middle, and off by half a pixel, in opposite directions, at the borders.

    Raises ValueError for shapes that do not match or an unknown `grid`.
    """
    if grid not in _GRIDS:
        raise ValueError(f"got grid {grid!r}, expected one of {', '.join(_GRIDS)}")
    _check_flow(flow)
    if x.ndim != 4 or x.shape[0] != flow.shape[0] or x.shape[-2:] != flow.shape[-2:]:
        raise ValueError(f"got image {tuple(x.shape)} and flow {tuple(flow.shape)}, expected one n, h and w; resize")
    h, w = flow.shape[-2:]
    dtype = torch.promote_types(torch.promote_types(x.dtype, flow.dtype), torch.float32)
    flow = flow.to(dtype)
    there = pixel_grid(h, w, flow) + flow
    span = pair_of(max(w - 1, 1), max(h - 1, 1), there).view(1, 2, 1, 1)
    place = (2 * there / span - 1).movedim(1, -1)
    aligned = grid == "aligned"
    return F.grid_sample(x.to(dtype), place, mode=mode, padding_mode=padding, align_corners=aligned).to(x.dtype)


def warp_validity(flow: Tensor) -> Tensor:
    """Return 1 where `flow_warp` reads only inside the image, 0 elsewhere: (n, 2, h, w) -> (n, 1, h, w).

    The released mask: a warp of ones that is at least 0.9999.
    """
    return (flow_warp(torch.ones_like(flow[:, :1]), flow) >= _VALID).to(flow.dtype)


def resize_flow(flow: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Resize a flow (n, 2, h, w) bilinearly to `size` (align_corners False) and scale its components accordingly.

    The result is in pixels of the new grid (released form 'shape'). Raises ValueError for an empty size.
    """
    _check_flow(flow)
    h, w = flow.shape[-2:]
    if min(size) < 1:
        raise ValueError(f"got flow size {tuple(size)}, expected at least one pixel a side; flow is {h}x{w}")
    if tuple(size) == (h, w):
        return flow
    ratio = pair_of(size[1] / w, size[0] / h, flow).view(1, 2, 1, 1)
    if not flow.numel():  # interpolate does not support an empty batch on some devices
        return flow.new_zeros(*flow.shape[:2], *size)
    return F.interpolate(flow * ratio, size=tuple(size), mode="bilinear", align_corners=False)


def forward_backward_occlusion(
    flow_a: Tensor, flow_b: Tensor, *, alpha: float = 0.01, beta: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Find occluded pixels by the forward-backward consistency of two flows.

    flow_a (image 1 -> 2) and flow_b (2 -> 1), both (n, 2, h, w), -> (occluded_a, occluded_b), (n, 1, h, w) with 1 where
    |a + warp(b, a)| > alpha (|a| + |b|) + beta, in pixels. Both directions have the same threshold; the flow is 0
    outside the image. Computed in float32. The released consistency check (SPEC 2.5).
    """
    _check_flow(flow_a, "flow_a")
    flow_a, flow_b = flow_a.float(), flow_b.float()
    limit = alpha * (flow_a.norm(dim=1, keepdim=True) + flow_b.norm(dim=1, keepdim=True)) + beta
    miss_a = (flow_a + flow_warp(flow_b, flow_a)).norm(dim=1, keepdim=True)
    miss_b = (flow_b + flow_warp(flow_a, flow_b)).norm(dim=1, keepdim=True)
    return (miss_a > limit).float(), (miss_b > limit).float()


class Motion(NamedTuple):
    """The motion between neighbouring frames of a clip; pair i consists of frames i and i+1.

    to_next (B, T-1, 2, h, w): displacements from pixels of frame i to frame i+1 (SPEC's F_i).
    to_prev (B, T-1, 2, h, w): displacements from pixels of frame i+1 to frame i (SPEC's B_i).
    occluded_next (B, T-1, 1, h, w): 1 at pixels of frame i without a match in frame i+1 (O_i).
    occluded_prev (B, T-1, 1, h, w): 1 at pixels of frame i+1 without a match in frame i (P_i).
    """

    to_next: Tensor
    to_prev: Tensor
    occluded_next: Tensor
    occluded_prev: Tensor

    def crop(self, top: int, left: int, h: int, w: int) -> "Motion":
        """Return the motion in a window; flows may point outside. Raises ValueError for a window outside the grid."""
        height, width = self.to_next.shape[-2:]
        if min(top, left) < 0 or min(h, w) < 1 or top + h > height or left + w > width:
            raise ValueError(f"got a {h}x{w} window at ({top}, {left}), expected it inside the {height}x{width} motion")
        return Motion(*(x[..., top : top + h, left : left + w] for x in self))

    def frames(self, start: int, stop: int) -> "Motion":
        """Return the motion of frames start..stop-1, that is, of the pairs between them (none for one frame)."""
        count = self.to_next.shape[1] + 1
        if not 0 <= start < stop <= count:
            raise ValueError(f"got frames {start} to {stop}, expected 0 <= start < stop <= {count}")
        return Motion(*(x[:, start : stop - 1] for x in self))

    def resized(self, size: tuple[int, int], *, alpha: float = 0.01, beta: float = 0.5) -> "Motion":
        """Return the motion on a grid of `size` (h, w): resized flows, and occlusion computed from them."""
        clip = self.to_next.shape[:2]
        flows = [resize_flow(x.flatten(0, 1), size=size) for x in (self.to_next, self.to_prev)]
        masks = forward_backward_occlusion(*flows, alpha=alpha, beta=beta)
        return Motion(*(x.unflatten(0, clip) for x in (*flows, *masks)))


def estimate_motion(
    flow_net: Callable[[Tensor, Tensor], Tensor],
    frames: Tensor,
    *,
    size: tuple[int, int],
    alpha: float = 0.01,
    beta: float = 0.5,
    batch: int = 4,
) -> Motion:
    """Estimate the motion of clips in both directions and resize it (SPEC 4.4).

    frames (B, T, 3, H, W) in [0, 1]. `flow_net(img1, img2)` (n, 3, H, W) -> (n, 2, H, W) is called at the frames' own
    resolution with at most `batch` pairs; flows are resized to `size` (h, w), and occlusion is computed from the
    resized flows. One frame gives an empty motion (B, 0, ...). Gradients are recorded unless the caller disables them.
    Raises ValueError for invalid shapes, FloatingPointError with the numbers of the pairs if a flow is not finite.
    """
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"got frames of shape {tuple(frames.shape)}, expected (B, T, 3, H, W); stack frames in dim 1")
    if batch < 1 or min(size) < 1:
        raise ValueError(f"got batch {batch} and size {tuple(size)}, expected at least 1 each")
    clip = (frames.shape[0], frames.shape[1] - 1)
    first, second = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)

    to_next, to_prev = [], []
    for i in range(0, len(first), batch):
        x, y, what = first[i : i + batch], second[i : i + batch], f"of pairs {i} to {min(i + batch, len(first)) - 1}"
        for flows, out, where in zip((to_next, to_prev), _both_ways(flow_net, x, y), ("next", "previous"), strict=True):
            checked_finite(out, partial(_not_finite, f"to the {where} frame {what}"))
            flows.append(resize_flow(out, size=size))
    none = frames.new_zeros(0, 2, *size, dtype=torch.float32)
    flows = [torch.cat(x) if x else none for x in (to_next, to_prev)]
    masks = forward_backward_occlusion(*flows, alpha=alpha, beta=beta)
    return Motion(*(x.unflatten(0, clip) for x in (*flows, *masks)))


def _both_ways(flow_net: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flows from x to y and from y to x: in one call, except on CPUs, where that saves nothing.

    It is not done for norms that use the statistics of all images of a call (`ldm.nets.raft.RAFT`, "released").
    """
    if x.device.type == "cpu" or getattr(flow_net, "statistics", "trained") == "released":
        return flow_net(x, y), flow_net(y, x)
    return flow_net(torch.cat([x, y]), torch.cat([y, x])).chunk(2)


def _not_finite(what: str) -> str:
    return f"the flow {what} is not finite; check the frames and the flow network's weights"


def cut_motion(motion: Motion, tile: Tile, f: int) -> Motion:
    """Return the motion of an image patch (in pixels) on its latents, `f` times smaller.

    If the patch does not start on the latent grid, the motion is shifted by the fraction (B8 repaired).
    """
    part = motion.frames(tile.t.start, tile.t.stop)
    h, w = ((side.stop - side.start) // f for side in (tile.y, tile.x))
    top, left = tile.y.start / f, tile.x.start / f
    if top.is_integer() and left.is_integer():
        return part.crop(int(top), int(left), h, w)

    def shifted(x: Tensor) -> Tensor:
        pairs = x.flatten(0, 1)
        offset = pair_of(left - int(left), top - int(top), pairs).view(1, 2, 1, 1)
        moved = flow_warp(pairs, offset.expand(len(pairs), -1, *x.shape[-2:]), padding="border")
        return moved.unflatten(0, x.shape[:2])

    flows = Motion(*(shifted(x) for x in part[:2]), *(shifted(x).round() for x in part[2:]))
    return flows.crop(int(top), int(left), h, w)
