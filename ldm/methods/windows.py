"""Windows of frames and tiles of latents that several methods share, and how tiles are reduced to save memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from torch import Tensor

from ldm.methods.words import choose
from ldm.ops import tiling
from ldm.streaming.steps import WindowPlaces

BUILDABLE = ("Windows",)
TILE_STEP = 8  # fitted tiles are multiples of this, which the U-Net's levels divide
MIN_TILE = 16  # latent pixels; smaller tiles are nearly all overlap
WEIGHTS = {
    "gaussian": tiling.gaussian_window,
    "released": tiling.released_gaussian_window,
    "flat": tiling.flat_window,
}


@dataclass(frozen=True)
class Windows:
    """Overlapping windows of frames and tiles of latents.

    Args:
        n_frames: frames of a window.
        frame_overlap: frames that consecutive windows share, limited to `n_frames` - 1.
        sharing_steps: number of sampling steps, counted from the last, in which the denoiser's windows share frames; in
            those before, every frame is denoised once. None for all steps.
        alternate: let the denoiser's windows of every other sampling step start half their distance later, so that no
            two steps in a row meet at the same frames.
        tile: side of a tile in latent pixels.
        tile_overlap: latent pixels that neighbouring tiles share.
        tile_stride: distance between tiles in latent pixels, instead of `tile_overlap`.
        weight: blending weights of overlapping tiles: "gaussian", "flat", or "released" (asymmetric in y, B21).
        fit: reduce tiles to the smallest size that covers the latents with the same number of tiles; otherwise all
            have `tile` pixels a side, as released.
        batch: number of tiles in one network call.
        scene_cut: a scene ends if more than this fraction of the pixels has no match in the neighbouring frame, in both
            directions. Nothing is blended, guided or decoded across the end. None disables the detection.

    Raises ValueError for an unknown word or inconsistent sizes.
    """

    n_frames: int = 5
    frame_overlap: int = 2
    tile: int = 64
    tile_overlap: int = 32
    weight: str = "gaussian"
    fit: bool = True
    batch: int = 1
    scene_cut: float | None = 0.85
    tile_stride: int | None = None
    alternate: bool = False
    sharing_steps: int | None = None

    def __post_init__(self):
        choose(WEIGHTS, self.weight, "window weight")
        if self.tile_stride is not None:
            if not 0 < self.tile_stride <= self.tile:
                raise ValueError(f"got tiles of {self.tile} every {self.tile_stride}, expected 0 < stride <= tile")
            object.__setattr__(self, "tile_overlap", self.tile - self.tile_stride)
        if self.n_frames < 1 or self.frame_overlap < 0:
            got = f"n_frames={self.n_frames} and frame_overlap={self.frame_overlap}"
            raise ValueError(f"got {got}, expected at least 1 and 0")
        if self.sharing_steps is not None and self.sharing_steps < 0:
            raise ValueError(f"got sharing_steps {self.sharing_steps}, expected 0 or more, or null")
        object.__setattr__(self, "frame_overlap", min(self.frame_overlap, self.n_frames - 1))
        if not 0 <= self.tile_overlap < self.tile:
            got = f"tile_overlap={self.tile_overlap} for tiles of {self.tile}"
            raise ValueError(f"got {got}, expected 0 to {self.tile - 1}")
        if self.scene_cut is not None and not 0 < self.scene_cut < 1:
            raise ValueError(f"got scene_cut {self.scene_cut}, expected a fraction between 0 and 1, or null")

    def side(self, length: int) -> int:
        """Return the side of the tiles along a dimension of this length."""
        if not self.fit or length <= self.tile:
            return self.tile
        count = len(tiling.starts(length, self.tile, self.tile_overlap))
        least = math.ceil((length + (count - 1) * self.tile_overlap) / count)
        return min(self.tile, math.ceil(least / TILE_STEP) * TILE_STEP)

    def with_tiles(self, tile: int, overlap: int) -> "Windows":
        """Return the same windows with tiles of this side that share `overlap` latent pixels."""
        return replace(self, tile=tile, tile_overlap=overlap, tile_stride=None)

    def over(self, fn: Callable[..., Tensor], size: tuple[int, int]) -> Callable[..., Tensor]:
        """Return `fn` applied to the tiles of a window of latents of `size`; see `ldm.ops.tiling.tiled`."""
        return tiling.tiled(
            fn,
            tile=(self.n_frames, self.side(size[0]), self.side(size[1])),
            overlap=(0, self.tile_overlap, self.tile_overlap),
            window=WEIGHTS[self.weight],
            batch=self.batch,
        )

    def frame_starts(self, frames: int, step: int = 0) -> list[int]:
        """Return the first frames of the windows of a scene in a sampling step."""
        places = self.places
        return tiling.starts(frames, places.size, places.overlap_of(step), offset=places.offset_of(step))

    @property
    def places(self) -> WindowPlaces:
        """Where the denoiser's windows of frames start in each sampling step."""
        return WindowPlaces(self.n_frames, self.frame_overlap, self.sharing_steps, self.alternate)

    def calls(self, frames: int, h: int, w: int, *, steps: int = 1) -> int:
        """Return the number of network calls for latents of this size, over so many steps."""
        windows = sum(len(self.frame_starts(frames, step)) for step in range(steps))
        sides = [len(tiling.starts(length, self.side(length), self.tile_overlap)) for length in (h, w)]
        return windows * math.ceil(sides[0] * sides[1] / self.batch)


class Tiles(Protocol):
    """Levers with tiles of a denoiser and of a decoder, in latent pixels; a frozen dataclass."""

    tile: int
    tile_overlap: int
    decoder_tile: int
    decoder_overlap: int


AnyTiles = TypeVar("AnyTiles", bound=Tiles)


def smaller_tiles(levers: AnyTiles, *, step: int = TILE_STEP) -> Iterator[AnyTiles]:
    """Generate levers whose larger tile is halved once more each, down to `MIN_TILE`; sides are multiples of `step`."""
    while max(levers.tile, levers.decoder_tile) > MIN_TILE:
        side = max(max(levers.tile, levers.decoder_tile) // 2 // step * step, MIN_TILE, step)
        if levers.decoder_tile >= levers.tile:
            levers = replace(levers, decoder_tile=side, decoder_overlap=min(levers.decoder_overlap, side // 3))
        else:
            levers = replace(levers, tile=side, tile_overlap=min(levers.tile_overlap, side // 2))
        yield levers
