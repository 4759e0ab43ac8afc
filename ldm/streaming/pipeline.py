"""Frames flow through stages: computation over time without holding the clip.

A stage takes frames in order and returns frames in order, some of them later, because the result of a frame may depend
on its neighbours. It holds no more frames than it needs. A `Pipeline` of stages restores a video of any length in
bounded memory, and its result equals that of the whole clip at once. Its state can be saved after any frame, or after
any unit of work over a scene (`ldm.streaming.scene`), and resumed.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.ops.tiling import hat


@dataclass(frozen=True)
class Frame:
    """One frame of a stream: its number in the video, tensors (B, ...) by name, and whether its scene ends with it."""

    number: int
    values: dict[str, Tensor]
    last: bool = False

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def put(self, **values: Tensor) -> "Frame":
        """The frame with these values added or replaced."""
        return replace(self, values=self.values | values)

    def without(self, *names: str) -> "Frame":
        """The frame without these values."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})

    def to(self, device: torch.device | str) -> "Frame":
        """The frame with its values on `device`."""
        return replace(self, values={name: value.to(device) for name, value in self.values.items()})


def stack(frames: Iterable[Frame], name: str) -> Tensor:
    """The value `name` of T frames as one tensor (B, T, ...)."""
    return torch.stack([frame[name] for frame in frames], dim=1)


class Stage:
    """What all stages share: the frames they hold between two calls. A subclass implements `push`."""

    label = "other"
    kept: tuple[str, ...] = ("first",)  # attributes that belong to the state beside `held`

    def __init__(self) -> None:
        self.held: list[Frame] = []
        self.first = 0  # place of held[0] in its scene

    def labelled(self, label: str) -> "Stage":
        """This stage under a name for the table of seconds per stage."""
        self.label = label
        return self

    @property
    def count(self) -> int:
        """Frames of the current scene that have arrived so far."""
        return self.first + len(self.held)

    @property
    def pending(self) -> bool:
        """Whether `work` has a unit to do before the next frame."""
        return False

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the frames that are ready."""
        raise AssertionError("a stage implements push")

    def work(self) -> list[Frame]:
        """Do one pending unit of work; return the frames that are ready."""
        raise AssertionError("only a stage with pending work is asked for it")

    def finish(self) -> list[Frame]:
        """No frame follows: return the frames that waited for one."""
        return []

    def state(self) -> dict:
        """What is held, as plain dictionaries, lists, numbers and tensors."""
        plain = {name: value for name, value in vars(self).items() if name in self.kept}
        return plain | {"held": [vars(frame) for frame in self.held]}

    def resume(self, state: dict) -> None:
        """Continue from what `state` returned."""
        vars(self).update(state | {"held": [Frame(**frame) for frame in state["held"]]})

    def forget(self, place: int) -> list[Frame]:
        """Release the frames before this place of the scene and return them."""
        count = max(place - self.first, 0)
        gone, self.held = self.held[:count], self.held[count:]
        self.first += len(gone)
        return gone


class Each(Stage):
    """`fn(frame) -> frame` for every frame by itself."""

    def __init__(self, fn: Callable[[Frame], Frame]) -> None:
        super().__init__()
        self.fn = fn

    def push(self, frame: Frame) -> list[Frame]:
        return [self.fn(frame)]


class Scenes(Stage):
    """Compares each frame with the one before: fn(before, frame) -> (whether a scene ends between them, the frame).

    One frame is held back, since only the next one tells whether it was the last of its scene. No frame after the end
    of a scene is ever compared, blended or computed with one before it. Values named `spent` go no further.
    """

    def __init__(self, fn: Callable[[Frame, Frame], tuple[bool, Frame]], *, spent: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.fn, self.spent = fn, spent

    def push(self, frame: Frame) -> list[Frame]:
        if not self.held:
            self.held = [frame]
            return []
        ends, frame = self.fn(self.held[0], frame)
        before, self.held = replace(self.held[0], last=ends), [frame]
        return [before.without(*self.spent)]

    def finish(self) -> list[Frame]:
        before, self.held = self.held, []
        return [replace(frame, last=True).without(*self.spent) for frame in before]


class Windowed(Stage):
    """`fn` on overlapping windows of `size` frames, cross-faded where windows overlap.

    `fn(frames)` returns (B, T, ...) for T <= size frames; row t is stored under `name` in frame t. Windows start every
    `size - overlap` frames. The last window of a scene is flush with its end (`ldm.ops.tiling.starts`); with
    `flush=False` it is as short as the rest of the scene. The weight of a window rises to its middle and falls again.
    """

    kept = ("first", "begin", "parts")

    def __init__(
        self,
        fn: Callable[[list[Frame]], Tensor],
        *,
        size: int,
        overlap: int,
        name: str,
        flush: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < size:
            raise ValueError(f"got overlap {overlap} for windows of {size} frames, expected 0 to {size - 1}")
        self.fn, self.size, self.stride, self.name, self.flush = fn, size, size - overlap, name, flush
        self.begin = 0  # place in the scene where the next window starts
        self.parts: list[list[tuple[int, Tensor]]] = []  # per held frame: (weight, result) of each window so far

    def push(self, frame: Frame) -> list[Frame]:
        self.held.append(frame)
        self.parts.append([])
        for begin in self._due(frame.last):
            at = begin - self.first
            window = self.held[at : at + self.size]
            try:
                values = self.fn(window)
            except FloatingPointError as error:
                raise FloatingPointError(f"frames {window[0].number} to {window[-1].number}: {error}") from None
            for k, weight in enumerate(hat(len(window)).tolist()):
                self.parts[at + k].append((int(weight), values[:, k]))
        if not frame.last:
            return self._release(min(self.begin, self.count - self.size))
        ready = self._release(self.count)
        self.first = self.begin = 0
        return ready

    def _due(self, last: bool) -> list[int]:
        """Where windows start that can be computed now; a window is the last of its scene only at the scene's end."""
        due = []
        while self.begin + self.size < self.count:
            due.append(self.begin)
            self.begin += self.stride
        if last:
            due.append(max(self.count - self.size, 0) if self.flush else self.begin)
        return due

    def _release(self, place: int) -> list[Frame]:
        frames = self.forget(place)
        parts, self.parts = self.parts[: len(frames)], self.parts[len(frames) :]
        return [frame.put(**{self.name: _blended(part)}) for frame, part in zip(frames, parts, strict=True)]


