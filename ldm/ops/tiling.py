"""Tiling over time, height and width, for the denoiser and the autoencoders.

`tiled` blends overlapping tiles. `pasted` joins tiles without overlap, each computed with a halo around it; if the
receptive field of the function lies within the halo, the result equals that of the whole input.
"""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.ops.finite import checked_finite

_log = logging.getLogger(__name__)

_Window = Callable[[int, int, int], Tensor]
_KEPT = 2**25  # bytes of the weights of tiles that are kept for further calls


class Tile(NamedTuple):
    """The position of a tile: slices of the frames, rows and columns of the first tensor."""

    t: slice
    y: slice
    x: slice

    def __str__(self) -> str:
        parts = zip(("frames", "rows", "columns"), self, strict=True)
        return ", ".join(f"{name} {part.start}..{part.stop - 1}" for name, part in parts)


def starts(size: int, tile: int, overlap: int, *, offset: int = 0) -> list[int]:
    """Return the first elements of tiles that cover [0, size); the last tile is aligned with the end, as released.

    With an `offset` the second tile starts there, and the others follow at the usual distance. Raises ValueError unless
    0 <= overlap < tile and 0 <= offset <= tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"got overlap {overlap} for a tile of {tile}, expected 0 to {tile - 1}")
    if tile >= size:
        return [0]
    if not 0 <= offset <= tile:
        raise ValueError(f"got offset {offset} for a tile of {tile}, expected 0 to {tile}")
    return [*([0] if offset else []), *range(offset, size - tile, tile - overlap), size - tile]


def splitter_starts(size: int, patch: int, stride: int) -> list[int]:
    """Return the first elements of patches as in the released image splitter (ImageSpliterTh).

    Patches start every `stride` elements until one starts beyond the end; those that exceed the end are moved inside.
    Unlike in `starts`, the last two patches may be almost equal.
    """
    if patch >= size:
        return [0]
    return sorted({min(first, size - patch) for first in range(0, size, stride)})


def hat(count: int) -> Tensor:
    """Return triangular weights (count,) float64, 1, 2, ... and down again, to blend windows of frames."""
    up = torch.arange(1, count + 1, dtype=torch.float64)
    return torch.minimum(up, up.flip(0))


def _bell(count: int, centre: float) -> Tensor:
    """Return a Gaussian (count,) float64 of deviation count / 10 around `centre`, scaled as released."""
    distance = (torch.arange(count, dtype=torch.float64) - centre) / count
    return torch.exp(-(distance**2) / 0.02) / (2 * torch.pi * 0.01) ** 0.5


def flat_window(t: int, h: int, w: int) -> Tensor:
    """Return weights (t, h, w) float64: triangular over frames, constant within a frame."""
    return hat(t)[:, None, None].expand(t, h, w)


def gaussian_window(t: int, h: int, w: int) -> Tensor:
    """Return weights (t, h, w) float64: triangular over frames, a symmetric Gaussian within a frame."""
    return hat(t)[:, None, None] * _bell(h, (h - 1) / 2)[:, None] * _bell(w, (w - 1) / 2)


def released_gaussian_window(t: int, h: int, w: int) -> Tensor:
    """As `gaussian_window`, but centred at h/2 in y as released (bug B21); at most 15.9 for one frame."""
    return hat(t)[:, None, None] * _bell(h, h / 2)[:, None] * _bell(w, (w - 1) / 2)


def _scaled(tile: Tile, scale: tuple[Fraction, ...]) -> tuple[slice, ...]:
    """Return the slices of a tile on a grid `scale` times as fine. Raises ValueError for fractional slices."""
    cut = []
    for part, factor in zip(tile, scale, strict=True):
        first, last = part.start * factor, part.stop * factor
        if first.denominator > 1 or last.denominator > 1:
            raise ValueError(f"got a tile at {tile}, not cuttable in a tensor {factor} as large; align tiles")
        cut.append(slice(int(first), int(last)))
    return tuple(cut)


def _grid_of(x: Tensor) -> tuple[int, int, int]:
    """Return frames, rows and columns of (B, T, C, H, W)."""
    return x.shape[1], x.shape[3], x.shape[4]


def _cut(x: Tensor, tile: Tile, scale: tuple[Fraction, ...]) -> Tensor:
    """Return a view of a tile in (B, T, C, H, W)."""
    t, rows, columns = _scaled(tile, scale)
    return x[:, t, :, rows, columns]


def _relative_scale(x: Tensor, first: Tensor) -> tuple[Fraction, ...]:
    """Return the size of x's grid relative to the first tensor. Raises ValueError if clips or frames differ."""
    if x.ndim != 5 or x.shape[:2] != first.shape[:2]:
        shapes = f"{tuple(first.shape)} and {tuple(x.shape)}"
        raise ValueError(f"got tensors {shapes}, expected (B, T, C, H, W) with the same B and T")
    return tuple(Fraction(a, b) for a, b in zip(_grid_of(x), _grid_of(first), strict=True))


