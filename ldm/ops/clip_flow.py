"""Optical flow of a clip as Upscale-A-Video prepares it: chunks of frames, frames enlarged to multiples of 8."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ldm.ops.finite import checked_finite
from ldm.ops.flow import resize_flow
from ldm.ops.resize import resize

_MULTIPLE = 8  # of the sides that RAFT takes
_CHUNKS = ((640, 12), (720, 8), (1280, 4))  # (widest, frames); wider clips go by 2


def flow_chunks(frames: int, width: int) -> list[slice]:
    """Frames whose flows are found together: 12, 8, 4 or 2 by the width, later ones starting one frame earlier."""
    count = next((count for widest, count in _CHUNKS if width <= widest), 2)
    return [slice(max(first - 1, 0), min(first + count, frames)) for first in range(0, frames, count)]


def enlarged_for_flow(frames: Tensor) -> Tensor:
    """Frames (B, T, 3, h, w) enlarged (not padded) to sides that 8 divides, bilinear, align_corners False."""
    size = tuple(-(-side // _MULTIPLE) * _MULTIPLE for side in frames.shape[-2:])
    return resize(frames, size, mode="bilinear")


def resize_flow_released(flow: Tensor, *, size: tuple[int, int]) -> Tensor:
    """A flow (n, 2, h, w) on the grid `size` (H, W), bilinear, scaled as the released code does (quirk U8).

    There row 0 of both components is multiplied by H/h and row 1 by W/w, where components were meant; all other rows
    keep the scale of the enlarged frame. `ldm.ops.flow.resize_flow` scales the components. The two agree where the
    size does not change.
    """
    h, w = flow.shape[-2:]
    out = resize(flow, size, mode="bilinear").clone()
    out[:, :, 0] *= size[0] / h
    out[:, :, 1:2] *= size[1] / w
    return out


def flows_of_clip(
    flow_net: Callable[[Tensor, Tensor], Tensor], frames: Tensor, *, released_scale: bool = False
) -> tuple[Tensor, Tensor]:
    """(to_next, to_prev), each (B, T-1, 2, h, w) float32 in pixels of the frames.

    Args:
        flow_net: (n, 3, H, W) twice in [0, 1] -> (n, 2, H, W), see `ldm.ops.flow.estimate_motion`.
        frames: (B, T, 3, h, w) in [0, 1].
        released_scale: scale the flows of enlarged frames as `resize_flow_released` does.

    Raises:
        FloatingPointError: a flow that is not finite; it names the frames.
    """
    size, large = tuple(frames.shape[-2:]), enlarged_for_flow(frames)
    back = resize_flow_released if released_scale else resize_flow
    parts: list[list[Tensor]] = [[], []]
    for chunk in flow_chunks(frames.shape[1], frames.shape[-1]):
        clip = large[:, chunk]
        pairs = (clip.shape[0], clip.shape[1] - 1)
        if pairs[1] < 1:
            continue
        here, there = clip[:, :-1].flatten(0, 1), clip[:, 1:].flatten(0, 1)
        for found, images in zip(parts, ((here, there), (there, here)), strict=True):
            flow = checked_finite(flow_net(*images), partial(_not_finite, chunk))
            found.append(back(flow.float(), size=size).unflatten(0, pairs))
    none = frames.new_zeros(frames.shape[0], 0, 2, *size, dtype=torch.float32)
    return tuple(torch.cat(found, 1) if found else none for found in parts)


def _not_finite(chunk: slice) -> str:
    return f"a flow of frames {chunk.start} to {chunk.stop - 1} is not finite"
