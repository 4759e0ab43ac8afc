"""Upscale-A-Video over built networks, frames to frames."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ldm.diffusion.noise import FrameNoise
from ldm.methods.contract import Costs, Progress, Request, no_progress
from ldm.methods.progress import Tally
from ldm.methods.upscale_a_video import levers as memory
from ldm.methods.upscale_a_video.levers import ClipLevers
from ldm.methods.upscale_a_video.models import LatentDecoder, PromptedDenoiser
from ldm.methods.upscale_a_video.restoration import ClipRestoration, with_colors
from ldm.methods.upscale_a_video.settings import ClipDecoding, ClipSampling, Words
from ldm.methods.upscale_a_video.sizes import LowGeometry
from ldm.methods.windows import Windows
from ldm.methods.words import PRECISIONS, precision_on
from ldm.nets.layers import compile_once
from ldm.ops.clip_flow import flows_of_clip
from ldm.streaming.pipeline import Each, Frame, Pipeline, Scenes

BUILDABLE = ("UpscaleAVideo",)
NEEDED = ("unet", "autoencoder", "text", "flow")


@dataclass(frozen=True, kw_only=True)
class UpscaleAVideo:
    """The x4 upscaler over windows of frames, guided by words, scene by scene (Zhou et al. 2024).

    Args:
        networks: modules by the names of `NEEDED`; `flow(img1, img2)` may be any estimator of `ldm.nets` or
            `ldm.ops.dis`. They are set to evaluation.
        scale_factor: latents are this times what the decoder takes.
        sampling, windows, decoding: how latents are sampled, cut into windows and tiles, and decoded.
        words: what describes a clip that has no prompt of its own.
        min_size: pixels that the short side of the latents has at least; smaller frames are enlarged.
        precision: "fp32", "bf16" or "fp16" for the networks alone, or "auto" (`ldm.methods.words.precision_on`).
        compiled: run the U-Net by torch.compile.

    Raises ValueError for a missing network, an unknown word, or a noise level that the U-Net does not know.
    """

    networks: Mapping[str, nn.Module]
    scale_factor: float = 0.08333
    sampling: ClipSampling
    windows: Windows
    decoding: ClipDecoding
    words: Words
    min_size: int = 32
    precision: str = "fp32"
    compiled: bool = False

    def __post_init__(self):
        for name in NEEDED:
            if name not in self.networks:
                raise ValueError(f"got networks {sorted(self.networks)}, expected {name} among them")
        precision_on(self.device, self.precision)  # raises for an unknown word
        highest = self.networks["unet"].max_noise_level
        if max(self.sampling.label, self.sampling.noise_level) > highest:
            raise ValueError(f"got noise level {self.sampling.label}, expected 0 to {highest}")
        if not self.scale_factor > 0 or self.min_size < 1:
            got = f"scale_factor {self.scale_factor} and min_size {self.min_size}"
            raise ValueError(f"got {got}, expected a number above 0 and at least 1 pixel")
        for network in self.networks.values():
            network.eval().requires_grad_(False)

    # ---- the contract

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks["unet"].parameters()).device

    def stream(self, request: Request, levers: ClipLevers | None = None, progress: Progress = no_progress) -> Pipeline:
        """The stages that restore a clip; see `ldm.methods.contract.Method.stream`.

        Each sampling step waits for a window of frames, so frames come out late. The noise of a frame depends on its
        number and the seed alone. A prompt of several lines has one for each scene.
        """
        if self.compiled:
            compile_once(self.networks["unet"])  # not before: memory is probed on other sizes
        levers, geometry = levers or self.levers()[0], self.geometry(request.size, request.upscale)
        calls = self.calls(request.frames, geometry.low, levers) if request.frames else {}
        run = self.restoration(request, levers, Tally(progress, calls))
        stages = [
            Each(lambda frame: frame.put(low=geometry.reduce(frame["lq"])).without("lq")).with_label("reducing"),
            Each(partial(run.prepare, scene=request.scene)).with_label("noising"),
            Scenes(run.compare).with_label("flow"),
            *run.sampling_stages(),
            Each(lambda frame: frame.without("noised", "scene", "to_next", "to_prev")),
            run.decoding_stage(),
            Each(partial(with_colors, decoding=run.decoding)).with_label("colours"),
            Each(lambda frame: frame.put(sr=geometry.finish(frame["sr"])).without("low", "x")).with_label("colours"),
        ]
        return Pipeline(stages, device=self.device)

    def find_scenes(self, request: Request) -> Pipeline | None:
        """The stages up to the scenes; see `ldm.methods.contract.SceneMethod.find_scenes`."""
        return Pipeline(self.stream(request).stages[:3], device=self.device)

    def levers(self) -> list[ClipLevers]:
        """Tiles from those of the settings down to the least memory."""
        return memory.clip_ladder(self.windows, self.decoding)

    def probes(self, levers: ClipLevers) -> dict[str, Callable[[int], int | None]]:
        """A window of the denoiser and of the decoder, and the flow of a pair."""
        run = self.restoration(Request((64, 64)), levers, Tally(no_progress, {}))

        def zeros(frames: int, channels: int, side: int) -> Tensor:
            return torch.zeros(1, frames, channels, side, side, device=self.device)

        @torch.no_grad()
        def sampling(side: int) -> None:
            values = {"x": zeros(1, self.channels, side)[:, 0], "noised": zeros(1, 3, side)[:, 0]}
            values["scene"] = torch.zeros(1, dtype=torch.int64)
            run.denoise([Frame(k, values) for k in range(self.windows.n_frames)], i=0)

        @torch.no_grad()
        def decoding(side: int) -> None:
            count = self.decoding.windows.n_frames
            run.decoder.decode(zeros(count, self.channels, side), zeros(count, 3, side))

        @torch.no_grad()
        def flow(side: int) -> None:
            flows_of_clip(self.networks["flow"], zeros(2, 3, side))

        return {"sampling": sampling, "decoding": decoding, "flow": flow}

    def peak(self, request: Request, levers: ClipLevers, costs: Costs) -> int | None:
        """Bytes that restoring takes at most; see `ldm.methods.contract.Method.peak`."""
        return memory.clip_peak(self, request, levers, costs)

    # ---- more than the contract

    def restoration(self, request: Request, levers: ClipLevers, tally: Tally) -> ClipRestoration:
        """The functions of the stages for one clip, with noise that has an address."""
        return ClipRestoration(
            self.denoiser(request.prompt),
            self.decoder,
            flow=self.networks["flow"],
            windows=levers.sampling_windows(self.windows),
            decoding=levers.decoding(self.decoding),
            noise=FrameNoise(request.seed),
            tally=tally,
        )

    def denoiser(self, caption: str | None) -> PromptedDenoiser:
        """The U-Net with the words of a clip; `caption` None: those of the settings."""
        return PromptedDenoiser(
            self.networks["unet"],
            self.networks["text"],
            sampling=self.sampling,
            words=self.words,
            prompts=self.words.prompts(caption),
            dtype=PRECISIONS[precision_on(self.device, self.precision)],
        )

    @property
    def decoder(self) -> LatentDecoder:
        """The decoder as the settings say."""
        return LatentDecoder(
            self.networks["autoencoder"],
            scale_factor=self.scale_factor,
            condition=self.decoding.condition,
            dtype=PRECISIONS[precision_on(self.device, self.precision)],
        )

    def geometry(self, size: tuple[int, int], upscale: float) -> LowGeometry:
        """The sizes that frames of `size` (h, w) go through."""
        factor = self.networks["autoencoder"].downsampling
        return LowGeometry(size, upscale=upscale, factor=factor, least=self.min_size)

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.networks["unet"].out_channels

    @property
    def frames_held(self) -> int:
        """Frames that a stream holds at most."""
        return memory.clip_frames_held(self.sampling, self.windows, self.decoding.windows)

    def calls(self, frames: int, size: tuple[int, int], levers: ClipLevers) -> dict[str, int]:
        """Calls of networks by stage for one scene of so many frames whose latents have `size` (h, w)."""
        sampling = levers.sampling_windows(self.windows).calls(frames, *size, steps=len(self.sampling.schedule))
        return {"sampling": sampling, "decoding": levers.decoding(self.decoding).windows.calls(frames, *size)}
