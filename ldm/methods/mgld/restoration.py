"""The operations of MGLD-VSR on one clip: encode, estimate motion, denoise, guide, decode, correct colours."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ldm.diffusion.multistep import HISTORY
from ldm.diffusion.samplers import assert_finite
from ldm.methods.mgld.codec import Codec
from ldm.methods.mgld.conditions import MAX_CACHED_BYTES, Conditions
from ldm.methods.mgld.settings import Sampling
from ldm.methods.progress import Tally
from ldm.methods.windows import Windows
from ldm.ops.color import COLOR_FIXES
from ldm.ops.cuts import scene_ends
from ldm.ops.flow import Motion, estimate_motion
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Each, Frame, Stage, Windowed, run_all, stack
from ldm.streaming.steps import Steps

FLOW_SCALE = 4  # flow is estimated on frames this much smaller than the restored ones, as released
Noise = Callable[[int | str, Sequence[int], Sequence[int]], Tensor]  # (step, frame numbers, (c, h, w)) -> (T, c, h, w)


class Restoration:
    """Restoration of one clip. Frames have values "picture" (enlarged, in [0, 1]), "z", "x", "sr" and their motion.

    Args:
        networks: as for `ldm.methods.mgld.method.MGLD`.
        codec: the autoencoders.
        sampling: settings of the sampler.
        windows: windows of frames and tiles of latents.
        noise: source of standard normal noise, such as `ldm.diffusion.noise.FrameNoise`.
        tally: counter of network calls.
        cached: maximum size of the cache of conditions, in bytes.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        codec: Codec,
        sampling: Sampling,
        windows: Windows,
        noise: Noise,
        tally: Tally,
        cached: int = MAX_CACHED_BYTES,
    ) -> None:
        self.unet, self.text, self.flow = networks["unet"], networks["text"], networks["flow"]
        self.codec, self.sampling, self.windows, self.noise, self.tally = codec, sampling, windows, noise, tally
        self.conditions = Conditions(networks["structure"], limit=cached)
        self._context: Tensor | None = None
        self._tiled: dict[tuple[int, int], Callable[..., Tensor]] = {}

    # ---- before sampling

    def encode(self, frame: Frame, *, size: tuple[int, int]) -> Frame:
        """Add the LQ latent "z" of `size`, the initial sample "x" and a small picture for the optical flow."""
        z = self.latents(frame["picture"][:, None], [frame.number], size)
        return self.shrink(frame).put(z=z[:, 0], x=self.first_sample(z, [frame.number])[:, 0])

    def shrink(self, frame: Frame) -> Frame:
        """Add the small picture for the optical flow."""
        height, width = frame["picture"].shape[-2:]
        return frame.put(small=resize(frame["picture"], (height // FLOW_SCALE, width // FLOW_SCALE)))

    def latents(self, pictures: Tensor, numbers: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Encode pictures (1, T, 3, H, W) of these frames to LQ latents (1, T, c, *size).

        They are samples of the posterior, or its mean if sampling starts from them.
        """
        shape = (self.codec.channels, *size)
        if self.sampling.initial == "lq":
            return self.codec.encode(pictures, pictures.new_zeros(1, len(numbers), *shape))
        return self.codec.encode(pictures, self.noise("posterior", numbers, shape)[None].to(pictures))

    def first_sample(self, z: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return the sample (1, T, c, h, w) with which sampling from LQ latents z of these frames starts."""
        if self.sampling.initial == "lq":
            return z
        return self.sampling.start(z, self.noise("start", numbers, tuple(z.shape[2:]))[None].to(z))

    def compare(self, before: Frame, frame: Frame, *, size: tuple[int, int]) -> tuple[bool, Frame]:
        """Return whether a scene ends between two frames, and the second frame, with its motion if none ends.

        `size` (h, w) is that of the latents and of the motion.
        """
        pair = torch.stack([before["small"], frame["small"]], dim=1)
        motion = estimate_motion(self.flow, pair, size=size)
        unmatched = self.windows.scene_cut
        if unmatched is not None and scene_ends(pair[:, 0], pair[:, 1], motion, unmatched=unmatched):
            return True, frame
        return False, frame.put(**{name: field[:, 0] for name, field in motion._asdict().items()})

    # ---- sampling

    def sampling_stages(self) -> list[Stage]:
        """Return the stages of all sampling steps, each followed by its guidance."""
        several = self.sampling.multistep
        steps = Steps(
            self.window_step,
            self.windows.places,
            refine=(lambda i: None) if several else None,
            update=self.advance if several else None,
            guide=self.guide if self.sampling.reach else None,
            reach=self.sampling.reach,
        )
        return steps.stages(len(self.sampling.schedule))

    @property
    def window_step(self) -> Callable[..., Tensor]:
        """What a step computes of a window: `denoise`, or `denoise_to_clean` for a sampler of several steps."""
        return self.denoise_to_clean if self.sampling.multistep else self.denoise

    def denoise(self, frames: list[Frame], *, i: int) -> Tensor:
        """Return x_{i-1} (1, T, c, h, w) of a window of frames with values x_i."""
        x, z = stack(frames, "x"), stack(frames, "z")
        numbers, shape = [frame.number for frame in frames], tuple(x.shape[2:])
        prediction = self._in_tiles(z)(x, z, i=i, frames=numbers)
        return assert_finite(self.sampling.step(prediction, x, i, lambda k: self.noise(k, numbers, shape)[None]), i)

    def denoise_to_clean(self, frames: list[Frame], *, i: int) -> Tensor:
        """Return x0 (1, T, c, h, w) of a window of frames with values x_i."""
        x, z = stack(frames, "x"), stack(frames, "z")
        numbers = [frame.number for frame in frames]
        prediction = self._in_tiles(z)(x, z, i=i, frames=numbers)
        return assert_finite(self.sampling.clean(prediction, x, i), i)

    def advance(self, frame: Frame, *, i: int) -> Frame:
        """Return a frame with values x_i and x0 with x_{i-1} and what the next step needs."""
        return frame.without("x0", *HISTORY).put(**self.sampling.advance(frame.values, i))

    def _in_tiles(self, z: Tensor) -> Callable:
        """Return `_predict`, called in tiles of latents of the size of z; it is kept, with the weights of its tiles."""
        latent = tuple(z.shape[-2:])
        if latent not in self._tiled:
            self._tiled[latent] = self.windows.over(self._predict, latent)
        return self._tiled[latent]

    def _predict(self, x: Tensor, z: Tensor, *, i: int, frames: Sequence[int], tiles: list) -> Tensor:
        """Return the prediction of the U-Net for tiles x, z (B, T, c, h, w) of these frames in step i."""
        t = int(self.sampling.schedule.t[i])
        step = torch.full((1,), t, device=x.device)
        with self.codec.autocast():
            place = (t, tuple(z.shape[-2:]), *((tile.y.start, tile.x.start) for tile in tiles))
            maps = self.conditions(z, step, place=place, frames=frames, shared=self.windows.places.overlap_of(i))
            out = self.unet(x.flatten(0, 1), step, self.context(x.device), maps, num_frames=x.shape[1])
        self.tally("sampling")
        return out.float().unflatten(0, x.shape[:2])

    def context(self, device: torch.device) -> Tensor:
        """Return the text context of the empty prompt, encoded once for all windows and steps."""
        if self._context is None:
            self._context = self.text()
        return self._context.to(device)

    def guide(self, frames: list[Frame], start: int, stop: int, *, i: int) -> Tensor:
        """Apply motion guidance to x_i and return that of frames[start:stop]."""
        x = stack(frames, "x")
        if len(frames) > 1:
            x = self.sampling.guide(x, i, motion_between(frames))
        return assert_finite(x[:, start:stop], i)

    # ---- after sampling

    def decoding_stage(self) -> Stage:
        """Return the stage that decodes latents "x" to frames "sr", about [-1, 1]."""
        windows = self.codec.decoding.windows
        stage = Windowed(self._decode, size=windows.n_frames, overlap=windows.frame_overlap, name="sr")
        return stage.with_label("decoding")

    def _decode(self, frames: list[Frame]) -> Tensor:
        return self.codec.decode(stack(frames, "x"), stack(frames, "picture"), report=partial(self.tally, "decoding"))

    def fix_colors(self, frame: Frame) -> Frame:
        """Transfer the colours of the LQ frame to "sr" by the `color_fix` of the settings."""
        fix = COLOR_FIXES[self.codec.decoding.color_fix]
        return frame.put(sr=fix(frame["sr"], frame["picture"] * 2 - 1))

    def restore_encoded(self, z: Tensor, pictures: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
        """Sample and decode a clip from its LQ latents z (1, T, c, h, w) and its motion.

        pictures (1, T, 3, H, W) are the enlarged LQ frames in [0, 1]. Returns the sampled latents and the frames, about
        [-1, 1].
        """
        count = z.shape[1]
        x = self.first_sample(z, range(count))
        frames = []
        for k in range(count):
            values = {"picture": pictures[:, k], "z": z[:, k], "x": x[:, k]}
            if k:
                values |= {name: field[:, k - 1] for name, field in motion._asdict().items()}
            frames.append(Frame(k, values, last=k == count - 1))
        stages = [*self.sampling_stages(), self.decoding_stage(), Each(self.fix_colors)]
        restored = run_all(stages, frames, device=z.device)
        return stack(restored, "x"), stack(restored, "sr")


def motion_between(frames: Sequence[Frame]) -> Motion:
    """Return the motion of frames of one scene; each frame but the first holds the motion from the previous one."""
    return Motion(*(stack(frames[1:], name) for name in Motion._fields))
