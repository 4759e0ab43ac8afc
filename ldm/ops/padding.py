"""Padding on the right and at the bottom, and its exact inverse."""

from typing import NamedTuple

import torch
from torch import Tensor

_MODES = ("reflect", "replicate")


class Padding(NamedTuple):
    """The rows (`bottom`) and columns (`right`) added to an image of `height` x `width`."""

    height: int
    width: int
    bottom: int
    right: int


def _source_rows(size: int, added: int, mode: str) -> Tensor:
    """Return the source index of each padded element, (size + added,); reflections repeat if needed."""
    position = torch.arange(size + added)
    if mode == "replicate" or size == 1:
        return position.clamp(max=size - 1)
    position = position % (2 * size - 2)
    return torch.minimum(position, 2 * size - 2 - position)


def _pad(x: Tensor, padding: Padding, *, mode: str = "reflect") -> Tensor:
    """Pad (..., h, w); "reflect" does not repeat the edge, "replicate" does."""
    if mode not in _MODES:
        raise ValueError(f"got padding mode {mode!r}, expected one of {_MODES}")
    if padding.bottom:
        x = x.index_select(-2, _source_rows(padding.height, padding.bottom, mode).to(x.device))
    if padding.right:
        x = x.index_select(-1, _source_rows(padding.width, padding.right, mode).to(x.device))
    return x


def pad_to_multiple(x: Tensor, multiple: int, *, mode: str = "reflect") -> tuple[Tensor, Padding]:
    """Pad (..., h, w) to the next multiples of `multiple`; return the result and the padding. Raises ValueError."""
    if multiple < 1 or x.shape[-2] < 1 or x.shape[-1] < 1:
        raise ValueError(f"got multiple {multiple} for shape {tuple(x.shape)}, expected 1 or more and no empty side")
    h, w = x.shape[-2:]
    padding = Padding(h, w, -h % multiple, -w % multiple)
    return _pad(x, padding, mode=mode), padding


def released_pad(x: Tensor, multiple: int = 32) -> tuple[Tensor, Padding]:
    """Pad as released (bug B26): if either side needs padding, both are padded, by `multiple` where one fits."""
    h, w = x.shape[-2:]
    needed = h % multiple or w % multiple
    padding = Padding(h, w, multiple - h % multiple, multiple - w % multiple) if needed else Padding(h, w, 0, 0)
    return _pad(x, padding), padding


def unpad(x: Tensor, padding: Padding, *, scale: float = 1) -> Tensor:
    """Remove a padding from (..., H, W), an image `scale` times as large as the padded one.

    Raises ValueError unless x has the size of the padded image times `scale`, in whole pixels.
    """
    sides = [padding.height + padding.bottom, padding.width + padding.right, padding.height, padding.width]
    sides = [side * scale for side in sides]
    if any(side != int(side) for side in sides) or list(x.shape[-2:]) != sides[:2]:
        raise ValueError(f"got shape {tuple(x.shape)}, expected whole padded sides {sides[:2]}; scale is {scale}")
    return x[..., : int(sides[2]), : int(sides[3])]