def _overlap_of(a: Tile, b: Tile) -> Tile | None:
    """Return the intersection of two tiles, or None."""
    parts = [slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True)]
    return Tile(*parts) if all(p.start < p.stop for p in parts) else None


def _share(tile: Tile, tiles: list[Tile], scale: tuple[Fraction, ...], weights: Tensor) -> Tensor:
    """Return the normalised weights of a tile, (t, 1, h, w) float64, at the scale of the result.

    The weights of all tiles sum to 1. `weights` is the window of all tiles at that scale. The sum is computed for each
    tile separately, so that no map of the full size is needed.
    """
    total = torch.zeros_like(weights)
    for other in tiles:
        common = _overlap_of(tile, other)
        if common is None:
            continue
        inside, there, origins = _scaled(common, scale), _scaled(other, scale), _scaled(tile, scale)
        into = tuple(slice(c.start - o.start, c.stop - o.start) for c, o in zip(inside, origins, strict=True))
        out_of = tuple(slice(c.start - o.start, c.stop - o.start) for c, o in zip(inside, there, strict=True))
        total[into] += weights[out_of]
    return (weights / total)[:, None]


def _assert_tile_finite(out: Tensor, tile: "Tile | Patch") -> None:
    """Raise FloatingPointError with the position of the tile if `out` is not finite."""
    checked_finite(out, lambda: f"the tile at {tile} is not finite; use float32, or check the input there")


class _Shares:
    """The normalised weights of tiles (`_share`), kept on the device of the results while they are small."""

    def __init__(self, window: _Window) -> None:
        self.window, self.known, self.bytes = window, {}, 0

    def __call__(self, k: int, tiles: list[Tile], value: Tensor, out: Tensor) -> Tensor:
        """Return the weights of the result `value` of tile k, in the dtype of `out`."""
        key = (k, _grid_of(value), _grid_of(out), out.dtype, out.device)
        if key in self.known:
            return self.known[key]
        weights = _positive(self.window(*_grid_of(value)).double())
        share = _share(tiles[k], tiles, _value_scale(value, tiles[k]), weights).to(out)
        if self.bytes + share.nbytes <= _KEPT:
            self.known[key] = share
            self.bytes += share.nbytes
        return share


def tiled(
    fn: Callable[..., Tensor],
    *,
    tile: tuple[int, int, int],
    overlap: tuple[int, int, int],
    window: _Window = gaussian_window,
    batch: int = 1,
    starts: Callable[[int, int, int], list[int]] = starts,
) -> Callable[..., Tensor]:
    """Return a function that applies `fn` to overlapping tiles of (frames, rows, columns) and blends the results.

    The result is called as run(*tensors, **others). Tensors (B, T, C, H, W) are cut at the same positions, scaled for
    finer or coarser grids than that of the first. `fn(*tiles_of_tensors, tiles=[...], **others)` receives up to `batch`
    tiles stacked along dimension 0 (the B rows of the first tile, then of the second ...) and returns
    (n B, t, C', h s, w s) for any scale s. The blended result is (B, T, C', H s, W s) in the dtype of the first tensor.
    Tiles advance along rows, then columns, then frames. Tiles are limited to the size of the tensor; a single tile is
    not blended.

    Raises ValueError for shapes that do not match; FloatingPointError with the tile if a result is not finite.
    """
    if batch < 1 or min(tile) < 1:
        raise ValueError(f"got tile {tile} and batch {batch}, expected at least 1 each")
    shares = _Shares(window)

    def run(*tensors: Tensor, **others) -> Tensor:
        first = tensors[0]
        tiles, out = _tiles_over(_grid_of(first), tile, overlap, starts), None
        scales = [_relative_scale(x, first) for x in tensors]
        for k in range(0, len(tiles), batch):
            group = tiles[k : k + batch]
            try:
                values = fn(*_cut_group(tensors, scales, group), tiles=group, **others)
            except (RuntimeError, ValueError, FloatingPointError):
                _log.error("failed in the tile at %s", "; ".join(map(str, group)))
                raise
            _check_values(values, group, rows=len(first))
            if len(tiles) == 1:
                return values.to(first.dtype)
            for i, value in enumerate(values.split(len(first)), start=k):
                scale = _value_scale(value, tiles[i])
                out = _empty_result(value, first, scale) if out is None else out
                _cut(out, tiles[i], scale).add_(value * shares(i, tiles, value, out))
        return out.to(first.dtype)

    return run