def _blended(parts: list[tuple[int, Tensor]]) -> Tensor:
    """The weighted mean; a single part is returned unchanged."""
    if len(parts) == 1:
        return parts[0][1]
    total = sum(weight for weight, _ in parts)
    return sum(value * (weight / total) for weight, value in parts)


class Neighbours(Stage):
    """`fn` where a frame's result depends on the `reach` frames before and after it within its scene.

    `fn(frames, start, stop)` gives (B, stop - start, ...) for frames[start:stop]; the others are there to be looked at.
    It is asked for `block` frames at a time, the rest of a scene at its end.
    """

    kept = ("first", "done")

    def __init__(self, fn: Callable[[list[Frame], int, int], Tensor], *, reach: int, name: str, block: int = 3) -> None:
        super().__init__()
        self.fn, self.reach, self.name, self.block = fn, reach, name, block
        self.done = 0  # frames of the present scene that were given

    def push(self, frame: Frame) -> list[Frame]:
        self.held.append(frame)
        ready = []
        while self.done + self.block + self.reach <= self.count:
            ready += self._give(self.block)
        if frame.last:
            ready += self._give(self.count - self.done)
            self.held, self.first, self.done = [], 0, 0
        return ready

    def _give(self, count: int) -> list[Frame]:
        if not count:
            return []
        start = self.done - self.first
        around = self.held[: start + count + self.reach]
        values = self.fn(around, start, start + count)
        ready = [frame.put(**{self.name: values[:, k]}) for k, frame in enumerate(around[start : start + count])]
        self.done += count
        self.forget(self.done - self.reach)
        return ready


