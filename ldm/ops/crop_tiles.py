"""The tiles of the released Upscale-A-Video script: crops with a margin, put side by side without blending."""

import itertools
import math

from ldm.ops.tiling import Patch

MARGIN = 64  # low-resolution pixels on every side
AREA = 384 * 384  # of a frame from which the released script always tiles


def released_tiles(size: tuple[int, int], tile: int, *, margin: int = MARGIN) -> list[Patch]:
    """Patches over a frame of `size` (h, w), row by row; the last of an axis extends to the border.

    One tile fewer where its margin reaches the border anyway. The released script then has no tile at all for sides of
    64 pixels or fewer, and returns grey (quirk U3); here such a side has one. For tiles that are blended see
    `ldm.ops.tiling.tiled`. Raises ValueError for an empty tile or frame.
    """
    if tile < 1 or min(size) < 1 or margin < 0:
        raise ValueError(f"got tiles of {tile} with a margin of {margin} for {tuple(size)}, expected at least 1 pixel")
    sides = [_sides(length, tile, margin) for length in size]
    return [Patch((y[0], x[0]), (y[1], x[1])) for y, x in itertools.product(*sides)]


def _sides(length: int, tile: int, margin: int) -> list[tuple[slice, slice]]:
    """(core, cut) along one axis."""
    count = math.ceil(length / tile)
    if count > 1 and (count - 1) * tile + margin >= length:
        count -= 1
    cores = [slice(k * tile, length if k == count - 1 else (k + 1) * tile) for k in range(count)]
    return [(core, slice(max(core.start - margin, 0), min(core.stop + margin, length))) for core in cores]
