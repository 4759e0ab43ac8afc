"""The released script of Upscale-A-Video as a method of its own: whole clips, crops without blending, one generator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldm.diffusion.classifier_free import noise_label
from ldm.diffusion.clip_noise import ReleasedClipNoise
from ldm.diffusion.propagation import latent_flow, propagate
from ldm.diffusion.refined import sample_refined
from ldm.methods.contract import Costs, Progress, Request, no_progress
from ldm.methods.progress import Tally
from ldm.methods.upscale_a_video.method import UpscaleAVideo
from ldm.methods.upscale_a_video.models import PromptedDenoiser
from ldm.methods.upscale_a_video.restoration import FLOWS, with_colors
from ldm.methods.upscale_a_video.sizes import LowGeometry, inside
from ldm.ops.clip_flow import flows_of_clip
from ldm.ops.crop_tiles import AREA, MARGIN, released_tiles
from ldm.ops.tiling import Patch
from ldm.ops.windows import consecutive_windows, over_windows
from ldm.streaming.pipeline import Each, Frame, Pipeline, Scenes, stack
from ldm.streaming.scene import WholeScene

BUILDABLE = ("ReleasedUpscaleAVideo",)


@dataclass(frozen=True)
class CropLevers:
    """The crops of the released script, which do not adapt to memory."""

    crop: int
    margin: int
    windows: int
    chunks: int

    def __str__(self) -> str:
        crops = f"crops of {self.crop} pixels with a margin of {self.margin}"
        return f"whole clips in {crops}, windows of {self.windows} frames, decoded by {self.chunks}, as released"


@dataclass(frozen=True, kw_only=True)
class ReleasedUpscaleAVideo(UpscaleAVideo):
    """Upscale-A-Video cut as by the released script (quirks U1, U2, U8, U16, U19, U21).

    The whole clip is held, across scene cuts. Decoded chunks do not overlap, and crops, of frames of `AREA` pixels or
    more or where `always_crop`, are put side by side. Sides of frames that shrink are rounded down.

    Args:
        crop: side of a crop in low-resolution pixels, without its margin.
        always_crop: cut small frames, too.

    Raises the errors of `UpscaleAVideo`, and ValueError for windows of frames that differ from step to step.
    """

    crop: int = 256
    always_crop: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.windows.alternate or self.windows.sharing_steps is not None:
            got = f"alternate={self.windows.alternate} and sharing_steps={self.windows.sharing_steps}"
            raise ValueError(f"got windows with {got}, expected false and null: the released cut has one for all steps")

    # ---- the contract

    def stream(self, request: Request, levers: CropLevers | None = None, progress: Progress = no_progress) -> Pipeline:
        """The stages that restore a clip; see `ldm.methods.contract.Method.stream`."""
        geometry, tally = self.geometry(request.size, request.upscale), Tally(progress, {})
        crops = self.crops(geometry.low)
        run = _Crops(self, crops, ReleasedClipNoise(request.seed), self.denoiser(request.prompt), tally)
        first = 1 if self.sampling.propagated else 0  # the unit that finds the flows
        scene = WholeScene(lambda count: len(crops) + first, lambda frames, k: run.unit(frames, k - first))
        stages = [
            Each(lambda frame: frame.put(low=geometry.reduce(frame["lq"])).without("lq")).with_label("reducing"),
            Scenes(lambda before, frame: (False, frame)),
            scene.with_label("crops"),
            Each(partial(with_colors, decoding=self.decoding)).with_label("colours"),
            Each(lambda frame: frame.put(sr=geometry.finish(frame["sr"])).without("low", *FLOWS)).with_label("colours"),
        ]
        return Pipeline(stages, device=self.device)

    def find_scenes(self, request: Request) -> None:
        """None: the whole clip is one scene."""

    def levers(self) -> list[CropLevers]:
        """The crops of the settings, the only levers."""
        return [CropLevers(self.crop, MARGIN, self.windows.n_frames, self.decoding.windows.n_frames)]

    def probes(self, levers: CropLevers) -> dict[str, Callable[[int], int | None]]:
        """No probes: the memory of the released cut is not planned."""
        return {}

    def peak(self, request: Request, levers: CropLevers, costs: Costs) -> None:
        """None: the memory of the released cut is not planned."""
        return None

    # ---- the cut

    def geometry(self, size: tuple[int, int], upscale: float) -> LowGeometry:
        """The sizes that frames of `size` (h, w) go through."""
        factor = self.networks["autoencoder"].downsampling
        return LowGeometry(size, upscale=upscale, factor=factor, least=self.min_size, grid=inside)

    def crops(self, size: tuple[int, int]) -> list[Patch]:
        """The crops of frames of `size` (h, w); one for a small frame."""
        cut = self.always_crop or size[0] * size[1] >= AREA
        return released_tiles(size, self.crop if cut else max(size))

    def restore_crop(
        self, low: Tensor, noise: tuple[Tensor, Tensor], flows: Sequence[Tensor] | None, *, denoiser: PromptedDenoiser,
        tally: Tally,
    ) -> Tensor:  # fmt: skip
        """A clip (1, T, 3, h, w) in [0, 1] -> (1, T, 3, 4h, 4w) in [-1, 1], as one run of the released pipeline.

        `noise` of the low-resolution frames and the initial latents; `flows` to the next and to the previous frame.
        """
        sampling, windows = self.sampling, self.windows
        plan = partial(sampling.window_plan, length=windows.n_frames, overlap=windows.frame_overlap)
        label = noise_label(sampling.noise_level, sampling.denoise_level, frames=low.shape[1], released=True)
        noised, start = sampling.noised(low, noise[0].to(low)), noise[1].to(low)

        def velocity(x: Tensor, noised: Tensor, *, t: int) -> Tensor:
            out = denoiser.velocity(x, noised, t=t, label=label)
            tally("sampling")
            return out

        def decode(z: Tensor, low: Tensor) -> Tensor:
            out = self.decoder.decode(z, low)
            tally("decoding")
            return out

        def refine(x0: Tensor) -> Tensor:
            return propagate(x0, *(latent_flow(flow, tuple(low.shape[-2:]), scaling="released") for flow in flows))

        predict = over_windows(velocity, plan)
        z = sample_refined(
            lambda x, t: predict(x, noised, t=t),
            start,
            sampling.schedule,
            refine=None if flows is None else refine,
            refine_at=sampling.propagated,
        )
        return over_windows(decode, partial(consecutive_windows, length=self.decoding.windows.n_frames))(z, low)


class _Crops:
    """The units of work over a clip: the flows, then crop by crop, each with the next numbers of the generator."""

    def __init__(
        self,
        method: ReleasedUpscaleAVideo,
        crops: Sequence[Patch],
        noise: ReleasedClipNoise,
        denoiser: PromptedDenoiser,
        tally: Tally,
    ) -> None:
        self.method, self.crops, self.noise, self.denoiser, self.tally = method, crops, noise, denoiser, tally
        self.drawn = 0  # crops whose numbers were drawn

    def unit(self, frames: Sequence[Frame], k: int) -> Mapping[int, Frame]:
        """Crop k of all frames; -1 finds the flows."""
        low = stack(frames, "low")
        if k < 0:
            flows = flows_of_clip(self.method.networks["flow"], low, released_scale=True)
            pairs = zip(*(flow.unbind(1) for flow in flows), strict=True)
            return {i + 1: frames[i + 1].put(to_next=a, to_prev=b) for i, (a, b) in enumerate(pairs)}
        size, crop = tuple(low.shape[-2:]), self.crops[k]
        part = crop.of(low, size)
        flows = None
        if self.method.sampling.propagated and len(frames) > 1:
            flows = [crop.of(stack(frames[1:], name), size) for name in FLOWS]
        try:
            noise = self._noise_of(k, len(frames), size)
            sr = self.method.restore_crop(part, noise, flows, denoiser=self.denoiser, tally=self.tally)
            if not torch.isfinite(sr).all():
                raise FloatingPointError("the result is not finite")
        except FloatingPointError as error:
            raise FloatingPointError(f"the crop at {crop}: {error}") from None
        return {i: frame.put(sr=self._pasted(frame, sr[:, i], crop)) for i, frame in enumerate(frames)}

    def _noise_of(self, k: int, frames: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The numbers of crop k; those of crops before it, done in an earlier run, are drawn and dropped."""
        for crop in self.crops[self.drawn : k + 1]:
            sides = tuple(part.stop - part.start for part in crop.cut)
            drawn = self.noise.next_run(frames, sides, latent_channels=self.method.channels)
        self.drawn = k + 1
        return drawn

    def _pasted(self, frame: Frame, sr: Tensor, crop: Patch) -> Tensor:
        """The frame's result so far with the core of a crop put in."""
        low, factor = frame["low"], sr.shape[-1] // (crop.cut[1].stop - crop.cut[1].start)
        size = tuple(low.shape[-2:])
        out = frame.values.get("sr")
        out = low.new_zeros(*low.shape[:2], *(factor * side for side in size)) if out is None else out.clone()
        crop.place_in(out, size).copy_(crop.core_of(sr))
        return out
