"""MGLD-VSR with the cuts of the released tiled script: segments without overlap and image patches."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldm.diffusion.noise import ReleasedNoise, sequential
from ldm.methods.contract import Costs, Progress, Request, no_progress
from ldm.methods.geometry import Geometry
from ldm.methods.mgld.levers import TileLevers
from ldm.methods.mgld.method import MGLD
from ldm.methods.mgld.restoration import FLOW_SCALE, Noise, Restoration
from ldm.methods.progress import Tally
from ldm.ops import tiling
from ldm.ops.flow import cut_motion, estimate_motion
from ldm.ops.padding import released_pad
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Each, Frame, Pipeline, Scenes, Windowed, stack

BUILDABLE = ("ReleasedMGLD",)
PAD = 32  # the released script pads frames to multiples of this


@dataclass(frozen=True)
class PatchLevers:
    """The patches of the released script; they do not adapt to memory."""

    n_frames: int
    patch: int
    stride: int

    def __str__(self) -> str:
        return f"segments of {self.n_frames} frames, patches of {self.patch} pixels every {self.stride}, as released"


@dataclass(frozen=True, kw_only=True)
class ReleasedMGLD(MGLD):
    """MGLD-VSR with segments and patches as in the released script (B25, B27).

    Segments have `n_frames` frames, do not overlap and ignore scene cuts. Image patches of `patch` pixels start every
    `stride` pixels (None: 25/32 of `patch`, the released ratio); each is restored separately with the same sequential
    noise, and overlaps are averaged. The last segment is extended by repeating the last frame.

    Raises ValueError for patches that the networks cannot downsample.
    """

    n_frames: int = 5
    patch: int = 960
    stride: int | None = 750

    def __post_init__(self):
        super().__post_init__()
        if self.stride is None:
            object.__setattr__(self, "stride", self.patch * 25 // 32)
        if not 0 < self.stride <= self.patch:
            raise ValueError(f"got patches of {self.patch} pixels every {self.stride}, expected 0 < stride <= patch")
        f, step = self.networks["autoencoder"].downsampling, self.networks["unet"].downsampling
        if self.patch % f or min(self.windows.tile, self.patch // f) % step:
            raise ValueError(f"got patches of {self.patch} pixels, expected a multiple of {f * step}")

    # ---- the contract

    def stream(self, request: Request, levers: PatchLevers | None = None, progress: Progress = no_progress) -> Pipeline:
        """Return a pipeline that restores a clip; see `ldm.methods.contract.Method.stream`."""
        geometry = self.geometry(request.size, request.upscale)
        tally = Tally(progress, self._released_calls(request.frames, geometry) if request.frames else {})
        restore = partial(self.restore_segment, geometry=geometry, seed=request.seed, tally=tally)
        stages = [
            Each(lambda frame: frame.put(picture=geometry.enlarge(frame["lq"])).without("lq")).with_label("enlarging"),
            Scenes(lambda before, frame: (False, frame)),
            Windowed(restore, size=self.n_frames, overlap=0, name="sr", flush=False).with_label("segments"),
            Each(lambda frame: frame.put(sr=geometry.finish(frame["sr"])).without("picture")).with_label("colours"),
        ]
        return Pipeline(stages, device=self.device)

    def find_scenes(self, request: Request) -> None:
        """Return None: segments continue across scene cuts."""

    def levers(self) -> list[PatchLevers]:
        """Return the only levers."""
        return [PatchLevers(self.n_frames, self.patch, self.stride)]

    def probes(self, levers: PatchLevers) -> dict[str, Callable[[int], int | None]]:
        """Return no probes: memory of the released script is not planned."""
        return {}

    def peak(self, request: Request, levers: PatchLevers, costs: Costs) -> None:
        """Return None: memory of the released script is not planned."""
        return None

    # ---- segments and patches

    @property
    def _uncut(self) -> TileLevers:
        """The tiles within a patch, as in the settings."""
        return MGLD.levers(self)[0]

    def geometry(self, size: tuple[int, int], upscale: float) -> Geometry:
        """Return the sizes for input frames of `size` (h, w), padded as released."""
        f = self.networks["autoencoder"].downsampling
        pad = partial(released_pad, multiple=PAD)
        return Geometry(size, upscale=upscale, min_size=self.min_size, pad=pad, downsampling=f)

    def restore_segment(self, frames: list[Frame], *, geometry: Geometry, seed: int, tally: Tally) -> Tensor:
        """Restore a segment of frames with values "picture" by patches -> (1, T, 3, H, W), about [-1, 1]."""
        pictures, count = stack(frames, "picture"), len(frames)
        repeated = pictures[:, -1:].expand(-1, self.n_frames - count, *pictures.shape[2:])
        pictures = torch.cat([pictures, repeated], dim=1)
        small = resize(pictures, tuple(side // FLOW_SCALE for side in pictures.shape[-2:]))
        motion = estimate_motion(self.networks["flow"], small, size=geometry.latent)

        def restore_patch(x: Tensor, *, tiles: list[tiling.Tile]) -> Tensor:
            f = self.networks["autoencoder"].downsampling
            run = self.segment_restoration(sequential(ReleasedNoise(seed), x.shape[1]), tally)
            z = run.latents(x, range(x.shape[1]), (x.shape[-2] // f, x.shape[-1] // f))
            return run.restore_encoded(z, x, cut_motion(motion, tiles[0], f))[1]

        out = self.over_patches(restore_patch)(pictures)
        return torch.cat([out[:, : count - 1], out[:, -1:]], dim=1)  # the last result of a repeated frame is used

    def segment_restoration(self, noise: Noise, tally: Tally) -> Restoration:
        """Return the operations on one patch of a segment, with noise such as that of `sequential`."""
        return Restoration(
            self.networks,
            codec=self.codec(self._uncut),
            sampling=self.sampling,
            windows=self.windows,
            noise=noise,
            tally=tally,
        )

    def over_patches(self, fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `fn` applied to each image patch of a segment; overlaps are averaged."""

        def starts(length: int, tile: int, overlap: int) -> list[int]:
            return tiling.splitter_starts(length, tile, tile - overlap)

        shared = self.patch - self.stride
        tile = (self.n_frames, self.patch, self.patch)
        return tiling.tiled(fn, tile=tile, overlap=(0, shared, shared), window=tiling.flat_window, starts=starts)

    def _released_calls(self, frames: int, geometry: Geometry) -> dict[str, int]:
        """Return the network calls by stage for so many frames."""
        f, segments = self.networks["autoencoder"].downsampling, math.ceil(frames / self.n_frames)
        sides = [side * f for side in geometry.latent]
        pieces = segments * math.prod(len(tiling.splitter_starts(side, self.patch, self.stride)) for side in sides)
        latent = tuple(min(side, self.patch) // f for side in sides)
        calls = self.calls(self.n_frames, latent, self._uncut)
        return {stage: pieces * count for stage, count in calls.items()}
