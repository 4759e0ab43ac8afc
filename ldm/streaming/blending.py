"""Blending of the results of overlapping windows."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ldm.ops.tiling import hat


class Blend(NamedTuple):
    """Weights and combination of the results of overlapping windows.

    Args:
        weigh: weigh(frames of a window, visits) -> the weights of its frames; only the last window can have two visits.
        merge: merge(parts) -> the value of a frame from the (weight, result) pairs of its windows, in order.
    """

    weigh: Callable[[int, int], list[int]]
    merge: Callable[[list[tuple[int, Tensor]]], Tensor]


def _crossfaded(parts: list[tuple[int, Tensor]]) -> Tensor:
    """Return the weighted mean; a single part is returned unchanged."""
    if len(parts) == 1:
        return parts[0][1]
    total = sum(weight for weight, _ in parts)
    return sum(value * (weight / total) for weight, value in parts)


def _averaged(parts: list[tuple[int, Tensor]]) -> Tensor:
    """Return 0.5 old + 0.5 new for each visit after the first one; weights are numbers of visits."""
    out = parts[0][1]
    for visits, value in parts[1:]:
        share = 0.5**visits
        out = out * share + value * (1 - share)
    return out


CROSSFADE = Blend(lambda frames, visits: hat(frames).int().tolist(), _crossfaded)  # triangular weights
AVERAGE = Blend(lambda frames, visits: [visits] * frames, _averaged)  # released Upscale-A-Video, see `ldm.ops.windows`


def is_weighted(pair: object) -> bool:
    """Whether an object of a saved state, which is not trusted, is a (weight, result) pair."""
    return isinstance(pair, tuple) and tuple(map(type, pair)) == (int, Tensor) and pair[0] > 0
