"""The sizes of a frame from input to output, and which frames can be restored."""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.ops.padding import Padding, unpad
from ldm.ops.resize import resize

SMALLEST_SIDE = 16  # pixels; below that there is nothing to restore
FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535}


class Geometry:
    """Frames of `size` (h, w) enlarged and padded to what the networks take, and back to what was asked for.

    Args:
        upscale: what was asked for; the networks see at least `min_size` pixels on the short side.
        pad: (..., h, w) -> (padded, Padding).
        downsampling: of the autoencoder.

    `latent` is the size (h, w) of the latents, `work` and `target` those of the enlarged frame and of the output;
    `picture_bytes` is what an enlarged and padded frame takes in float32.
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
        self.work, self.target = (tuple(whole(side * by) for side in size) for by in (scale, upscale))
        self.size, self.pad = tuple(size), pad
        padded, self.padding = pad(torch.empty(1, *self.work, device="meta"))
        self.latent = tuple(side // downsampling for side in padded.shape[-2:])
        self.picture_bytes = padded.numel() * 3 * 4

    def enlarge(self, lq: Tensor) -> Tensor:
        """A frame (..., 3, h, w), float in [0, 1] or uint8 or uint16 of full scale, as the networks see it."""
        lq = lq.float() / FULL_SCALE[lq.dtype] if lq.dtype in FULL_SCALE else lq
        return self.pad(resize(lq, self.work).clamp(0, 1))[0]

    def finish(self, sr: Tensor) -> Tensor:
        """A restored frame, about [-1, 1], in the size that was asked for and in [0, 1]."""
        return resize(unpad(sr, self.padding).add(1).div_(2).clamp_(0, 1), self.target).clamp_(0, 1)


def whole(length: float) -> int:
    """A length in whole pixels: cut off as released, but not for rounding errors."""
    return int(length + 1e-6)


def check_frames(lq: Tensor, upscale: float) -> None:
    """Raise ValueError unless `restore` can take these frames."""
    if lq.ndim not in (4, 5) or lq.shape[-3] != 3 or 0 in lq.shape:
        raise ValueError(f"got frames {tuple(lq.shape)}, expected (T, 3, h, w) or (B, T, 3, h, w), at least one frame")
    if not lq.is_floating_point():
        raise ValueError(f"got frames of type {lq.dtype}, expected floating point in [0, 1]; divide by 255")
    if min(lq.shape[-2:]) < SMALLEST_SIDE:
        width, height = lq.shape[-1], lq.shape[-2]
        raise ValueError(f"got frames of {width}x{height}, expected at least {SMALLEST_SIDE} pixels a side")
    if not upscale > 0 or whole(min(lq.shape[-2:]) * upscale) < 1:
        raise ValueError(f"got upscale {upscale}, expected a positive number that leaves at least one pixel")
    if not torch.isfinite(lq).all():
        raise ValueError("got frames with NaN or infinite pixels, expected values in [0, 1]")
