"""GroupNorm with statistics of the whole frame, for networks that process a frame in tiles."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ldm.nets.layers import PIXELS, group_moments
from ldm.ops.finite import checked_finite
from ldm.ops.tiling import Patch


class StatisticsMissing(Exception):
    """Raised when a norm has accumulated statistics of this tile but still lacks those of the others."""


class FrameNorms:
    """Mean and standard deviation of whole frames for each norm, frame and group, accumulated tile by tile.

    Within `installed`, the norms of the network use these statistics. In functions made by `piecewise`, a norm without
    statistics accumulates sums over the core of the tile; `settle` converts the sums to statistics for later calls.
    Sums are float64, so that the order of the tiles does not matter.

    Args:
        net: the network whose GroupNorms these are.
    """

    def __init__(self, net: nn.Module) -> None:
        self._norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
        self._known: dict[tuple[nn.Module, int], Tensor] = {}  # (2, groups): mean, 1 / deviation
        self._sums: dict[tuple[nn.Module, int], Tensor] = {}  # (3, groups) float64: count, sum, sum of squares
        self._frames: Sequence[int] = ()
        self._patch: Patch | None = None
        self._wait = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the norms of the network; they are unchanged outside functions made by `piecewise`."""
        for norm in self._norms:
            norm.forward = partial(self._normalise, norm)
        try:
            yield
        finally:
            for norm in self._norms:
                del norm.forward

    def piecewise(self, fn: Callable, frames: Sequence[int], *, wait: bool) -> Callable:
        """Turn fn(*maps) into a function (*maps, patch) whose norms use or accumulate statistics.

        Args:
            fn: calls the network with some frames of the clip, one row each.
            frames: numbers of these frames.
            wait: return None at a norm without statistics; otherwise it uses those of the tile.
        """

        def run(*maps_and_patch):
            *maps, self._patch = maps_and_patch
            self._frames, self._wait = frames, wait
            try:
                return fn(*maps)
            except StatisticsMissing:
                return None
            finally:
                self._patch = None

        return run

    def settle(self) -> bool:
        """Convert accumulated sums to statistics; return False if there are none.

        Raises FloatingPointError if they are not finite.
        """
        for (norm, frame), sums in self._sums.items():
            count, total, squares = sums
            mean = total / count
            deviation = (squares / count - mean**2).clamp_min(0).add(norm.eps).sqrt()
            checked_finite(deviation, partial(_not_finite, frame))
            self._known[norm, frame] = torch.stack([mean, 1 / deviation])
        counted = bool(self._sums)
        self._sums.clear()
        return counted

    def _normalise(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Replacement for the forward method of a norm."""
        if self._patch is None:
            return type(norm).forward(norm, x)
        known = [self._known.get((norm, frame)) for frame in self._frames]
        if all(statistics is not None for statistics in known):
            return _affine(norm, x, torch.stack(known))
        for frame, row in zip(self._frames, self._patch.core_of(x), strict=True):
            self._sums[norm, frame] = self._sums.get((norm, frame), 0) + _moments(row, norm.num_groups)
        if self._wait:
            raise StatisticsMissing
        return type(norm).forward(norm, x)


def _not_finite(frame: int) -> str:
    return f"the maps of frame {frame} are not finite; use float32, or check the input"


def _moments(x: Tensor, groups: int) -> Tensor:
    """Return count, sum and sum of squares for each group of a map (c, h, w): (3, groups) float64."""
    if x.device.type != "cpu" or x.stride(0) != 1:
        variance, mean = torch.var_mean(x.float().unflatten(0, (groups, -1)), dim=(1, 2, 3), correction=0)
        return _sums(mean, variance, x.numel() // groups)
    pieces = x.split(max(1, PIXELS // x.shape[2]), dim=1)  # channels last: small copies, then a fast kernel
    parts = ((p, group_moments(p.permute(1, 2, 0).reshape(1, -1, len(p)), groups)) for p in pieces)
    return sum(_sums(mean[0], variance[0], p.numel() // groups) for p, (mean, variance) in parts)


def _sums(mean: Tensor, variance: Tensor, count: int) -> Tensor:
    """Return (3, groups) float64: count, sum, sum of squares."""
    mean, variance = mean.double(), variance.double()
    return torch.stack([torch.full_like(mean, count), mean * count, (variance + mean**2) * count])


def _affine(norm: nn.GroupNorm, x: Tensor, statistics: Tensor) -> Tensor:
    """Normalise x (n, c, h, w) by statistics (n, 2, groups) in float32; the result has the dtype of x."""
    mean, inverse = (s.repeat_interleave(x.shape[1] // norm.num_groups, 1) for s in statistics.unbind(1))  # (n, c)
    scale = norm.weight.double() * inverse
    shift = norm.bias.double() - mean * scale
    scale, shift = (s.float()[:, :, None, None] for s in (scale, shift))
    return torch.addcmul(shift, x.float(), scale).to(x.dtype)
