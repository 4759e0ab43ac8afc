"""What can be chosen about a method: windows and tiles, sampling, decoding, the released outer cut."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ldm.diffusion.denoiser import make_denoise
from ldm.diffusion.guidance import MotionGuidance
from ldm.diffusion.samplers import ddim_step, ddpm_step
from ldm.diffusion.schedule import Schedule
from ldm.nets.whole_frame import HOLD, Cut
from ldm.ops import tiling
from ldm.ops.color import adain_color_fix, wavelet_color_fix
from ldm.ops.flow import Motion

BUILDABLE = ("Windows", "Sampling", "Decoding", "Patches")  # what a configuration may name as a target

TILE_STEP = 8  # fitted tiles are multiples of this, which the U-Net's levels divide
COLOR_FIXES = {"adain": adain_color_fix, "wavelet": wavelet_color_fix, "nofix": lambda content, style: content}
NORMS = ("auto", "frame", "shared", "tile")
WEIGHTS = {
    "gaussian": tiling.gaussian_window,
    "released": tiling.released_gaussian_window,
    "flat": tiling.flat_window,
}


def choose(table: Mapping, word: str, what: str):
    """`table[word]`, or ValueError naming what was expected."""
    if word not in table:
        raise ValueError(f"got {what} {word!r}, expected one of {', '.join(map(str, table))}")
    return table[word]


@dataclass(frozen=True)
class Windows:
    """How frames and latent tiles overlap, in frames and latent pixels; `batch` of them are one call of a network.

    `weight` names the blend: "gaussian", "flat", or "released" (not symmetric in y, B21). With `fit`, tiles are only as
    large as it takes to cover the latents with as many of them; without, all are `tile` wide, as released. A new scene
    starts where more than the part `scene_cut` of the pixels has no match in the neighbouring frame, seen from either;
    nothing is blended, guided or decoded across it. None: never.
    """

    n_frames: int = 5
    frame_overlap: int = 2
    tile: int = 64
    tile_overlap: int = 32
    weight: str = "gaussian"
    fit: bool = True
    batch: int = 1
    scene_cut: float | None = 0.85

    def __post_init__(self):
        choose(WEIGHTS, self.weight, "window weight")
        sizes = ("frame", self.frame_overlap, self.n_frames), ("tile", self.tile_overlap, self.tile)
        for name, overlap, size in sizes:
            if not 0 <= overlap < size:
                raise ValueError(f"got {name}_overlap={overlap} for windows of {size}, expected 0 to {size - 1}")
        if self.scene_cut is not None and not 0 < self.scene_cut < 1:
            raise ValueError(f"got scene_cut {self.scene_cut}, expected a part between 0 and 1, or null")

    def side(self, length: int) -> int:
        """The side of the tiles along latents of this length."""
        if not self.fit or length <= self.tile:
            return self.tile
        count = len(tiling.starts(length, self.tile, self.tile_overlap))
        least = math.ceil((length + (count - 1) * self.tile_overlap) / count)
        return min(self.tile, math.ceil(least / TILE_STEP) * TILE_STEP)

    def over(self, fn: Callable[..., Tensor], size: tuple[int, int]) -> Callable[..., Tensor]:
        """`fn` on the tiles of one window of latents of `size`; see `ldm.ops.tiling.tiled`."""
        return tiling.tiled(
            fn,
            tile=(self.n_frames, self.side(size[0]), self.side(size[1])),
            overlap=(0, self.tile_overlap, self.tile_overlap),
            window=WEIGHTS[self.weight],
            batch=self.batch,
        )

    def calls(self, frames: int, h: int, w: int) -> int:
        """How often the network is called for latents of this size."""
        frame_starts = tiling.starts(frames, self.n_frames, self.frame_overlap)
        sides = [len(tiling.starts(length, self.side(length), self.tile_overlap)) for length in (h, w)]
        return len(frame_starts) * math.ceil(sides[0] * sides[1] / self.batch)


@dataclass(frozen=True)
class Patches:
    """The released script's outer cut: segments of `n_frames` without overlap, image patches of `size` pixels every
    `stride`, each restored on its own with the same noise, averaged where they overlap (B25, B27).
    """

    n_frames: int = 5
    size: int = 960
    stride: int = 750

    def __post_init__(self):
        if not 0 < self.stride <= self.size:
            raise ValueError(f"got patch size {self.size} and stride {self.stride}, expected 0 < stride <= size")

    def whole_segment(self, frames: Tensor) -> Tensor:
        """(B, T, ...) with the last frame repeated up to `n_frames`."""
        repeated = frames[:, -1:].expand(-1, self.n_frames - frames.shape[1], *frames.shape[2:])
        return torch.cat([frames, repeated], dim=1)

    def count(self, h: int, w: int) -> int:
        """How many patches a frame of this size has."""
        return math.prod(len(tiling.splitter_starts(side, self.size, self.stride)) for side in (h, w))

    def over(self, fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`fn` on each segment and patch."""

        def starts(length: int, tile: int, overlap: int) -> list[int]:
            return tiling.splitter_starts(length, tile, tile - overlap)

        overlap = self.size - self.stride
        tile = (self.n_frames, self.size, self.size)
        return tiling.tiled(fn, tile=tile, overlap=(0, overlap, overlap), window=tiling.flat_window, starts=starts)


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn. `guidance` is "paper", "released" or "none"; `guidance_scale` null takes the form's own.

    `prediction` is what the U-Net was trained for (eps, v or x0); `arithmetic` "released" respaces in float32.
    """

    steps: int = 50
    sampler: str = "ddpm"
    prediction: str = "eps"
    guidance: str = "paper"
    guidance_scale: float | None = None
    arithmetic: str = "float64"
    full: Schedule = field(default_factory=Schedule.linear_sd)

    def __post_init__(self):
        choose({"ddpm": 1, "ddim": 1}, self.sampler, "sampler")
        choose({"paper": 1, "released": 1, "none": 1}, self.guidance, "guidance")
        choose({"eps": 1, "v": 1, "x0": 1}, self.prediction, "prediction")
        len(self.schedule)  # a wrong number of steps shows here

    @cached_property
    def schedule(self) -> Schedule:
        """The steps that are taken."""
        return self.full.respaced(self.steps, arithmetic=self.arithmetic)

    @property
    def reach(self) -> int:
        """Frames before and after one that its guidance looks at."""
        return {"paper": 1, "released": 2, "none": 0}[self.guidance]

    def start(self, z: Tensor, noise: Tensor) -> Tensor:
        """x_T from the LR latents z: noised to the last step of the full schedule."""
        return self.full.add_noise(z, noise, len(self.full) - 1)

    def step(
        self, predict: Callable[[Tensor, int], Tensor], x: Tensor, i: int, *, noise: Callable[[int], Tensor]
    ) -> Tensor:
        """x_{i-1} from x_i; predict(x, t) is the U-Net at the time step t it was trained with."""
        x0 = make_denoise(predict, self.schedule, kind=self.prediction)(x, i)
        step = ddpm_step if self.sampler == "ddpm" else ddim_step
        return step(x0, x, i, self.schedule, noise=noise)

    def guide(self, x: Tensor, i: int, motion: Motion) -> Tensor:
        """x_i pulled towards the motion."""
        return MotionGuidance(motion, self.schedule, form=self.guidance, scale=self.guidance_scale)(x, i)


@dataclass(frozen=True)
class Decoding:
    """How frames become latents and latents frames: `dec_w` weighs the LR features, `color_fix` is adain, wavelet or
    nofix.

    `norms` says what the autoencoders' norms see of a frame that is cut: "frame", all of it, which is exact;
    "shared", the same approximate statistics for all tiles; "tile", each its own, blended where tiles overlap; or
    "auto": "frame" where the maps of a window take at most `hold` bytes, otherwise "shared" (`ldm.nets.whole_frame`).
    Their attention sees the whole frame, or, which is approximate, tiles of `attention` latent pixels.
    """

    windows: Windows = Windows(tile=120, tile_overlap=24)
    dec_w: float = 1.0
    color_fix: str = "adain"
    norms: str = "tile"
    attention: int = 0
    hold: int = HOLD

    def __post_init__(self):
        choose(COLOR_FIXES, self.color_fix, "color_fix")
        choose(dict.fromkeys(NORMS), self.norms, "norms")
        if min(self.hold, self.attention) < 0:
            raise ValueError(f"got hold {self.hold} and attention {self.attention}, expected 0 or more")

    def cut(self, largest: int) -> Cut | None:
        """How latents are cut whose largest map takes `largest` bytes a window; None: into blended tiles."""
        norms = self.norms
        if norms == "auto":
            norms = "frame" if largest <= self.hold else "shared"
        if norms == "tile":
            return None
        return Cut(self.windows.tile, norms, self.attention, self.hold)