def _tiles_over(
    size: tuple[int, int, int],
    tile: tuple[int, int, int],
    overlap: tuple[int, int, int],
    starts: Callable[[int, int, int], list[int]],
) -> list[Tile]:
    """Return tiles that cover a grid of frames, rows and columns, in the order of computation."""
    slices = []
    for length, side, shared in zip(size, tile, overlap, strict=True):
        side_here = min(side, length)
        slices.append([slice(k, k + side_here) for k in starts(length, side, shared)])
    return [Tile(t, y, x) for t, x, y in itertools.product(slices[0], slices[2], slices[1])]


def _positive(weights: Tensor) -> Tensor:
    """Return the weights. Raises ValueError unless all are positive."""
    if not (weights > 0).all():
        raise ValueError("got a window with a weight of 0 or less, expected all above 0")
    return weights


def _value_scale(value: Tensor, place: Tile) -> tuple[Fraction, ...]:
    """Return the size of a result relative to its tile."""
    return tuple(Fraction(n, part.stop - part.start) for n, part in zip(_grid_of(value), place, strict=True))


def _empty_result(value: Tensor, first: Tensor, scale: tuple[Fraction, ...]) -> Tensor:
    """Return zeros (B, T, C', H s, W s) of at least float32, to which tiles are added."""
    frames, h, w = (int(n * s) for n, s in zip(_grid_of(first), scale, strict=True))
    dtype = torch.promote_types(first.dtype, torch.float32)
    return torch.zeros(len(first), frames, value.shape[2], h, w, dtype=dtype, device=value.device)


def _cut_group(tensors: tuple[Tensor, ...], scales: list[tuple[Fraction, ...]], group: list[Tile]) -> list[Tensor]:
    """Cut the tiles of a group out of each tensor and stack them along dimension 0."""
    pieces = [[_cut(x, tile, scale) for tile in group] for x, scale in zip(tensors, scales, strict=True)]
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in pieces]


def _check_values(values: Tensor, group: list[Tile], *, rows: int) -> None:
    """Raise ValueError for a wrong shape, FloatingPointError with the tile for a result that is not finite."""
    count, frames = rows * len(group), group[0].t.stop - group[0].t.start
    if values.ndim != 5 or tuple(values.shape[:2]) != (count, frames):
        raise ValueError(f"got a result {tuple(values.shape)} for the tile, expected ({count}, {frames}, C, h, w)")
    for tile, value in zip(group, values.split(rows), strict=True):
        _assert_tile_finite(value, tile)


