"""The stages of diffusion sampling, shared by all methods.

A step predicts x0 by windows of frames, refines x0, updates the sample to the next noise level and applies guidance.
Without refinement, a window does prediction, x0 and update in one call: the update is linear in the
prediction, so that windows may be blended after it as well as before.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ldm.streaming.blending import CROSSFADE, Blend
from ldm.streaming.pipeline import Each, Frame, Neighbours, Stage, Windowed, run_all, stack


class WindowPlaces(NamedTuple):
    """Size and positions of the windows in each sampling step.

    Args:
        size: frames of a window.
        overlap: frames that consecutive windows share.
        sharing_steps: number of steps, counted from the last, whose windows overlap; None for all.
        alternate: shift the windows of every other step by half their stride, so that windows of consecutive steps
            end at different frames.
    """

    size: int
    overlap: int = 0
    sharing_steps: int | None = None
    alternate: bool = False

    def overlap_of(self, i: int) -> int:
        """Return the overlap in frames of the windows of step i, where step 0 is the last."""
        return self.overlap if self.sharing_steps is None or i < self.sharing_steps else 0

    def offset_of(self, i: int) -> int:
        """Return the position of the second window of step i; 0 for the stride of the others."""
        return (self.size - self.overlap_of(i)) // 2 if self.alternate and i % 2 else 0


@dataclass(frozen=True)
class Steps:
    """The functions of a sampling step; `i` is the index of the step, from the noisiest down to 0.

    Args:
        denoise: denoise(frames, i=i) -> (B, T, ...) for a window of frames with values "x": x_{i-1}, or x0 if `refine`
            is given.
        windows: the windows of frames.
        blend: combines the results of overlapping windows.
        refine: refine(i) -> the stage that computes "refined" from "x0", or None for no refinement in this step; None
            for steps in one call.
        update: update(frame, i=i) -> the frame with "x" of step i-1; required with `refine`.
        guide: guide(frames, start, stop, i=i) -> guided x_{i-1} (B, stop - start, ...) of frames[start:stop]. None
            disables guidance.
        reach: number of frames before and after a frame that its guidance reads.
    """

    denoise: Callable[..., Tensor]
    windows: WindowPlaces
    blend: Blend = CROSSFADE
    refine: Callable[[int], Stage | None] | None = None
    update: Callable[..., Frame] | None = None
    guide: Callable[..., Tensor] | None = None
    reach: int = 1

    def stages(self, count: int) -> list[Stage]:
        """Return the stages of `count` steps, from x_{count-1} to the clean sample."""
        return [stage for i in reversed(range(count)) for stage in self._stages_of(i)]

    def _stages_of(self, i: int) -> Iterable[Stage]:
        name = "x" if self.refine is None else "x0"
        windows = Windowed(
            partial(self.denoise, i=i),
            size=self.windows.size,
            overlap=self.windows.overlap_of(i),
            offset=self.windows.offset_of(i),
            name=name,
            blend=self.blend,
        )
        yield windows.with_label("sampling")
        if self.refine is not None:
            if (stage := self.refine(i)) is not None:
                yield stage.with_label("refinement")
            yield Each(partial(self.update, i=i)).with_label("sampling")
        if self.guide is not None:
            yield Neighbours(partial(self.guide, i=i), reach=self.reach, name="x").with_label("guidance")


def sample_clip(steps: Steps, x: Tensor, count: int) -> Tensor:
    """Sample a clip from x (B, T, ...) at step count-1 to the clean sample (B, T, ...), as one scene."""
    frames = [Frame(k, {"x": x[:, k]}, last=k == x.shape[1] - 1) for k in range(x.shape[1])]
    return stack(run_all(steps.stages(count), frames, device=x.device), "x")
