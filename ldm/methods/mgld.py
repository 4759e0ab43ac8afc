"""MGLD-VSR: motion-guided latent diffusion for video super-resolution (Yang et al., ECCV 2024). Frames to frames."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ldm.diffusion.noise import FrameNoise, ReleasedNoise, drawn_together
from ldm.diffusion.samplers import assert_finite
from ldm.methods.conditions import Conditions
from ldm.methods.geometry import Geometry, check_frames
from ldm.methods.settings import COLOR_FIXES, Decoding, Patches, Sampling, Windows, choose
from ldm.nets.layers import channels_last
from ldm.nets.whole_frame import Cut, decode_frames, encode_frames
from ldm.ops import tiling
from ldm.ops.cuts import scene_ends
from ldm.ops.flow import Motion, cut_motion, estimate_motion
from ldm.ops.padding import pad_to_multiple, released_pad
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Each, Frame, Neighbours, Pipeline, Scenes, Stage, Windowed, run_through, together

BUILDABLE = ("MGLD",)
FLOW_SCALE = 4  # flow is estimated on frames this much smaller than those restored, as released
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Progress = Callable[[str, int, int | None], None]  # (stage, done, total where it is known)
Noise = Callable[[int | str, Sequence[int]], Tensor]  # (step, frame numbers) -> (1, T, c, h, w)


def silent(stage: str, done: int, total: int | None) -> None:
    """The progress report that says nothing."""


class MGLD(nn.Module):
    """The method over built networks: unet, structure, autoencoder, sequence_decoder, text and flow.

    Args:
        networks: modules by those names; `flow(img1, img2)` may be any estimator of `ldm/nets` or `ldm/ops/dis.py`.
        scale_factor: latents are this times the autoencoder's posterior sample.
        sampling, windows, decoding: how to draw latents, to cut them, and to decode them.
        patches: the released outer cut, with its sequential noise and padding, or None. It knows no scenes.
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
        self._context: Tensor | None = None
        self._conditions = Conditions(self.structure, shared=windows.frame_overlap)
        channels_last(self).eval().requires_grad_(False)

    @torch.no_grad()
    def restore(self, lq: Tensor, *, upscale: float = 4.0, seed: int = 42, progress: Progress = silent) -> Tensor:
        """Low-quality frames (T, 3, h, w) or clips (B, T, 3, h, w) -> the same `upscale` times as large; in [0, 1].

        Any number of frames, any sides from 16 pixels. The same seed gives every clip of a batch the same noise. The
        result is on the CPU, and equal to what `stream` gives frame by frame.

        Raises ValueError for another shape, pixels that are not finite or an upscale that is not positive;
        FloatingPointError naming the step or the tile where a result stops being finite.
        """
        check_frames(lq, upscale)
        if lq.ndim == 5:
            return torch.stack([self.restore(clip, upscale=upscale, seed=seed, progress=progress) for clip in lq])
        run = self.stream(lq.shape[-2:], upscale=upscale, seed=seed, progress=progress, frames=len(lq))
        restored = []
        for number, frame in enumerate(lq):
            run.push(Frame(number, {"lq": frame[None].float().cpu()}))
            restored += run.pull()
        return together([*restored, *run.pull(finish=True)], "sr")[0]

    def stream(
        self,
        size: tuple[int, int],
        *,
        upscale: float = 4.0,
        seed: int = 42,
        progress: Progress = silent,
        frames: int | None = None,
    ) -> Pipeline:
        """The stages that restore a video whose frames have `size` (h, w): a frame with a value "lq" goes in, with "sr"
        it comes out, both (1, 3, ., .) on the CPU, the first as float in [0, 1] or as uint8 or uint16 of full scale.

        Frames come out late: each sampling step waits for a window of frames. What is held does not grow with the clip,
        and the noise follows the frames' numbers. `frames`, where it is known, gives the progress report its total.
        """
        self._conditions.forget()
        geometry = self.geometry(size, upscale)
        tally = Tally(progress, self._calls(frames, geometry) if frames else {})
        finish = Each(lambda frame: frame.put(sr=geometry.finish(frame["sr"])))
        if self.patches:
            cut = partial(self._segment, geometry=geometry, seed=seed, tally=tally)
            segments = Windowed(cut, size=self.patches.n_frames, overlap=0, name="sr", flush=False).called("segments")
            return Pipeline([Scenes(lambda before, frame: (False, frame)), segments, finish])
        source = FrameNoise(seed)
        shape = (self.autoencoder.post_quant_conv.in_channels, *geometry.latent)

        def work(frame: Frame) -> Tensor:
            return geometry.enlarge(frame["lq"])

        stages = [
            Each(partial(self._prepare, work=work, noise=lambda k, n: source(k, n, shape)[None])).called("encoding"),
            Scenes(self._compare, spent=("small",)).called("flow"),
            *self._sampling(lambda k, n: source(k, n, shape)[None], tally),
            self._decoding(work, tally),
            Each(partial(self._fix_colors, work=work)).called("colours"),
            finish,
        ]
        return Pipeline(stages)

    def latents(self, work: Tensor, *, seed: int = 42) -> list[Frame]:
        """The frames of a clip (T, 3, H, W) in [0, 1] of the final size, H and W as `padded` leaves them, with their
        sampled latents "x", those of the input "z" (both (1, c, h, w)) and their motion (see `motion_between`)."""
        f, source = self.autoencoder.downsampling, FrameNoise(seed)
        shape = (self.autoencoder.post_quant_conv.in_channels, work.shape[-2] // f, work.shape[-1] // f)
        prepare = partial(self._prepare, work=lambda frame: frame["work"], noise=lambda k, n: source(k, n, shape)[None])
        stages = [Each(prepare), Scenes(self._compare, spent=("small", "work"))]
        stages += self._sampling(lambda k, n: source(k, n, shape)[None], Tally(silent, {}))
        return run_through(stages, [Frame(number, {"work": frame[None]}) for number, frame in enumerate(work)])

    # ---- the stages

    @torch.no_grad()
    def _prepare(self, frame: Frame, *, work: Callable[[Frame], Tensor], noise: Noise) -> Frame:
        """Add the frame's latent "z", the noised one "x", and a small picture to find its motion with."""
        picture = work(frame).to(self.device)
        small = resize(picture, (picture.shape[-2] // FLOW_SCALE, picture.shape[-1] // FLOW_SCALE))
        z = self.encode(picture[:, None], noise("posterior", [frame.number]).to(self.device))[:, 0]
        x = self.sampling.start(z, noise("start", [frame.number])[:, 0].to(z))
        return frame.put(z=z.cpu(), x=x.cpu(), small=small.cpu())

    @torch.no_grad()
    def _compare(self, before: Frame, frame: Frame) -> tuple[bool, Frame]:
        """Whether a scene ends between two frames, and the second with its motion where none does."""
        pair = torch.stack([before["small"], frame["small"]], dim=1).to(self.device)
        motion = estimate_motion(self.flow, pair, size=frame["z"].shape[-2:])
        unmatched = self.windows.scene_cut
        if unmatched is not None and scene_ends(pair[:, 0], pair[:, 1], motion, unmatched=unmatched):
            return True, frame
        return False, frame.put(**{name: field[:, 0].cpu() for name, field in motion._asdict().items()})

    def _sampling(self, noise: Noise, tally: "Tally") -> list[Stage]:
        """A stage that denoises for every step, and one that guides."""
        stages = []
        for i in reversed(range(len(self.sampling.schedule))):
            denoise = partial(self._denoise, i=i, noise=noise, tally=tally)
            overlap = self.windows.frame_overlap
            stages.append(Windowed(denoise, size=self.windows.n_frames, overlap=overlap, name="x").called("sampling"))
            if self.sampling.reach:
                guide = Neighbours(partial(self._guide, i=i), reach=self.sampling.reach, name="x")
                stages.append(guide.called("guidance"))
        return stages

    @torch.no_grad()
    def _denoise(self, frames: list[Frame], *, i: int, noise: Noise, tally: "Tally") -> Tensor:
        """x_{i-1} of a window of frames at x_i. The step is linear in the prediction, so that windows may be blended
        after it as well as before."""
        if self._context is None:
            self._context = self.text()  # that of no text, once for all windows and steps
        context = self._context.to(self.device)
        x, z = (together(frames, name).to(self.device) for name in ("x", "z"))

        def denoise_tile(x: Tensor, z: Tensor, *, t: int, tiles: list) -> Tensor:
            step = torch.tensor([t], device=x.device)
            with self.autocast():
                maps = self._conditions(z, step, place=(t, *((tile.y.start, tile.x.start) for tile in tiles)))
                out = self.unet(x.flatten(0, 1), step, context, maps, num_frames=x.shape[1])
            tally("sampling")
            return out.float().unflatten(0, x.shape[:2])

        run = self.windows.over(denoise_tile, z.shape[-2:])
        numbers = [frame.number for frame in frames]
        x = self.sampling.step(lambda x, t: run(x, z, t=t), x, i, noise=lambda k: noise(k, numbers))
        return assert_finite(x, i).cpu()

    @torch.no_grad()
    def _guide(self, frames: list[Frame], start: int, stop: int, *, i: int) -> Tensor:
        """x_i of frames[start:stop] pulled towards the motion."""
        x = together(frames, "x")
        if len(frames) > 1:
            motion = Motion(*(field.to(self.device) for field in motion_between(frames)))
            x = self.sampling.guide(x.to(self.device), i, motion)
        return assert_finite(x[:, start:stop], i).cpu()

    def _decoding(self, work: Callable[[Frame], Tensor], tally: "Tally") -> Stage:
        """The stage that turns latents into frames "sr" about [-1, 1]."""
        windows = self.decoding.windows

        @torch.no_grad()
        def decode(frames: list[Frame]) -> Tensor:
            pictures = torch.stack([work(frame) for frame in frames], dim=1).to(self.device)
            x = together(frames, "x").to(self.device)
            return self.decode(x, pictures, report=lambda: tally("decoding")).cpu()

        return Windowed(decode, size=windows.n_frames, overlap=windows.frame_overlap, name="sr").called("decoding")

    def _fix_colors(self, frame: Frame, *, work: Callable[[Frame], Tensor]) -> Frame:
        fix = COLOR_FIXES[self.decoding.color_fix]
        return frame.put(sr=fix(frame["sr"], work(frame) * 2 - 1))

    def _segment(self, frames: list[Frame], *, geometry: Geometry, seed: int, tally: "Tally") -> Tensor:
        """A segment of the released cut, (1, T, 3, H, W): every image patch on its own, with the same noise."""
        f, count = self.autoencoder.downsampling, len(frames)
        work = self.patches.whole_segment(torch.stack([geometry.enlarge(frame["lq"]) for frame in frames], dim=1))
        motion = self.motion(work, size=geometry.latent)

        def piece(x: Tensor, *, tiles: list[tiling.Tile]) -> Tensor:
            shape = (self.autoencoder.post_quant_conv.in_channels, x.shape[-2] // f, x.shape[-1] // f)
            noise = drawn_together(ReleasedNoise(seed), x.shape[1], shape)
            return self._restore_piece(x, cut_motion(motion, tiles[0], f), noise=noise, tally=tally)

        out = self.patches.over(piece)(work)
        return torch.cat([out[:, : count - 1], out[:, -1:]], dim=1)  # of a repeated frame the last one is kept

    @torch.no_grad()
    def _restore_piece(self, work: Tensor, motion: Motion, *, noise: Noise, tally: "Tally") -> Tensor:
        """A clip (1, T, 3, H, W) in [0, 1] whose motion is known -> about [-1, 1]."""
        z = self.encode(work.to(self.device), noise("posterior", range(work.shape[1])).to(self.device))
        return self.restore_encoded(z, work, motion, noise=noise, progress=lambda stage, *_: tally(stage))[1]

    @torch.no_grad()
    def restore_encoded(
        self, z: Tensor, work: Tensor, motion: Motion, *, noise: Noise, progress: Progress = silent
    ) -> tuple[Tensor, Tensor]:
        """A clip (1, T, 3, H, W) in [0, 1] whose latents z (1, T, c, h, w) and motion are known: the sampled latents
        and the frames, about [-1, 1]."""
        tally, count = Tally(progress, {}), z.shape[1]
        x = self.sampling.start(z, noise("start", range(count)).to(z))
        values = [{"work": work[:, k].cpu(), "z": z[:, k].cpu(), "x": x[:, k].cpu()} for k in range(count)]
        for name, field in motion._asdict().items():
            for k in range(1, count):
                values[k][name] = field[:, k - 1].cpu()
        frames = [Frame(k, value, last=k == count - 1) for k, value in enumerate(values)]

        def given(frame: Frame) -> Tensor:
            return frame["work"]

        stages = [
            *self._sampling(noise, tally),
            self._decoding(given, tally),
            Each(partial(self._fix_colors, work=given)),
        ]
        restored = run_through(stages, frames)
        return together(restored, "x"), together(restored, "sr")

    # ---- what the stages use

    @torch.no_grad()
    def motion(self, work: Tensor, *, size: tuple[int, int]) -> Motion:
        """The motion of clips (B, T, 3, H, W) in [0, 1] on the latent grid, found at a quarter of their size."""
        small = (work.shape[-2] // FLOW_SCALE, work.shape[-1] // FLOW_SCALE)
        return estimate_motion(self.flow, resize(work.to(self.device), small), size=size)

    @torch.no_grad()
    def encode(self, work: Tensor, eps: Tensor) -> Tensor:
        """Scaled posterior samples (B, T, c, h, w) of frames in [0, 1]; eps is standard normal of that shape."""
        if cut := self.cut_of(eps.shape[-2:]):
            with self.autocast():
                moments = encode_frames(self.autoencoder, work.flatten(0, 1) * 2 - 1, cut).float()
            posterior = self.autoencoder.posterior(moments)
            return posterior.sample(eps.flatten(0, 1)).unflatten(0, work.shape[:2]) * self.scale_factor
        grid = eps.new_empty(*work.shape[:2], 0, *eps.shape[-2:])  # no channels: only for the tiler to cut along

        def moments(_grid: Tensor, frames: Tensor, *, tiles: list) -> Tensor:
            with self.autocast():
                return self.autoencoder.encode(frames.flatten(0, 1) * 2 - 1).float().unflatten(0, frames.shape[:2])

        frame_by_frame = replace(self.decoding.windows, n_frames=1, frame_overlap=0, batch=1)
        posterior = self.autoencoder.posterior(frame_by_frame.over(moments, eps.shape[-2:])(grid, work).flatten(0, 1))
        return posterior.sample(eps.flatten(0, 1)).unflatten(0, work.shape[:2]) * self.scale_factor

    @torch.no_grad()
    def decode(self, x: Tensor, work: Tensor, *, report: Callable[[], None] = lambda: None) -> Tensor:
        """Frames about [-1, 1] from latents and the frames whose features the decoder fuses in, (B, T, ...) each, T at
        most a window; `report` is called after every tile, or once where norms see more than tiles."""
        if cut := self.cut_of(x.shape[-2:]):
            with self.autocast():
                out = decode_frames(
                    self.sequence_decoder, x.flatten(0, 1) / self.scale_factor, work.flatten(0, 1) * 2 - 1,
                    cut=cut, num_frames=x.shape[1], fusion_w=self.decoding.dec_w,
                )  # fmt: skip
            report()
            return out.float().unflatten(0, x.shape[:2])

        def decode_tile(z: Tensor, frames: Tensor, *, tiles: list) -> Tensor:
            with self.autocast():
                _, features = self.sequence_decoder.encode(frames.flatten(0, 1) * 2 - 1)
                out = self.sequence_decoder.decode(
                    z.flatten(0, 1) / self.scale_factor, features, num_frames=z.shape[1], fusion_w=self.decoding.dec_w
                )
            report()
            return out.float().unflatten(0, z.shape[:2])

        return self.decoding.windows.over(decode_tile, x.shape[-2:])(x, work)

    def denoise_window(self, frames: list[Frame]) -> Tensor:
        """The last step for a window of frames with values "x" and "z", without noise: what one costs."""
        return self._denoise(frames, i=0, noise=lambda k, numbers: torch.zeros(()), tally=Tally(silent, {}))

    @property
    def held_frames(self) -> int:
        """Frames that a stream has on the way at most."""
        if self.patches:
            return self.patches.n_frames + 1
        guided = self.sampling.reach + 3 if self.sampling.reach else 0
        steps = len(self.sampling.schedule) * (self.windows.n_frames + 1 + guided)
        return 1 + steps + self.decoding.windows.n_frames + 1

    def frame_bytes(self, geometry: Geometry) -> int:
        """What a frame on the way takes: "x", "z" and its motion in float32, and itself in 8 or 16 bits."""
        latents = 2 * self.autoencoder.post_quant_conv.in_channels + 2 * (2 + 1)
        return math.prod(geometry.latent) * latents * 4 + math.prod(geometry.size) * 3 * 2

    def geometry(self, size: tuple[int, int], upscale: float) -> Geometry:
        """The sizes that frames of `size` (h, w) go through."""
        f = self.autoencoder.downsampling
        pad = partial(pad_to_multiple, multiple=f * self.unet.downsampling)
        if self.patches:
            pad = partial(released_pad, multiple=32)
        return Geometry(size, upscale=upscale, min_size=self.min_size, pad=pad, downsampling=f)

    def cut_of(self, latent: tuple[int, int]) -> Cut | None:
        """How the autoencoders cut latents of this size; None: into blended tiles."""
        if self.decoding.norms == "tile":
            return None
        return self.decoding.cut(self.largest_map(latent))

    def largest_map(self, latent: tuple[int, int]) -> int:
        """Bytes of the largest map of the autoencoders for a window of latents of this size."""
        width, f = self.autoencoder.encoder.down[0].block[-1].conv2.out_channels, self.autoencoder.downsampling
        values = self.decoding.windows.n_frames * width * math.prod(latent) * f * f
        return values * (2 if self.dtype else 4)

    def _calls(self, frames: int, geometry: Geometry) -> dict[str, int]:
        """How often the networks are called for one scene of so many frames."""
        pieces, size = 1, geometry.latent
        if self.patches:
            f, segments = self.autoencoder.downsampling, math.ceil(frames / self.patches.n_frames)
            pieces, side = segments * self.patches.count(size[0] * f, size[1] * f), self.patches.size // f
            frames, size = self.patches.n_frames, (min(size[0], side), min(size[1], side))
        sampling, windows = self.windows.calls(frames, *size) * len(self.sampling.schedule), self.decoding.windows
        decoding = windows.calls(frames, 1, 1) if self.cut_of(size) else windows.calls(frames, *size)
        return {"sampling": pieces * sampling, "decoding": pieces * decoding}

    def compile_networks(self) -> None:
        """Have torch.compile work on what takes the time; on encoder and decoder only where they run by tiles."""
        for network in (self.unet, self.structure, self.autoencoder.encoder, self.sequence_decoder.decoder):
            network.compile()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    def autocast(self):
        """The context the networks run in; everything else stays float32."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


class Tally:
    """Counts calls of networks for a progress report."""

    def __init__(self, progress: Progress, totals: Mapping[str, int]):
        self.progress, self.totals, self.done = progress, totals, Counter()

    def __call__(self, stage: str) -> None:
        self.done[stage] += 1
        total = self.totals.get(stage)
        self.progress(stage, self.done[stage], total and max(total, self.done[stage]))


def motion_between(frames: Sequence[Frame]) -> Motion:
    """The motion of frames that belong to one scene; each but the first carries that from the one before."""
    return Motion(*(together(frames[1:], name) for name in Motion._fields))
