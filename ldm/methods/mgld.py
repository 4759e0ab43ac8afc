"""MGLD-VSR: motion-guided latent diffusion for video super-resolution (Yang et al., ECCV 2024). Frames to frames."""

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ldm.diffusion.denoiser import make_denoise
from ldm.diffusion.guidance import MotionGuidance
from ldm.diffusion.noise import FrameNoise, ReleasedNoise
from ldm.diffusion.samplers import sample_ddim, sample_ddpm
from ldm.diffusion.schedule import Schedule
from ldm.nets.layers import channels_last
from ldm.ops import tiling
from ldm.ops.color import adain_color_fix, wavelet_color_fix
from ldm.ops.flow import Motion, estimate_motion, flow_warp
from ldm.ops.padding import pad_to_multiple, released_pad, unpad
from ldm.ops.resize import resize

SMALLEST_SIDE = 16  # pixels; below that there is nothing to restore
TILE_STEP = 8  # fitted tiles are multiples of this, which the U-Net's levels divide
FLOW_SCALE = 4  # flow is estimated on frames this much smaller than those restored, as released
COLOR_FIXES = {"adain": adain_color_fix, "wavelet": wavelet_color_fix, "nofix": lambda content, style: content}
WEIGHTS = {
    "gaussian": tiling.gaussian_window,
    "released": tiling.released_gaussian_window,
    "flat": tiling.flat_window,
}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Progress = Callable[[str, int, int], None]  # (stage, done, total)


def choose(table: Mapping, word: str, what: str):
    """`table[word]`, or ValueError naming what was expected."""
    if word not in table:
        raise ValueError(f"got {what} {word!r}, expected one of {', '.join(map(str, table))}")
    return table[word]


@dataclass(frozen=True)
class Windows:
    """How frames and latent tiles overlap, in frames and latent pixels; `batch` of them are one call of a network.

    `weight` names the blend: "gaussian", "flat", or "released" (not symmetric in y, B21). With `fit`, tiles are only as
    large as it takes to cover the latents with as many of them; without, all are `tile` wide, as released.
    """

    n_frames: int = 5
    frame_overlap: int = 2
    tile: int = 64
    tile_overlap: int = 32
    weight: str = "gaussian"
    fit: bool = True
    batch: int = 1

    def __post_init__(self):
        choose(WEIGHTS, self.weight, "window weight")
        sizes = ("frame", self.frame_overlap, self.n_frames), ("tile", self.tile_overlap, self.tile)
        for name, overlap, size in sizes:
            if not 0 <= overlap < size:
                raise ValueError(f"got {name}_overlap={overlap} for windows of {size}, expected 0 to {size - 1}")

    def side(self, length: int) -> int:
        """The side of the tiles along latents of this length."""
        if not self.fit or length <= self.tile:
            return self.tile
        count = len(tiling.starts(length, self.tile, self.tile_overlap))
        least = math.ceil((length + (count - 1) * self.tile_overlap) / count)
        return min(self.tile, math.ceil(least / TILE_STEP) * TILE_STEP)

    def over(self, fn: Callable[..., Tensor], size: tuple[int, int]) -> Callable[..., Tensor]:
        """`fn` on these windows of latents of `size`; see `ldm.ops.tiling.tiled`."""
        return tiling.tiled(
            fn,
            tile=(self.n_frames, self.side(size[0]), self.side(size[1])),
            overlap=(self.frame_overlap, self.tile_overlap, self.tile_overlap),
            window=WEIGHTS[self.weight],
            batch=self.batch,
        )

    def calls(self, frames: int, h: int, w: int) -> int:
        """How often the network is called for latents of this size."""
        frame_starts = tiling.starts(frames, self.n_frames, self.frame_overlap)
        sides = [len(tiling.starts(length, self.side(length), self.tile_overlap)) for length in (h, w)]
        return math.ceil(len(frame_starts) * sides[0] * sides[1] / self.batch)


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

    def frame_order(self, frames: int) -> list[int]:
        """Frame numbers with the last one repeated up to whole segments."""
        return [*range(frames), *[frames - 1] * (-frames % self.n_frames)]

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
        self.full.respaced(self.steps, arithmetic=self.arithmetic)  # a wrong number of steps shows here

    def start(self, z: Tensor, noise: Tensor) -> Tensor:
        """x_T from the LR latents z: noised to the last step of the full schedule."""
        return self.full.add_noise(z, noise, len(self.full) - 1)

    def run(self, predict: Callable[[Tensor, int], Tensor], x: Tensor, motion: Motion, **hooks) -> Tensor:
        """Latents x_0 (B, T, c, h, w) from x_T; predict(x, t) is the U-Net on the whole clip."""
        schedule = self.full.respaced(self.steps, arithmetic=self.arithmetic)
        if self.guidance != "none":
            hooks["guide"] = MotionGuidance(motion, schedule, form=self.guidance, scale=self.guidance_scale)
        sample = sample_ddpm if self.sampler == "ddpm" else sample_ddim
        denoise = make_denoise(predict, schedule, kind=self.prediction)
        return sample(denoise, x, schedule, **hooks)


