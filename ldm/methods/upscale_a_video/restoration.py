"""The functions of the stages of Upscale-A-Video for one clip: prepare, compare, denoise, propagate, decode, finish."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ldm.diffusion.denoiser import to_eps, to_x0
from ldm.diffusion.propagation import propagate
from ldm.diffusion.refined import clean_and_noise, refined_step
from ldm.diffusion.samplers import assert_finite
from ldm.methods.progress import Tally
from ldm.methods.upscale_a_video.models import LatentDecoder, PromptedDenoiser
from ldm.methods.upscale_a_video.settings import BLOCK, ClipDecoding
from ldm.methods.windows import Windows
from ldm.ops.clip_flow import flows_of_clip
from ldm.ops.color import COLOR_FIXES
from ldm.ops.cuts import scene_ends
from ldm.ops.flow import Motion, forward_backward_occlusion
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Frame, Neighbours, Stage, Windowed, stack
from ldm.streaming.steps import Steps

FLOWS = ("to_next", "to_prev")  # of a pair of frames; the second one carries them
ClipNoise = Callable[[str, Sequence[int], Sequence[int]], Tensor]  # (what, frame numbers, (c, h, w)) -> (T, c, h, w)
FlowNet = Callable[[Tensor, Tensor], Tensor]


def with_colors(frame: Frame, decoding: ClipDecoding) -> Frame:
    """The frame with the colours of "sr" replaced by those of "low", enlarged bicubically, as `decoding` says."""
    fix, sr = COLOR_FIXES[decoding.color_fix], frame["sr"]
    return frame.put(sr=fix(sr, resize(frame["low"] * 2 - 1, tuple(sr.shape[-2:]))))


class ClipRestoration:
    """The functions of the stages that restore one clip.

    Frames carry "low" (in [0, 1]), "noised", "x", the number of their "scene", flows and "sr".

    Args:
        denoiser, decoder: the networks.
        flow: estimator of optical flow, (n, 3, h, w) twice in [0, 1] -> (n, 2, h, w).
        windows: frames and tiles of the denoiser.
        decoding: frames and tiles of the decoder.
        noise: source of standard normal noise, such as `ldm.diffusion.noise.FrameNoise`.
        tally: counts calls of networks.
    """

    def __init__(
        self,
        denoiser: PromptedDenoiser,
        decoder: LatentDecoder,
        *,
        flow: FlowNet,
        windows: Windows,
        decoding: ClipDecoding,
        noise: ClipNoise,
        tally: Tally,
    ) -> None:
        self.denoiser, self.decoder, self.flow = denoiser, decoder, flow
        self.sampling, self.windows, self.decoding = denoiser.sampling, windows, decoding
        self.noise, self.tally = noise, tally

    # ---- before sampling

    def prepare(self, frame: Frame, *, scene: int = 0) -> Frame:
        """Add "noised", the low-resolution frame with noise, the pure noise "x" and the number of the first "scene"."""
        low, numbers = frame["low"], [frame.number]
        noised = self.sampling.noised(low, self.noise("low", numbers, tuple(low.shape[1:])).to(low))
        x = self.noise("start", numbers, (self.denoiser.unet.out_channels, *low.shape[2:])).to(low)
        return frame.put(noised=noised, x=x, scene=torch.full((1,), scene, dtype=torch.int64, device=low.device))

    def compare(self, before: Frame, frame: Frame) -> tuple[bool, Frame]:
        """Whether a scene ends between two frames, and the second one with its scene and its flows."""
        unmatched, propagated = self.windows.scene_cut, self.sampling.propagated
        if unmatched is None and not propagated:
            return False, frame.put(scene=before["scene"])
        pair = stack([before, frame], "low")
        flows = flows_of_clip(self.flow, pair)
        if unmatched is not None:
            masks = forward_backward_occlusion(*(flow[:, 0] for flow in flows))
            motion = Motion(*flows, *(mask[:, None] for mask in masks))
            if scene_ends(pair[:, 0], pair[:, 1], motion, unmatched=unmatched):
                return True, frame.put(scene=before["scene"] + 1)
        values = {name: flow[:, 0] for name, flow in zip(FLOWS, flows, strict=True)} if propagated else {}
        return False, frame.put(scene=before["scene"], **values)

    # ---- sampling

    def sampling_stages(self) -> list[Stage]:
        """All sampling steps, from the noisiest."""
        propagates = bool(self.sampling.propagated)
        steps = Steps(
            self.denoise,
            self.windows.places,
            blend=self.sampling.blend,
            refine=self.refine if propagates else None,
            update=self.update if propagates else None,
        )
        return steps.stages(len(self.sampling.schedule))

    def denoise(self, frames: list[Frame], *, i: int) -> Tensor:
        """x_{i-1} (1, T, c, h, w) of a window of frames at x_i; where steps propagate, x0."""
        x, noised, schedule = stack(frames, "x"), stack(frames, "noised"), self.sampling.schedule
        velocity = partial(self._velocity, t=int(schedule.t[i]), scene=int(frames[0]["scene"]))
        v = self.windows.over(velocity, tuple(x.shape[-2:]))(x, noised)
        if self.sampling.propagated:
            return assert_finite(to_x0(v, x, schedule, i, "v"), i)
        return assert_finite(refined_step(*clean_and_noise(v, x, schedule, i), schedule, i), i)

    def _velocity(self, x: Tensor, noised: Tensor, *, t: int, scene: int, tiles: list) -> Tensor:
        v = self.denoiser.velocity(x, noised, t=t, scene=scene)
        self.tally("sampling")
        return v

    def refine(self, i: int) -> Stage | None:
        """The stage that propagates "x0" into "refined", None for a step that does not."""
        if i not in self.sampling.propagated:
            return None
        return Neighbours(self.propagate, reach=self.sampling.context, name="refined", block=BLOCK)

    def propagate(self, frames: list[Frame], start: int, stop: int) -> Tensor:
        """Propagated x0 of frames[start:stop], (1, T, c, h, w); all frames are of one scene."""
        x0 = stack(frames, "x0")
        if len(frames) == 1:
            return x0
        return propagate(x0, *(stack(frames[1:], name) for name in FLOWS))[:, start:stop]

    def update(self, frame: Frame, *, i: int) -> Frame:
        """The frame at x_{i-1}: the noise is that of x0 before it was propagated."""
        x0, schedule = frame["x0"], self.sampling.schedule
        eps = to_eps(x0, frame["x"], schedule, i)
        x = refined_step(frame.values.get("refined", x0), eps, schedule, i)
        return frame.without("x0", "refined").put(x=assert_finite(x, i))

    # ---- after sampling

    def decoding_stage(self) -> Stage:
        """The stage that turns latents into frames "sr" in [-1, 1]."""
        windows = self.decoding.windows
        overlap = windows.frame_overlap
        stage = Windowed(self._decode, size=windows.n_frames, overlap=overlap, name="sr", flush=overlap > 0)
        return stage.with_label("decoding")

    def _decode(self, frames: list[Frame]) -> Tensor:
        x = stack(frames, "x")
        return self.decoding.windows.over(self._decode_tile, tuple(x.shape[-2:]))(x, stack(frames, "low"))

    def _decode_tile(self, x: Tensor, low: Tensor, *, tiles: list) -> Tensor:
        out = self.decoder.decode(x, low)
        self.tally("decoding")
        return out
