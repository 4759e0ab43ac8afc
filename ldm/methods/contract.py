"""What the engine knows of a method: the contract that every method of `ldm.methods` fulfils.

The engine reads, plans, resumes and writes; a method turns frames into frames. A method is immutable: what differs
between two clips (size, seed, prompt) is a `Request`, what differs between two machines (tiles, memory) are `Levers`,
and both are arguments of `stream`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.methods.geometry import check_frames
from ldm.streaming.pipeline import Frame, Pipeline, stack

Progress = Callable[[str, int, int | None], None]  # (stage, done, total where it is known)
Costs = Mapping[str, Sequence[float]]  # probe -> [a, b]: a + b * pixels bytes, pixels being those of the latents


def silent(stage: str, done: int, total: int | None) -> None:
    """A progress report that does nothing."""


@dataclass(frozen=True)
class Request:
    """One clip to restore.

    Args:
        size: (h, w) of its frames.
        frames: how many there are; None where it is not known.
        upscale: output size over input size.
        seed: of the noise.
        prompt: a description of the clip, for methods that take one.
    """

    size: tuple[int, int]
    frames: int | None = None
    upscale: float = 4.0
    seed: int = 42
    prompt: str | None = None


class Levers(Protocol):
    """How a method cuts its work to fit into memory: a frozen dataclass of plain values.

    `str(levers)` describes them in one line for people, approximations included.
    """

    __dataclass_fields__: dict[str, Any]


class Method(Protocol):
    """A method over built networks. Its attributes do not change after construction."""

    @property
    def device(self) -> torch.device:
        """Where its networks are, and where frames are kept between stages."""
        ...

    def stream(self, request: Request, levers: Levers | None = None, progress: Progress = silent) -> Pipeline:
        """Stages that restore a clip: a frame with a value "lq" goes in, and comes out with "sr".

        "lq" is (1, 3, h, w), float in [0, 1] or uint8 or uint16 of full scale; "sr" is (1, 3, H, W) float in [0, 1].
        Other values of a frame pass through. `levers` None: the best ones. `progress` is called after network calls.
        """
        ...

    def levers(self) -> Sequence[Levers]:
        """All levers, best first, down to those that take the least memory; at least one."""
        ...

    def probes(self, levers: Levers) -> Mapping[str, Callable[[int], int | None]]:
        """Runs of parts of the method on latents of a given side, by name.

        The planner measures the memory that a run takes; a probe that returns a number states its bytes itself. The
        profiler counts and times the same runs.
        """
        ...

    def peak(self, request: Request, levers: Levers, costs: Costs) -> int | None:
        """Bytes on the method's device that restoring a clip takes at most beside the weights, frames held included.

        None: it cannot be predicted.
        """
        ...


def restore_clip(method: Method, lq: Tensor, request: Request, progress: Progress = silent) -> Tensor:
    """Restore frames (T, 3, h, w) in [0, 1] at once -> (T, 3, H, W) in [0, 1], on the CPU.

    Raises ValueError for another shape, an upscale that is not positive, or pixels that are not finite;
    FloatingPointError that names the step or the tile where a result is not finite.
    """
    check_frames(lq, request.upscale)
    run, restored = method.stream(request, progress=progress), []
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None].float()}))
        restored += [frame.to("cpu") for frame in run.pull()]
    restored += [frame.to("cpu") for frame in run.pull(finish=True)]
    return stack(restored, "sr")[0]
