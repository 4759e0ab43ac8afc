"""Resizing of images and clips."""

import torch.nn.functional as F
from torch import Tensor

_SMOOTH = ("bilinear", "bicubic")
_MODES = (*_SMOOTH, "area", "nearest")


def resize(x: Tensor, size: tuple[int, int], *, mode: str = "bicubic", antialias: bool = False) -> Tensor:
    """Resize (..., c, h, w) to (..., c, *size) with align_corners False; bicubic results are not clamped.

    `antialias` widens the kernel when shrinking ("bilinear" and "bicubic" only). Raises ValueError for an unknown mode,
    an empty size, or fewer than 3 dimensions.
    """
    if mode not in _MODES or (antialias and mode not in _SMOOTH):
        raise ValueError(f"got mode {mode!r}, antialias={antialias}, expected one of {_MODES}, antialias for {_SMOOTH}")
    if len(size) != 2 or min(size) < 1 or x.ndim < 3:
        raise ValueError(f"got {tuple(x.shape)} and size {tuple(size)}, expected (..., c, h, w) and two sides above 0")
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    flat = x.reshape(-1, *x.shape[-3:])
    if mode in _SMOOTH:
        out = F.interpolate(flat, size=tuple(size), mode=mode, align_corners=False, antialias=antialias)
    else:
        out = F.interpolate(flat, size=tuple(size), mode=mode)
    return out.reshape(*x.shape[:-2], *size)