class Patch(NamedTuple):
    """A tile with a halo on a grid of rows and columns: results for `core` are computed from `cut`.

    Both are slices of the grid. `cut` is `core` plus the halo, limited to the grid.
    """

    core: tuple[slice, slice]
    cut: tuple[slice, slice]

    def __str__(self) -> str:
        names = zip(("rows", "columns"), self.core, strict=True)
        return ", ".join(f"{name} {part.start}..{part.stop - 1}" for name, part in names)

    def of(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return a view of the cut in x (..., H, W), whose grid is a multiple of `size`."""
        return _at(self.cut, x, size)

    def place_in(self, out: Tensor, size: tuple[int, int]) -> Tensor:
        """Return a view of the core in a full map (..., H, W), whose grid is a multiple of `size`."""
        return _at(self.core, out, size)

    def core_of(self, value: Tensor) -> Tensor:
        """Return a view of the core in a map (..., h, w) of the cut."""
        inside = [slice(a.start - b.start, a.stop - b.start) for a, b in zip(self.core, self.cut, strict=True)]
        return _at(inside, value, [part.stop - part.start for part in self.cut])


def _at(parts: Sequence[slice], x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the view of x (..., H, W) for slices of a grid of `size`. Raises ValueError unless x is a multiple."""
    scales = [_ratio(length, of) for length, of in zip(x.shape[-2:], size, strict=True)]
    rows, columns = (slice(p.start * k, p.stop * k) for p, k in zip(parts, scales, strict=True))
    return x[..., rows, columns]


def _ratio(length: int, of: int) -> int:
    """Return length / of. Raises ValueError unless it is an integer of at least 1."""
    if length < of or length % of:
        raise ValueError(f"got a side of {length} over a grid of {of}, expected a whole multiple")
    return length // of


def _sides(length: int, tile: int, halo: int) -> list[tuple[slice, slice]]:
    """Return (core, cut) pairs along one dimension: the smallest number of almost equal cuts within `tile`.

    The first and the last cut have one halo, the others two: n cuts of t cover n t - 2 (n - 1) halo.
    """
    if length <= tile:
        return [(slice(0, length), slice(0, length))]
    if length > 2 * (tile - halo) and tile <= 2 * halo:
        raise ValueError(f"got tile {tile} for a halo of {halo} on each side, expected at least {2 * halo + 1}")
    between = max(length - 2 * (tile - halo), 0)
    count = 2 + (math.ceil(between / (tile - 2 * halo)) if between else 0)
    side = math.ceil((length + 2 * halo * (count - 1)) / count)
    edges = [0, *(k * (side - 2 * halo) + halo for k in range(1, count)), length]
    cores = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [(core, slice(max(core.start - halo, 0), min(core.stop + halo, length))) for core in cores]


def patches(size: tuple[int, int], *, tile: int, halo: int) -> list[Patch]:
    """Return patches whose cores cover a grid of `size` once; cuts have sides of at most `tile`, halo included.

    Raises ValueError if the halo leaves no core in a tile.
    """
    rows, columns = (_sides(length, tile, halo) for length in size)
    return [Patch((y[0], x[0]), (y[1], x[1])) for y, x in itertools.product(rows, columns)]


def pasted(
    fn: Callable[..., Sequence[Tensor] | None],
    maps: Sequence[Tensor],
    *,
    size: tuple[int, int],
    grid: Sequence[Patch],
    out: Sequence[Tensor] | None = None,
) -> list[Tensor] | None:
    """Call fn(*cuts, patch) for each patch of a grid of `size` and join the cores of its results.

    Args:
        fn: maps cuts to any number of results (n, c, h s, w s), each at an integer scale s of the cut. A result that is
            one of the cuts itself stands for the unchanged map. If fn returns None for all patches, so does `pasted`.
        maps: (n, c, H, W) over the grid of `size`; scales may differ.
        grid: the patches, from `patches`.
        out: maps to write to, for example `maps` if fn reads only the core; None allocates new maps.

    Raises FloatingPointError with the patch if a result is not finite.
    """
    joined = None
    for patch in grid:
        cuts = [patch.of(x, size) for x in maps]
        values = fn(*cuts, patch)
        if values is None:
            continue
        same = [next((k for k, cut in enumerate(cuts) if value is cut), None) for value in values]
        if joined is None:
            joined = [
                maps[k] if k is not None else _empty_map(value, patch, size) if out is None else out[i]
                for i, (value, k) in enumerate(zip(values, same, strict=True))
            ]
        for target, value, k in zip(joined, values, same, strict=True):
            if k is None:
                core = patch.core_of(value)
                # NaN and infinity make the sum non-finite; the sum needs no second map
                _assert_tile_finite(core.sum(dtype=torch.promote_types(core.dtype, torch.float32)), patch)
                patch.place_in(target, size).copy_(core)
    return joined


def _empty_map(value: Tensor, patch: Patch, size: tuple[int, int]) -> Tensor:
    """Allocate a map (n, c, H s, W s) with the dtype and memory format of a result."""
    sides = [_ratio(n, part.stop - part.start) * length
             for n, part, length in zip(value.shape[-2:], patch.cut, size, strict=True)]  # fmt: skip
    last = not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(*value.shape[:2], *sides, dtype=value.dtype, device=value.device, memory_format=layout)
