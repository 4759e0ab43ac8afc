"""The settings of MGLD-VSR: sampling and decoding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

from torch import Tensor

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.guidance import MotionGuidance
from ldm.diffusion.multistep import dpmpp_2m, unipc
from ldm.diffusion.samplers import ddim_step, ddpm_step, intermediate_signal, lcm_step, tcd_step
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.spacing import spaced, timesteps_from_end
from ldm.methods.windows import Windows
from ldm.methods.words import choose
from ldm.nets.whole_frame import HOLD, Cut
from ldm.ops.color import COLOR_FIXES
from ldm.ops.flow import Motion

BUILDABLE = ("Sampling", "Decoding")
NORMS = ("auto", "frame", "shared", "tile")
MULTISTEP = {"dpmpp_2m": (dpmpp_2m, 1), "unipc": (unipc, 2)}  # with the number of earlier clean samples that they need
SAMPLERS = ("ddpm", "ddim", "lcm", "tcd", *MULTISTEP)


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler.

    Args:
        steps: sampling steps.
        sampler: "ddpm", "ddim", "lcm" or "tcd" (`ldm.diffusion.samplers`), "dpmpp_2m" or "unipc"
            (`ldm.diffusion.multistep`).
        prediction: the training target of the U-Net: "eps", "v" or "x0".
        guidance: form of the motion guidance: "paper", "released" or "none" (`ldm.diffusion.guidance`).
        guidance_scale: strength of the guidance; None for the default of the form.
        arithmetic: "float64", or "released" to respace the schedule in float32.
        full: the training schedule of the U-Net.
        spacing: time steps of the sampling: "even" from the first to the last, as released, or "trailing", which
            leaves out the first (249, 499, 749, 999 for 4; `ldm.diffusion.spacing`).
        gamma: stochasticity of the sampler "tcd", 0 to 1.
        initial: where sampling starts: "noised", from the LQ latents noised to the last time step, or "lq", from the
            LQ latents themselves in place of a sample at time step `level`, as one-step students are trained
            (`ldm.training.student`). Then nothing random is drawn, and LQ latents are the mean of the posterior.
        level: the time step of `initial="lq"`.

    Raises ValueError for an unknown word or an invalid number of steps.
    """

    steps: int = 50
    sampler: str = "ddpm"
    prediction: str = "eps"
    guidance: str = "paper"
    guidance_scale: float | None = None
    arithmetic: str = "float64"
    full: Schedule = field(default_factory=Schedule.linear_sd)
    spacing: str = "even"
    gamma: float = 0.3
    initial: str = "noised"
    level: int = 399

    def __post_init__(self):
        choose(dict.fromkeys(SAMPLERS), self.sampler, "sampler")
        choose({"paper": 1, "released": 1, "none": 1}, self.guidance, "guidance")
        choose({"eps": 1, "v": 1, "x0": 1}, self.prediction, "prediction")
        choose({"even": 1, "trailing": 1}, self.spacing, "spacing")
        choose({"noised": 1, "lq": 1}, self.initial, "initial")
        if self.spacing == "trailing" and self.arithmetic == "released":
            raise ValueError("got spacing 'trailing' with arithmetic 'released', expected float64")
        if not 0 <= self.level < len(self.full):
            raise ValueError(f"got level {self.level}, expected 0 to {len(self.full) - 1}")
        intermediate_signal(self.schedule, self.full, self.gamma)  # raises for a wrong number of steps, or gamma

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of the sampling steps."""
        full = self.full if self.initial == "noised" else spaced(self.full, range(self.level + 1), final_abar=1.0)
        if self.spacing == "trailing":
            return spaced(full, timesteps_from_end(self.steps, len(full)), final_abar=1.0)
        return full.respaced(self.steps, arithmetic=self.arithmetic)

    @property
    def multistep(self) -> bool:
        """Whether the sampler uses clean samples of earlier steps, so that windows predict x0 (`clean`, `advance`)."""
        return self.sampler in MULTISTEP

    @property
    def history(self) -> int:
        """Number of earlier clean samples that each frame keeps."""
        return MULTISTEP[self.sampler][1] if self.multistep else 0

    @property
    def reach(self) -> int:
        """Frames before and after a frame that its guidance reads."""
        return {"paper": 1, "released": 2, "none": 0}[self.guidance]

    def start(self, z: Tensor, noise: Tensor) -> Tensor:
        """Return the initial sample of `initial="noised"`: the LQ latents z, noised to the last step of `full`."""
        return self.full.add_noise(z, noise, len(self.full) - 1)

    def clean(self, prediction: Tensor, x: Tensor, i: int) -> Tensor:
        """Return the clean sample x0 that a prediction of the U-Net at x = x_i means."""
        return to_x0(prediction, x, self.schedule, i, self.prediction)

    def step(self, prediction: Tensor, x: Tensor, i: int, noise: Callable[[int], Tensor]) -> Tensor:
        """Return x_{i-1} from x = x_i and the prediction of the U-Net; noise(i) is standard normal, shaped like x.

        The sampler must not be one of several steps.
        """
        return self._single_step(self.clean(prediction, x, i), x, i, self.schedule, noise=noise)

    @cached_property
    def _single_step(self) -> Callable[..., Tensor]:
        if self.sampler == "tcd":
            return partial(tcd_step, between=intermediate_signal(self.schedule, self.full, self.gamma))
        return {"ddpm": ddpm_step, "ddim": ddim_step, "lcm": lcm_step}[self.sampler]

    def advance(self, values: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
        """Return "x" of step i-1 from "x" and "x0" of step i, with the history of a sampler of several steps.

        Both are among `values`, as is what the step before returned.
        """
        return MULTISTEP[self.sampler][0](values, i, self.schedule)

    def guide(self, x: Tensor, i: int, motion: Motion) -> Tensor:
        """Apply motion guidance to x = x_i (B, T, c, h, w)."""
        return MotionGuidance(motion, self.schedule, form=self.guidance, scale=self.guidance_scale)(x, i)


@dataclass(frozen=True)
class Decoding:
    """Settings of the encoder and the decoder.

    Args:
        windows: frames and tiles that are decoded at once; the encoder uses the same tiles.
        dec_w: weight of the LQ features in the sequence decoder, 0 to 1.
        color_fix: "adain", "wavelet" or "nofix".
        norms: statistics of the autoencoders' norms for a frame that is cut into tiles: "frame", those of the whole
            frame (exact); "shared", the same approximate statistics for all tiles; "tile", those of each tile, with
            overlapping tiles blended; "auto", "frame" if the maps of a window take at most `hold` bytes, otherwise
            "shared" (`ldm.nets.whole_frame`).
        attention: limit the attention of the autoencoders to tiles of so many latent pixels (approximate); 0 for the
            whole frame.
        hold: maximum bytes of a window's maps that are kept for the whole frame.

    Raises ValueError for an unknown word or a negative number.
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
        """Return how to cut latents whose largest map has `largest` bytes per window; None for blended tiles."""
        norms = self.norms
        if norms == "auto":
            norms = "frame" if largest <= self.hold else "shared"
        if norms == "tile":
            return None
        return Cut(self.windows.tile, norms, self.attention, self.hold)