class Pipeline:
    """Stages in a row. `push` frames, then `pull` those that are ready; `pull(finish=True)` returns all the rest.

    Args:
        stages: executed without recording gradients.
        device: where frames are kept between stages.
    """

    def __init__(self, stages: Iterable[Stage], *, device: torch.device | str = "cpu") -> None:
        self.stages, self.device = list(stages), device
        self.waiting = [deque() for _ in range(len(self.stages) + 1)]  # before each stage, and behind the last
        self.ended = 0  # stages that know that no frame follows
        self.units = 0  # units of work over scenes done so far
        self.seconds = Counter()  # by the stages' labels

    def push(self, frame: Frame) -> None:
        """Add the next frame of the video."""
        self.waiting[0].append(frame.to(self.device))

    def pull(self, *, finish: bool = False, units: int | None = None) -> Iterator[Frame]:
        """The frames that are ready, those furthest along first.

        `finish` says that no frame follows. After `units` units of work over scenes iteration stops, so that the caller
        can save the state; whether more can be done shows at the next call.
        """
        limit = None if units is None else self.units + units
        while (limit is None or self.units < limit) and self._advance(finish):
            if self.waiting[-1]:
                yield self.waiting[-1].popleft()

    def _advance(self, finish: bool) -> bool:
        """Move one frame one stage ahead, or do one unit of work; False where nothing can move."""
        if self.waiting[-1]:
            return True
        for k in reversed(range(len(self.stages))):
            if self.stages[k].pending or self.waiting[k]:
                self._run(k)
                return True
        if finish and self.ended < len(self.stages):
            self.waiting[self.ended + 1].extend(self.stages[self.ended].finish())
            self.ended += 1
            return True
        return False

    @torch.no_grad()
    def _run(self, k: int) -> None:
        stage, began = self.stages[k], time.perf_counter()
        if stage.pending:
            self.waiting[k + 1].extend(stage.work())
            self.units += 1
        else:
            self.waiting[k + 1].extend(stage.push(self.waiting[k].popleft()))
        self.seconds[stage.label] += time.perf_counter() - began

    @property
    def idle(self) -> bool:
        """Whether nothing can move until another frame is pushed."""
        return not any(self.waiting) and not any(stage.pending for stage in self.stages)

    def state(self) -> dict:
        """All frames held, for `torch.save`; `resume` of a pipeline made alike continues from there."""
        return {
            "stages": [stage.state() for stage in self.stages],
            "waiting": [[vars(frame) for frame in queue] for queue in self.waiting],
            "ended": self.ended,
        }

    def resume(self, state: dict) -> None:
        """Continue from what `state` returned. Raises ValueError for the state of other stages."""
        if len(state["stages"]) != len(self.stages):
            raise ValueError(f"got the state of {len(state['stages'])} stages, expected {len(self.stages)}")
        state = _moved(state, self.device)
        for stage, part in zip(self.stages, state["stages"], strict=True):
            stage.resume(part)
        self.waiting = [deque(Frame(**frame) for frame in queue) for queue in state["waiting"]]
        self.ended = state["ended"]

    @property
    def frames_held(self) -> int:
        """Frames that were pushed and not yet pulled."""
        return sum(len(stage.held) for stage in self.stages) + sum(map(len, self.waiting))


def _moved(tree, device: torch.device | str):
    """Nested dictionaries, lists and tuples with their tensors on `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: _moved(value, device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_moved(value, device) for value in tree)
    return tree


def run_all(stages: Iterable[Stage], frames: Iterable[Frame], *, device: torch.device | str = "cpu") -> list[Frame]:
    """All frames through all stages."""
    run = Pipeline(stages, device=device)
    for frame in frames:
        run.push(frame)
    return list(run.pull(finish=True))
