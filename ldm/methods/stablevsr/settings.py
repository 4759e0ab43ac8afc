"""The settings of StableVSR's sampling, and where its random numbers come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ldm.diffusion.bidirectional import Unit, control_scales, ends_clean, unit_at
from ldm.diffusion.noise import FrameNoise, SequentialNoise
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.scheduler import Scheduler
from ldm.methods.stablevsr.guidance import GuidanceDecoder, guidance_decoder_of
from ldm.methods.words import choose

BUILDABLE = ("BidirectionalSampling",)
GRIDS = ("released", "aligned")
ORDERS = {"bidirectional": True, "forward": False}  # whether passes alternate


class AddressedDraws:
    """Noise that the seed, the step and the frame's number decide; see `ldm.diffusion.noise.FrameNoise`."""

    def __init__(self, seed: int) -> None:
        self.source = FrameNoise(seed)

    def __call__(self, step: int | str, frame: int, *, turn: int, shape: Sequence[int]) -> Tensor:
        """(1, *shape), standard normal."""
        return self.source(step, [frame], shape)


class SequentialDraws:
    """Noise from one stream, in the order in which the released pipeline draws; a scene starts with the seed.

    `turn` is the number of tensors drawn before in the scene, so that a resumed run finds its place in the stream. Two
    places of the stream are kept, since the first step takes initial latents and noise in turn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.places: list[tuple[int, SequentialNoise]] = []  # tensors drawn, and the stream behind them

    def __call__(self, step: int | str, frame: int, *, turn: int, shape: Sequence[int]) -> Tensor:
        """(1, *shape), the tensor of this turn."""
        drawn, source = self._nearest(turn)
        for _ in range(turn - drawn):
            source(step, [frame], shape)
        value = source(step, [frame], shape)
        self.places = [(turn + 1, source), *(place for place in self.places if place[1] is not source)][:2]
        return value

    def _nearest(self, turn: int) -> tuple[int, SequentialNoise]:
        """The last kept place before a turn, or the start of the stream; a far one is left where it is."""
        exact = [place for place in self.places if place[0] == turn]
        near = [place for place in self.places if place[0] <= turn]
        if exact or len(self.places) > 1:
            return max(exact or near, key=lambda place: place[0], default=(0, SequentialNoise(self.seed)))
        return 0, SequentialNoise(self.seed)


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
        order: of the frames, "bidirectional", or "forward" in every step.
        guidance_decoder: when guidance is decoded: "full", "cached" or "every K" (`ldm.methods.stablevsr.guidance`).
        guidance_tolerance: of "cached", the relative change of an estimate up to which its last picture is used.

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
    order: str = "bidirectional"
    guidance_decoder: str = "full"
    guidance_tolerance: float = 0.1

    def __post_init__(self):
        choose(dict.fromkeys(GRIDS), self.grid, "grid")
        choose(DRAWS, self.draws, "draws")
        choose(ORDERS, self.order, "order")
        assert self.decoder  # raises for an unknown word
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

    @cached_property
    def decoder(self) -> GuidanceDecoder:
        """When guidance is decoded."""
        return guidance_decoder_of(self.guidance_decoder, tolerance=self.guidance_tolerance)

    @property
    def addressed(self) -> bool:
        """Whether noise does not depend on the order in which it is drawn."""
        return self.draws == "addressed"

    @property
    def looks_ahead(self) -> bool:
        """Whether a frame depends on later ones: some pass goes backwards."""
        return ORDERS[self.order] and len(self.schedule) > 1

    def unit(self, number: int, frames: int) -> Unit:
        """Unit `number` of a block of so many frames."""
        return unit_at(number, frames, alternating=ORDERS[self.order])

    def needed(self, unit: Unit, kept: int) -> bool:
        """Whether a unit matters to the first `kept` frames of a block: no pass after the last one comes back."""
        last = len(self.schedule) - 1
        return unit.frame < kept or (self.looks_ahead and not (unit.step == last and self.forward(last)))

    def forward(self, step: int) -> bool:
        """Whether a step (0 is the noisiest) visits frames forwards."""
        return not ORDERS[self.order] or step % 2 == 0
