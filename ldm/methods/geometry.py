"""Sizes of frames from input to output, and checks of input frames."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.ops.padding import Padding, unpad
from ldm.ops.resize import resize

MIN_SIDE = 16  # pixels; smaller frames are refused
FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535}


def to_unit(frame: Tensor) -> Tensor:
    """A frame of uint8 or uint16 of full scale as float32 in [0, 1]; other frames unchanged."""
    return frame.float() / FULL_SCALE[frame.dtype] if frame.dtype in FULL_SCALE else frame


class Geometry:
    """Resize and pad frames of `size` (h, w) for the networks, and resize results to the output size.

    Args:
        upscale: ratio of the output size to the input size.
        min_size: minimum short side, in pixels, of the frames that the networks process.
        pad: function (..., h, w) -> (padded, Padding).
        downsampling: side of a frame divided by the side of its latents.

    Attributes: `latent`, `work` and `target` are the sizes (h, w) of the latents, the enlarged frame and the output;
    `picture_bytes` is the size of an enlarged and padded float32 frame.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        upscale: float,
        min_size: int,
        pad: Callable[[Tensor], tuple[Tensor, Padding]],
        downsampling: int,
    ) -> None:
        scale = max(min_size / min(size), upscale)
        self.work, self.target = (tuple(floor_pixels(side * by) for side in size) for by in (scale, upscale))
        self.size, self.pad = tuple(size), pad
        padded, self.padding = pad(torch.empty(1, *self.work, device="meta"))
        self.latent = tuple(side // downsampling for side in padded.shape[-2:])
        self.picture_bytes = padded.numel() * 3 * 4

    def enlarge(self, lq: Tensor) -> Tensor:
        """Resize and pad a frame (..., 3, h, w): float in [0, 1], or uint8 or uint16 over the full range."""
        lq = to_unit(lq)
        return self.pad(resize(lq, self.work).clamp(0, 1))[0]

    def finish(self, sr: Tensor) -> Tensor:
        """Convert a restored frame, about [-1, 1], to the output size and to [0, 1]."""
        return resize(unpad(sr, self.padding).add(1).div_(2).clamp_(0, 1), self.target).clamp_(0, 1)


def floor_pixels(length: float) -> int:
    """Round a length in pixels down, as the released code does, with a tolerance of 1e-6 for rounding errors."""
    return int(length + 1e-6)


def check_frames(lq: Tensor, upscale: float) -> None:
    """Raise ValueError for frames that cannot be restored."""
    if lq.ndim not in (4, 5) or lq.shape[-3] != 3 or 0 in lq.shape:
        raise ValueError(f"got frames {tuple(lq.shape)}, expected (T, 3, h, w) or (B, T, 3, h, w), at least one frame")
    if not lq.is_floating_point():
        raise ValueError(f"got frames of type {lq.dtype}, expected floating point in [0, 1]; divide by 255")
    if min(lq.shape[-2:]) < MIN_SIDE:
        width, height = lq.shape[-1], lq.shape[-2]
        raise ValueError(f"got frames of {width}x{height}, expected at least {MIN_SIDE} pixels a side")
    if not upscale > 0 or floor_pixels(min(lq.shape[-2:]) * upscale) < 1:
        raise ValueError(f"got upscale {upscale}, expected a positive number that leaves at least one pixel")
    if not torch.isfinite(lq).all():
        raise ValueError("got frames with NaN or infinite pixels, expected values in [0, 1]")
