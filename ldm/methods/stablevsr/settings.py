"""The settings of StableVSR's sampling, and where its random numbers come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ldm.diffusion.bidirectional import control_scales, ends_clean
from ldm.diffusion.noise import FrameNoise, SequentialNoise
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.scheduler import Scheduler
from ldm.methods.words import choose

BUILDABLE = ("BidirectionalSampling",)
GRIDS = ("released", "aligned")


class AddressedDraws:
    """Noise that the seed, the step and the frame's number decide; see `ldm.diffusion.noise.FrameNoise`."""

    def __init__(self, seed: int) -> None:
        self.source = FrameNoise(seed)

    def __call__(self, step: int | str, frame: int, *, turn: int, shape: Sequence[int]) -> Tensor:
        """(1, *shape), standard normal."""
        return self.source(step, [frame], shape)


class SequentialDraws:
    """Noise from one stream, in the order in which the released pipeline draws; a scene starts with the seed.

    `turn` is the number of tensors drawn before in the scene, so that a resumed run finds its place in the stream.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.drawn, self.source = seed, 0, SequentialNoise(seed)

    def __call__(self, step: int | str, frame: int, *, turn: int, shape: Sequence[int]) -> Tensor:
        """(1, *shape), the tensor of this turn."""
        if turn < self.drawn:
            self.drawn, self.source = 0, SequentialNoise(self.seed)
        for _ in range(turn - self.drawn):
            self.source(step, [frame], shape)
        self.drawn = turn + 1
        return self.source(step, [frame], shape)


DRAWS = {"addressed": AddressedDraws, "sequential": SequentialDraws}


@dataclass(frozen=True)
class BidirectionalSampling:
    """How the latents of a scene are sampled.

    Args:
        scheduler: how the denoiser was trained, and the time steps that a number of steps means.
        steps: sampling steps.
        timesteps: a falling list of time steps instead.
        control_scale: factor of the control network's residuals.
        control_start, control_end: shares of the steps outside which that factor is 0.
        grid: of the warp, "released" or "aligned" (`ldm.ops.flow.flow_warp`).
        draws: "addressed", or "sequential" as released.

    Raises ValueError for an unknown word, or steps that the scheduler does not have.
    """

    scheduler: Scheduler
    steps: int = 50
    timesteps: Sequence[int] | None = None
    control_scale: float = 1.0
    control_start: float = 0.0
    control_end: float = 1.0
    grid: str = "released"
    draws: str = "addressed"

    def __post_init__(self):
        choose(dict.fromkeys(GRIDS), self.grid, "grid")
        choose(DRAWS, self.draws, "draws")
        if not 0 <= self.control_start <= self.control_end <= 1:
            got = f"control_start {self.control_start} and control_end {self.control_end}"
            raise ValueError(f"got {got}, expected 0 <= start <= end <= 1")
        len(self.schedule)  # raises for wrong steps

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule of the sampling steps; i = 0 is the cleanest."""
        return self.scheduler.sampling(self.timesteps if self.timesteps is not None else self.steps)

    @cached_property
    def scales(self) -> list[float]:
        """The factor of the control network in each step, from the noisiest on."""
        return control_scales(len(self.schedule), self.control_scale, start=self.control_start, end=self.control_end)

    @cached_property
    def ends_clean(self) -> bool:
        """Whether the last step's guidance pictures are the results."""
        return ends_clean(self.schedule)
