"""Windows of frames: where they lie, what each counts in every frame, and functions of clips computed window by window.

`released` plans are those of Upscale-A-Video; a plan is the same for a U-Net and for a decoder.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.ops.tiling import starts


class WindowPlan(NamedTuple):
    """Windows of a clip and their shares: (windows, frames) float64, each column sums to 1."""

    windows: list[slice]
    shares: Tensor

    def distinct(self) -> "WindowPlan":
        """The same without repeated windows: a window that is visited twice has the shares of both visits."""
        order = sorted({(window.start, window.stop) for window in self.windows})
        shares = torch.zeros(len(order), self.shares.shape[1], dtype=torch.float64)
        for window, row in zip(self.windows, self.shares, strict=True):
            shares[order.index((window.start, window.stop))] += row
        return WindowPlan([slice(*pair) for pair in order], shares)


def released_windows(frames: int, *, length: int = 8, overlap: int = 2) -> WindowPlan:
    """Windows every length - overlap frames; those that would end behind the clip are moved in, even onto another.

    Windows are visited in order, and each visit averages with the earlier value, 0.5 old + 0.5 new. So shares depend on
    the order, and a last window that is visited twice (13, 14, 19, 20 ... frames of 8) counts more (quirk U2).
    """
    _check_length(frames, length, overlap)
    if frames <= length:
        return WindowPlan([slice(0, frames)], torch.ones(1, frames, dtype=torch.float64))
    firsts = [min(first, frames - length) for first in range(0, frames, length - overlap)]
    shares = torch.zeros(len(firsts), frames, dtype=torch.float64)
    for k, first in enumerate(firsts):
        window = slice(first, first + length)
        seen = shares[:k, window].sum(0) > 0
        shares[:k, window] *= 0.5
        shares[k, window] = torch.where(seen, 0.5, 1.0)
    return WindowPlan([slice(first, first + length) for first in firsts], shares)


def crossfaded_windows(frames: int, *, length: int = 8, overlap: int = 2) -> WindowPlan:
    """As few windows of `length` as overlap by `overlap` or more, none twice, blended linearly into one another."""
    _check_length(frames, length, overlap)
    length = min(length, frames)
    firsts = starts(frames, length, min(overlap, length - 1))
    ramp = torch.arange(1, length + 1, dtype=torch.float64)
    hat = torch.minimum(ramp, ramp.flip(0))
    shares = torch.zeros(len(firsts), frames, dtype=torch.float64)
    for k, first in enumerate(firsts):
        shares[k, first : first + length] = hat
    return WindowPlan([slice(first, first + length) for first in firsts], shares / shares.sum(0))


def consecutive_windows(frames: int, *, length: int = 3) -> WindowPlan:
    """Windows side by side, the last one shorter: the released chunks of the decoder (quirk U16)."""
    _check_length(frames, length, 0)
    windows = [slice(first, min(first + length, frames)) for first in range(0, frames, length)]
    shares = torch.zeros(len(windows), frames, dtype=torch.float64)
    for k, window in enumerate(windows):
        shares[k, window] = 1
    return WindowPlan(windows, shares)


def _check_length(frames: int, length: int, overlap: int) -> None:
    if frames < 1 or not 0 <= overlap < length:
        raise ValueError(
            f"got {frames} frames, windows of {length} and overlap {overlap}, expected 1 or more frames and an overlap "
            f"from 0 to {length - 1}"
        )


def over_windows(fn: Callable[..., Tensor], plan: Callable[[int], WindowPlan]) -> Callable[..., Tensor]:
    """run(*clips, **settings) = the sum of share * fn(*parts of the clips, **settings) over the windows of a plan.

    Clips (B, T, ...) are cut along dimension 1; fn returns (B', t, ...) of any other sizes. A window is computed once,
    however often it is visited; the sum is in float32 or better and the result in fn's dtype.
    """

    def run(*clips: Tensor, **settings) -> Tensor:
        frames = clips[0].shape[1]
        if any(clip.shape[1] != frames for clip in clips):
            raise ValueError(f"got clips of {[clip.shape[1] for clip in clips]} frames, expected the same number")
        windows, shares = plan(frames).distinct()
        if len(windows) == 1:
            return fn(*clips, **settings)
        out = dtype = None
        for window, share in zip(windows, shares, strict=True):
            value = fn(*(clip[:, window] for clip in clips), **settings)
            if out is None:
                dtype, kind = value.dtype, torch.promote_types(value.dtype, torch.float32)
                out = value.new_zeros(len(value), frames, *value.shape[2:], dtype=kind)
            weight = share[window].to(out).view(1, -1, *[1] * (value.ndim - 2))
            out[:, window].addcmul_(value.to(out.dtype), weight)
        return out.to(dtype)

    return run
