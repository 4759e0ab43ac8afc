"""The interface between the engine and a method. Every method of `ldm.methods` implements it.

The engine reads, plans, resumes and writes; a method restores frames. A method is immutable: properties of a clip
(size, seed, prompt) are in a `Request`, memory settings (tiles) in `Levers`, and both are arguments of `stream`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.methods.geometry import check_frames
from ldm.streaming.pipeline import Frame, Pipeline, stack

Progress = Callable[[str, int, int | None], None]  # (stage, calls done, total calls or None)
Costs = Mapping[str, Sequence[float]]  # probe -> [a, b]: a + b * (latent pixels) bytes


def no_progress(stage: str, done: int, total: int | None) -> None:
    """A progress callback that does nothing."""


@dataclass(frozen=True)
class Request:
    """The properties of a clip to restore.

    Args:
        size: (h, w) of the frames in pixels.
        frames: number of frames; None if unknown.
        upscale: ratio of the output size to the input size.
        seed: seed of the noise.
        prompt: description of the clip, for methods with text conditioning.
        scene: number of the first scene, of a clip that is cut out of a longer one: prompts have a line for each.
    """

    size: tuple[int, int]
    frames: int | None = None
    upscale: float = 4.0
    seed: int = 42
    prompt: str | None = None
    scene: int = 0


class Levers(Protocol):
    """Memory settings of a method, such as tile sizes: a frozen dataclass of plain values.

    `str(levers)` is a one-line description that mentions approximations.
    """

    __dataclass_fields__: dict[str, Any]


class Method(Protocol):
    """A restoration method with its networks. Its attributes do not change after construction."""

    @property
    def device(self) -> torch.device:
        """Device of the networks and of the frames between stages."""
        ...

    def stream(self, request: Request, levers: Levers | None = None, progress: Progress = no_progress) -> Pipeline:
        """Return a pipeline that restores a clip: it takes frames with a value "lq" and returns them with "sr".

        "lq" is (1, 3, h, w): float in [0, 1], or uint8 or uint16 over the full range. "sr" is (1, 3, H, W), float in
        [0, 1]. Other values of a frame are passed on. `levers` default to the best; `progress` is called after each
        network call.
        """
        ...

    def levers(self) -> Sequence[Levers]:
        """Return all levers in order of decreasing quality and memory; at least one."""
        ...

    def probes(self, levers: Levers) -> Mapping[str, Callable[[int], int | None]]:
        """Return functions that run one part of the method on square latents of a given side, by name.

        The planner measures their peak memory, unless a probe returns a number of bytes. The profiler counts and times
        the same runs.
        """
        ...

    def peak(self, request: Request, levers: Levers, costs: Costs) -> int | None:
        """Predict the peak memory of restoring a clip, in bytes on the method's device; None if unknown.

        Weights are not counted; frames held between stages are.
        """
        ...


class SceneMethod(Method, Protocol):
    """A method whose scenes can be restored one by one, with equal results."""

    def find_scenes(self, request: Request) -> Pipeline | None:
        """Return a pipeline that sets `last` in the frames as that of `stream` does; None if scenes depend on others.

        Frames have the value "lq".
        """
        ...


def restore_clip(
    method: Method, lq: Tensor, request: Request, progress: Progress = no_progress, *, levers: Levers | None = None
) -> Tensor:
    """Restore a clip (T, 3, h, w) in [0, 1] -> (T, 3, H, W) in [0, 1], on the CPU; `levers` as for `Method.stream`.

    Raises ValueError for another shape, an upscale that is not positive, or pixels that are not finite;
    FloatingPointError with the step or tile if a result is not finite.
    """
    check_frames(lq, request.upscale)
    run, restored = method.stream(request, levers, progress), []
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None].float()}))
        restored += [frame.to("cpu") for frame in run.pull()]
    restored += [frame.to("cpu") for frame in run.pull(finish=True)]
    return stack(restored, "sr")[0]