@dataclass(frozen=True)
class Decoding:
    """How latents become frames: `dec_w` weighs the LR features, `color_fix` is adain, wavelet or nofix."""

    windows: Windows = Windows(tile=120, tile_overlap=24)
    dec_w: float = 1.0
    color_fix: str = "adain"

    def __post_init__(self):
        choose(COLOR_FIXES, self.color_fix, "color_fix")


class MGLD(nn.Module):
    """The method over built networks: unet, structure, autoencoder, sequence_decoder, text and flow.

    Args:
        networks: modules by those names; `flow(img1, img2)` may be any estimator of `ldm/nets` or `ldm/ops/dis.py`.
        scale_factor: latents are this times the autoencoder's posterior sample.
        sampling, windows, decoding: how to draw latents, to cut them, and to decode them.
        patches: the released outer cut, with its sequential noise and padding, or None.
        min_size: frames are enlarged until their short side has this many pixels before they are restored.
        precision: fp32, or bf16 / fp16 for the networks alone.

    Raises ValueError for a network that is missing or an unknown word.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        scale_factor: float = 0.18215,
        sampling: Sampling,
        windows: Windows,
        decoding: Decoding,
        patches: Patches | None = None,
        min_size: int = 512,
        precision: str = "fp32",
    ):
        super().__init__()
        for name in ("unet", "structure", "autoencoder", "sequence_decoder", "text", "flow"):
            if name not in networks:
                raise ValueError(f"got networks {sorted(networks)}, expected {name} among them")
            self.add_module(name, networks[name])
        if windows.tile % self.unet.downsampling:
            raise ValueError(f"got tile {windows.tile}, expected a multiple of {self.unet.downsampling}")
        f = self.autoencoder.downsampling
        if patches and (patches.size % f or min(windows.tile, patches.size // f) % self.unet.downsampling):
            raise ValueError(f"got patch size {patches.size}, expected a multiple of {f * self.unet.downsampling}")
        self.scale_factor, self.sampling, self.windows, self.decoding = scale_factor, sampling, windows, decoding
        self.patches, self.min_size, self.dtype = patches, min_size, choose(PRECISIONS, precision, "precision")
        channels_last(self).eval().requires_grad_(False)

    @torch.no_grad()
    def restore(
        self, lq: Tensor, *, upscale: float = 4.0, seed: int = 42, progress: Progress = lambda stage, done, total: None
    ) -> Tensor:
        """Low-quality frames (T, 3, h, w) or clips (B, T, 3, h, w) -> the same `upscale` times as large; in [0, 1].

        Any number of frames, any sides from 16 pixels. The same seed gives every clip of a batch the same noise.

        Raises ValueError for another shape, pixels that are not finite or an upscale that is not positive;
        FloatingPointError naming the step or the tile where a result stops being finite.
        """
        check_frames(lq, upscale)
        clips = (lq if lq.ndim == 5 else lq[None]).float().to(self.device)
        frames, (h, w) = clips.shape[1], clips.shape[-2:]
        order = self.patches.frame_order(frames) if self.patches else list(range(frames))
        scale = max(self.min_size / min(h, w), upscale)
        work = resize(clips[:, order], (whole(h * scale), whole(w * scale))).clamp_(0, 1)
        pad, multiple = pad_to_multiple, self.autoencoder.downsampling * self.unet.downsampling
        if self.patches:
            pad, multiple = released_pad, 32
        padded, padding = pad(work, multiple)
        out = unpad(self._restore_padded(padded, seed=seed, progress=progress), padding)
        target = (whole(h * upscale), whole(w * upscale))
        out = resize(out.add_(1).div_(2).clamp_(0, 1), target).clamp_(0, 1)
        if len(order) > frames:
            last = {frame: place for place, frame in enumerate(order)}  # the released script keeps the last duplicate
            out = out[:, [last[frame] for frame in range(frames)]]
        return out if lq.ndim == 5 else out[0]

    def _restore_padded(self, work: Tensor, *, seed: int, progress: Progress) -> Tensor:
        """(B, T, 3, H, W) in [0, 1] -> [-1, 1], in one piece or by the released patches."""
        f = self.autoencoder.downsampling
        size = (work.shape[-2] // f, work.shape[-1] // f)
        motion = self.motion(work, size=size)
        if self.patches is None:
            noise = self.addressed(FrameNoise(seed), range(work.shape[1]), size)
            return self._restore_piece(work, motion, noise=noise, progress=progress)

        def piece(x: Tensor, *, tiles: list[tiling.Tile]) -> Tensor:
            size = (x.shape[-2] // f, x.shape[-1] // f)
            noise = self.addressed(ReleasedNoise(seed), range(x.shape[1]), size)
            return self._restore_piece(x, cut_motion(motion, tiles[0], f), noise=noise, progress=progress)

        return self.patches.over(piece)(work)

    def _restore_piece(self, work: Tensor, motion: Motion, *, noise: Callable, progress: Progress) -> Tensor:
        """Encode, sample, decode, fix colours: (B, T, 3, H, W) in [0, 1] -> about [-1, 1]."""
        z = self.encode(work, noise("posterior"))
        x = self.sample(z, motion, noise=noise, progress=progress)
        out = self.decode(x, work, progress=progress)
        fix = COLOR_FIXES[self.decoding.color_fix]
        for i in range(out.shape[1]):  # frame by frame, to hold few copies of the whole clip
            out[:, i] = fix(out[:, i], work[:, i] * 2 - 1)
        return out

    def motion(self, work: Tensor, *, size: tuple[int, int]) -> Motion:
        """The motion of clips (B, T, 3, H, W) in [0, 1] on the latent grid, found at a quarter of their size."""
        small = (work.shape[-2] // FLOW_SCALE, work.shape[-1] // FLOW_SCALE)
        return estimate_motion(self.flow, resize(work, small), size=size)

    def encode(self, work: Tensor, eps: Tensor) -> Tensor:
        """Scaled posterior samples (B, T, c, h, w) of frames in [0, 1]; eps is standard normal of that shape."""
        grid = eps.new_empty(*work.shape[:2], 0, *eps.shape[-2:])  # no channels: only for the tiler to cut along

        def moments(_grid: Tensor, frames: Tensor, *, tiles: list) -> Tensor:
            with self.autocast():
                return self.autoencoder.encode(frames.flatten(0, 1) * 2 - 1).float().unflatten(0, frames.shape[:2])

        frame_by_frame = replace(self.decoding.windows, n_frames=1, frame_overlap=0, batch=1)
        posterior = self.autoencoder.posterior(frame_by_frame.over(moments, eps.shape[-2:])(grid, work).flatten(0, 1))
        z = posterior.sample(eps.expand(len(work), -1, -1, -1, -1).flatten(0, 1))
        return z.unflatten(0, work.shape[:2]) * self.scale_factor

    def sample(self, z: Tensor, motion: Motion, *, noise: Callable, progress: Progress) -> Tensor:
        """Restored latents from LR latents z, both (B, T, c, h, w): noised, then denoised under motion guidance."""
        context, done = self.text().to(self.device), itertools.count(1)
        total = self.windows.calls(z.shape[1], *z.shape[-2:]) * self.sampling.steps

        def denoise_window(x: Tensor, z: Tensor, *, t: int, tiles: list) -> Tensor:
            frames, step = x.shape[1], torch.tensor([t], device=x.device)
            with self.autocast():
                maps = self.structure(z.flatten(0, 1), step)
                out = self.unet(x.flatten(0, 1), step, context, maps, num_frames=frames)
            progress("sampling", next(done), total)
            return out.float().unflatten(0, x.shape[:2])

        run = self.windows.over(denoise_window, z.shape[-2:])
        return self.sampling.run(
            lambda x, t: run(x, z, t=t),
            self.sampling.start(z, noise("start")),
            motion,
            noise=noise,
        )

    def decode(self, x: Tensor, work: Tensor, *, progress: Progress) -> Tensor:
        """Frames about [-1, 1] from latents and the frames whose features the decoder fuses in."""
        done, total = itertools.count(1), self.decoding.windows.calls(x.shape[1], *x.shape[-2:])

        def decode_window(z: Tensor, frames: Tensor, *, tiles: list) -> Tensor:
            with self.autocast():
                _, features = self.sequence_decoder.encode(frames.flatten(0, 1) * 2 - 1)
                out = self.sequence_decoder.decode(
                    z.flatten(0, 1) / self.scale_factor, features, num_frames=z.shape[1], fusion_w=self.decoding.dec_w
                )
            progress("decoding", next(done), total)
            return out.float().unflatten(0, z.shape[:2])

        return self.decoding.windows.over(decode_window, x.shape[-2:])(x, work)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    def autocast(self):
        """The context the networks run in; everything else stays float32."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def addressed(self, source: Callable, frames: range, size: tuple[int, int]) -> Callable[[int | str], Tensor]:
        """noise(step) -> (1, T, c, h, w) on the device, the same for every clip."""
        channels = self.autoencoder.post_quant_conv.in_channels
        return lambda step: source(step, frames, (channels, *size))[None].to(self.device)


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


def cut_motion(motion: Motion, tile: tiling.Tile, f: int) -> Motion:
    """The motion of an image patch (pixels) on its latents; patches need not start on the latent grid (B8 repaired)."""
    part = motion.frames(tile.t.start, tile.t.stop)
    h, w = ((side.stop - side.start) // f for side in (tile.y, tile.x))
    top, left = tile.y.start / f, tile.x.start / f
    if top.is_integer() and left.is_integer():
        return part.crop(int(top), int(left), h, w)

    def shifted(x: Tensor) -> Tensor:
        pairs = x.flatten(0, 1)
        offset = pairs.new_tensor([left - int(left), top - int(top)]).view(1, 2, 1, 1)
        moved = flow_warp(pairs, offset.expand(len(pairs), -1, *x.shape[-2:]), padding="border")
        return moved.unflatten(0, x.shape[:2])

    flows = Motion(*(shifted(x) for x in part[:2]), *(shifted(x).round() for x in part[2:]))
    return flows.crop(int(top), int(left), h, w)
