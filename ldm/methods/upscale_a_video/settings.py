"""The settings of Upscale-A-Video: how latents are sampled and decoded, and the words that describe a clip."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ldm.diffusion.classifier_free import noise_label
from ldm.diffusion.refined import refined_steps
from ldm.diffusion.schedule import Schedule, upscaler_schedule
from ldm.diffusion.spacing import choose_timesteps, spaced
from ldm.methods.windows import Windows
from ldm.methods.words import choose
from ldm.ops.color import COLOR_FIXES
from ldm.ops.windows import WindowPlan, crossfaded_windows, released_windows
from ldm.streaming.blending import AVERAGE, CROSSFADE, Blend

BUILDABLE = ("ClipSampling", "ClipDecoding", "Words")
BLOCK = 16  # frames that are propagated at once, beside their context
MERGINGS = {"crossfade": (CROSSFADE, crossfaded_windows), "released": (AVERAGE, released_windows)}  # streamed, whole
SCENE_END = "\n"  # between the captions of scenes


@dataclass(frozen=True)
class ClipSampling:
    """How latents are sampled: DDIM whose noise comes from the prediction, not from the propagated sample.

    Args:
        steps: sampling steps.
        guidance_scale: of the classifier-free guidance; at 1 or less the negative prompt is not computed.
        noise_level: of the noise added to the low-resolution frames, a time step from 0 to 350.
        denoise_level: the noise level that the network is told instead; None: `noise_level`.
        propagation_steps: numbers of the steps at which latents are propagated, such as "24,26,28"; 0 is the noisiest.
        context: frames on either side from which a frame's propagation is computed; 16 agree with the whole clip to
            3e-5, 24 to 3e-7.
        spacing: of the time steps, "auto", "released" or "from_end" (`ldm.diffusion.spacing`).
        merging: of windows that share frames: "crossfade", or "released": each visit averages with the earlier value,
            and a last window that is visited twice counts more (quirk U2, `ldm.ops.windows`).

    Raises ValueError for an unknown word or a number out of its range.
    """

    steps: int = 30
    guidance_scale: float = 6.0
    noise_level: int = 120
    denoise_level: int | None = None
    propagation_steps: str | None = ""
    context: int = 16
    spacing: str = "auto"
    merging: str = "crossfade"

    def __post_init__(self):
        choose(MERGINGS, self.merging, "merging of windows")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"got guidance_scale {self.guidance_scale}, expected a finite number")
        for level in (self.noise_level, self.label):
            if not 0 <= level < len(self.full):
                raise ValueError(f"got noise level {level}, expected 0 to {len(self.full) - 1}")
        if self.context < 0:
            raise ValueError(f"got context {self.context}, expected 0 or more frames")
        len(self.propagated)  # raises for a wrong number of steps, and for wrong numbers

    @cached_property
    def full(self) -> Schedule:
        """The schedule that the network was trained with."""
        return upscaler_schedule()

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of the sampling steps; behind the last lies time step 0."""
        return spaced(self.full, choose_timesteps(self.steps, len(self.full), spacing=self.spacing))

    @cached_property
    def propagated(self) -> set[int]:
        """Steps i of the schedule at which latents are propagated."""
        words = [word.strip() for word in (self.propagation_steps or "").split(",") if word.strip()]
        if not all(word.isascii() and word.isdecimal() for word in words):
            raise ValueError(f"got propagation steps {self.propagation_steps!r}, expected numbers such as 24,26,28")
        return refined_steps([int(word) for word in words], len(self.schedule))

    @property
    def blend(self) -> Blend:
        """How a stream combines windows that share frames."""
        return MERGINGS[self.merging][0]

    @property
    def window_plan(self) -> Callable[..., WindowPlan]:
        """plan(frames, length=..., overlap=...) of a whole clip."""
        return MERGINGS[self.merging][1]

    @property
    def label(self) -> int:
        """The noise level that the network is told."""
        return noise_label(self.noise_level, self.denoise_level, frames=0)

    def noised(self, low: Tensor, noise: Tensor) -> Tensor:
        """Low-resolution frames in [0, 1] -> in about [-1, 1], with noise of the level."""
        return self.full.add_noise(low * 2 - 1, noise, self.noise_level)


@dataclass(frozen=True)
class ClipDecoding:
    """How latents become frames.

    Args:
        windows: frames and tiles that are decoded at once. Frames that overlap are cross-faded; without an overlap the
            last chunk of a scene is as short as the rest, as released (3 frames, quirk U16).
        condition: weight of the low-resolution frames in a decoder that takes them.
        color_fix: "adain", "wavelet" or "nofix".

    Raises ValueError for an unknown word or a weight that is not finite.
    """

    windows: Windows = Windows(n_frames=6, frame_overlap=2, tile=96, tile_overlap=32)
    condition: float = 1.0
    color_fix: str = "nofix"

    def __post_init__(self):
        choose(COLOR_FIXES, self.color_fix, "color_fix")
        if not math.isfinite(self.condition):
            raise ValueError(f"got condition {self.condition}, expected a finite weight")


@dataclass(frozen=True)
class Words:
    """The words that describe a clip, and what turns them into tokens.

    Args:
        tokenizer: texts -> (n, length) int64, such as `ldm.nets.tokenizer.ClipTokenizer`; None for a text tower that
            takes no words.
        prompt: caption of clips that have none of their own.
        ending: words behind every caption.
        separator: between a caption and the ending; none as released (quirk U17).
        negative_prompt: what the guidance leads away from.
    """

    tokenizer: Callable[[Sequence[str]], Tensor] | None = None
    prompt: str | None = None
    ending: str | None = "best quality, extremely detailed"
    separator: str | None = " "
    negative_prompt: str | None = "blur, worst quality"

    def prompts(self, caption: str | None) -> list[str]:
        """The complete prompt of every scene: a caption has a line for each, the last one for all further scenes."""
        text = self.prompt if caption is None else caption
        lines = [line.strip() for line in (text or "").split(SCENE_END)]
        separator, ending = self.separator or "", self.ending or ""
        return [f"{line}{separator}{ending}" if line and ending else line or ending for line in lines]
