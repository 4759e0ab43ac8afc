"""Pipelines of stages that process a video of any length in bounded memory.

A stage takes and returns frames in order. It holds frames as long as the results of others depend on them, so that it
may return a frame later than it takes it. The result equals that of processing the whole clip at once. The state can be
saved and resumed after any frame, or after any unit of work over a scene (`ldm.streaming.scene`).
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.ops.finite import one_check
from ldm.streaming.blending import CROSSFADE, Blend, is_weighted


@dataclass(frozen=True)
class Frame:
    """One frame of a stream: its number in the video, tensors (B, ...) by name, and whether it ends its scene."""

    number: int
    values: dict[str, Tensor]
    last: bool = False

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def put(self, **values: Tensor) -> "Frame":
        """Return the frame with these values added or replaced."""
        return replace(self, values=self.values | values)

    def without(self, *names: str) -> "Frame":
        """Return the frame without these values."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})

    def to(self, device: torch.device | str) -> "Frame":
        """Return the frame with its values on `device`. Copies from pinned memory do not wait."""
        return replace(self, values=_to_device(self.values, device))


def frames_from(saved: list[dict]) -> list[Frame]:
    """Return the frames whose `vars` were saved. Raises ValueError for anything else."""
    if not isinstance(saved, list) or not all(map(_is_saved_frame, saved)):
        raise ValueError("got saved frames of another form, expected dictionaries with number, values and last")
    return [Frame(**frame) for frame in saved]


def _is_saved_frame(saved: Any) -> bool:
    if not isinstance(saved, dict) or saved.keys() != {"number", "values", "last"}:
        return False
    values, kinds = saved["values"], (type(saved["number"]), type(saved["last"]))
    if kinds != (int, bool) or not isinstance(values, dict):
        return False
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in values.items())


def stack(frames: Iterable[Frame], name: str) -> Tensor:
    """Stack the value `name` of T frames to a tensor (B, T, ...)."""
    return torch.stack([frame[name] for frame in frames], dim=1)


class Stage:
    """Base class of all stages: holds frames between calls and saves its state. A subclass implements `push`."""

    label = "other"
    state_names: tuple[str, ...] = ("first",)  # names of the attributes in the saved state, besides `held`

    def __init__(self) -> None:
        self.held: list[Frame] = []
        self.first = 0  # position of held[0] in its scene

    def with_label(self, label: str) -> "Stage":
        """Set the key under which `Pipeline.seconds` counts this stage, and return the stage."""
        self.label = label
        return self

    @property
    def count(self) -> int:
        """Number of frames of the current scene that have arrived."""
        return self.first + len(self.held)

    @property
    def pending(self) -> bool:
        """Whether a unit of work must be done before the next frame."""
        return False

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; return the frames that are ready."""
        raise AssertionError("a stage implements push")

    def work(self) -> list[Frame]:
        """Do one pending unit of work; return the frames that are ready."""
        raise AssertionError("only a stage with pending work is asked for it")

    def finish(self) -> list[Frame]:
        """Return the frames that waited for a next frame; called after the last frame."""
        return []

    def state(self) -> dict:
        """Return the state as dictionaries, lists, numbers and tensors."""
        values = {name: getattr(self, name) for name in self.state_names}
        return values | {"held": [vars(frame) for frame in self.held]}

    def resume(self, state: dict) -> None:
        """Continue from a state that `state` returned. Raises ValueError for a state of another form."""
        if not isinstance(state, dict) or state.keys() != {*self.state_names, "held"}:
            got = ", ".join(map(repr, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(f"got a saved stage with {got[:200]}, expected {', '.join((*self.state_names, 'held'))}")
        for name in self.state_names:
            own, value = getattr(self, name), state[name]
            if type(value) is not type(own) or (isinstance(value, int) and value < 0):
                raise ValueError(f"got a saved stage whose {name} is not a valid {type(own).__name__}")
        held = frames_from(state["held"])
        for name in self.state_names:
            setattr(self, name, state[name])
        self.held = held
        if not self.consistent():
            raise ValueError(f"got a saved stage whose positions do not fit its {len(held)} frames")

    def consistent(self) -> bool:
        """Whether the kept positions and lists fit the held frames; checked after resuming."""
        return True

    def forget(self, place: int) -> list[Frame]:
        """Remove and return the held frames before a position in the scene."""
        count = max(place - self.first, 0)
        gone, self.held = self.held[:count], self.held[count:]
        self.first += len(gone)
        return gone


class Each(Stage):
    """Apply `fn(frame) -> frame` to each frame."""

    def __init__(self, fn: Callable[[Frame], Frame]) -> None:
        super().__init__()
        self.fn = fn

    def push(self, frame: Frame) -> list[Frame]:
        return [self.fn(frame)]


class Scenes(Stage):
    """Split a stream into scenes: fn(before, frame) -> (whether a scene ends between them, the frame).

    One frame is held back, since only the next frame shows whether it was the last of its scene. Later stages never
    combine frames of different scenes. The values `drop` are removed from the frames.
    """

    def __init__(self, fn: Callable[[Frame, Frame], tuple[bool, Frame]], *, drop: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.fn, self.drop = fn, drop

    def push(self, frame: Frame) -> list[Frame]:
        if not self.held:
            self.held = [frame]
            return []
        ends, frame = self.fn(self.held[0], frame)
        before, self.held = replace(self.held[0], last=ends), [frame]
        return [before.without(*self.drop)]

    def finish(self) -> list[Frame]:
        before, self.held = self.held, []
        return [replace(frame, last=True).without(*self.drop) for frame in before]


class Windowed(Stage):
    """Apply `fn` to overlapping windows of `size` frames and blend the results where windows overlap.

    `fn(frames)` returns (B, T, ...) for T <= size frames; row t is stored under `name` in frame t. Windows start every
    `size - overlap` frames; with an `offset` the second one starts there. The last window of a scene is aligned with
    its end (`ldm.ops.tiling.starts`); with `flush=False` it contains only the remaining frames. `blend` combines
    the results of a frame.

    Raises ValueError unless 0 <= overlap < size and 0 <= offset <= size. Adds the numbers of the frames to a
    FloatingPointError of `fn`.
    """

    state_names = ("first", "begin", "parts")

    def __init__(
        self,
        fn: Callable[[list[Frame]], Tensor],
        *,
        size: int,
        overlap: int,
        name: str,
        flush: bool = True,
        offset: int = 0,
        blend: Blend = CROSSFADE,
    ) -> None:
        super().__init__()
        if not 0 <= overlap < size:
            raise ValueError(f"got overlap {overlap} for windows of {size} frames, expected 0 to {size - 1}")
        if not 0 <= offset <= size:
            raise ValueError(f"got offset {offset} for windows of {size} frames, expected 0 to {size}")
        self.fn, self.size, self.stride, self.name, self.flush = fn, size, size - overlap, name, flush
        self.offset = offset or self.stride  # where the second window starts
        self.blend = blend
        self.begin = 0  # position in the scene where the next window starts
        self.parts: list[list[tuple[int, Tensor]]] = []  # for each held frame: (weight, result) of its windows

    def consistent(self) -> bool:
        if not self.first <= self.begin <= self.count or len(self.parts) != len(self.held):
            return False
        return all(isinstance(part, list) and all(map(is_weighted, part)) for part in self.parts)

    def push(self, frame: Frame) -> list[Frame]:
        self.held.append(frame)
        self.parts.append([])
        for begin, visits in self._due(frame.last):
            at = begin - self.first
            window = self.held[at : at + self.size]
            try:
                with one_check():
                    values = self.fn(window)
            except FloatingPointError as error:
                raise FloatingPointError(f"frames {window[0].number} to {window[-1].number}: {error}") from None
            for k, weight in enumerate(self.blend.weigh(len(window), visits)):
                self.parts[at + k].append((weight, values[:, k]))
        if not frame.last:
            return self._release(min(self.begin, self.count - self.size))
        ready = self._release(self.count)
        self.first = self.begin = 0
        return ready

    def _due(self, last: bool) -> list[tuple[int, int]]:
        """Return (start, visits) of the windows that can be computed now; `last`: the scene is complete.

        Windows that would end behind the scene are moved to its end; `visits` counts those that end up there.
        """
        due = []
        while self.begin + self.size < self.count:
            due.append((self.begin, 1))
            self.begin = self._next(self.begin)
        if last and self.flush:
            visits, begin = 0, self.begin
            while begin < self.count:
                visits, begin = visits + 1, self._next(begin)
            due.append((max(self.count - self.size, 0), visits))
        elif last:
            due.append((self.begin, 1))
        return due

    def _next(self, begin: int) -> int:
        """Return where the window after the one at `begin` starts."""
        return begin + (self.stride if begin else self.offset)

    def _release(self, place: int) -> list[Frame]:
        frames = self.forget(place)
        parts, self.parts = self.parts[: len(frames)], self.parts[len(frames) :]
        return [frame.put(**{self.name: self.blend.merge(part)}) for frame, part in zip(frames, parts, strict=True)]


class Neighbours(Stage):
    """Apply `fn` whose result for a frame depends on the `reach` frames before and after it within its scene.

    `fn(frames, start, stop)` returns (B, stop - start, ...) for frames[start:stop]; the other frames are context. It is
    called for `block` frames at a time and for the remaining frames of a scene at its end.
    """

    state_names = ("first", "done")

    def __init__(self, fn: Callable[[list[Frame], int, int], Tensor], *, reach: int, name: str, block: int = 3) -> None:
        super().__init__()
        self.fn, self.reach, self.name, self.block = fn, reach, name, block
        self.done = 0  # frames of the current scene that were returned

    def consistent(self) -> bool:
        return self.first <= self.done <= self.count

    def push(self, frame: Frame) -> list[Frame]:
        self.held.append(frame)
        ready = []
        while self.done + self.block + self.reach <= self.count:
            ready += self._emit(self.block)
        if frame.last:
            ready += self._emit(self.count - self.done)
            self.held, self.first, self.done = [], 0, 0
        return ready

    def _emit(self, count: int) -> list[Frame]:
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
    """Process frames by a sequence of stages: `push` frames, `pull` those that are ready, finally `pull(finish=True)`.

    Args:
        stages: stages in order; they run without gradients.
        device: device of the frames between stages.
    """

    def __init__(self, stages: Iterable[Stage], *, device: torch.device | str = "cpu") -> None:
        self.stages, self.device = list(stages), device
        self.waiting = [deque() for _ in range(len(self.stages) + 1)]  # before each stage and after the last
        self.ended = 0  # number of stages that were finished
        self.units = 0  # number of units of work done over scenes
        self.seconds = Counter()  # by label of the stage

    def push(self, frame: Frame) -> None:
        """Add the next frame of the video."""
        self.waiting[0].append(frame.to(self.device))

    def pull(self, *, finish: bool = False, units: int | None = None) -> Iterator[Frame]:
        """Iterate over the frames that are ready.

        Args:
            finish: no frame follows; the stages return the frames that they hold.
            units: stop after this number of units of work over scenes, so that the caller can save the state.
        """
        limit = None if units is None else self.units + units
        while (limit is None or self.units < limit) and self._advance(finish):
            if self.waiting[-1]:
                yield self.waiting[-1].popleft()

    def _advance(self, finish: bool) -> bool:
        """Move one frame to the next stage or do one unit of work; False if neither is possible."""
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
        with one_check():
            is_unit = stage.pending
            ready = stage.work() if is_unit else stage.push(self.waiting[k].popleft())
        self.waiting[k + 1].extend(ready)
        self.units += is_unit
        self.seconds[stage.label] += time.perf_counter() - began

    @property
    def idle(self) -> bool:
        """Whether the pipeline needs another frame to continue."""
        return not any(self.waiting) and not any(stage.pending for stage in self.stages)

    def state(self) -> dict:
        """Return the state with all held frames, for `torch.save` and `resume` of an equal pipeline."""
        return {
            "stages": [stage.state() for stage in self.stages],
            "waiting": [[vars(frame) for frame in queue] for queue in self.waiting],
            "ended": self.ended,
        }

    def resume(self, state: dict) -> None:
        """Continue from a state. Raises ValueError for a different number of stages or a state of another form."""
        if (count := len(state["stages"])) != len(self.stages):
            raise ValueError(f"got the state of {count} stages, expected {len(self.stages)}")
        if len(state["waiting"]) != len(self.waiting) or state["ended"] not in range(len(self.stages) + 1):
            raise ValueError("got a saved pipeline whose queues do not fit its stages")
        state = _to_device(state, self.device)
        for stage, part in zip(self.stages, state["stages"], strict=True):
            stage.resume(part)
        self.waiting = [deque(frames_from(queue)) for queue in state["waiting"]]
        self.ended = state["ended"]

    @property
    def frames_held(self) -> int:
        """Number of frames that were pushed and not yet pulled."""
        return sum(len(stage.held) for stage in self.stages) + sum(map(len, self.waiting))


def _to_device(tree, device: torch.device | str):
    """Move the tensors of nested dictionaries, lists and tuples to `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device, non_blocking=tree.device.type == "cpu" and tree.is_pinned())
    if isinstance(tree, dict):
        return {key: _to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_to_device(value, device) for value in tree)
    return tree


def run_all(stages: Iterable[Stage], frames: Iterable[Frame], *, device: torch.device | str = "cpu") -> list[Frame]:
    """Pass all frames through all stages and return the results."""
    run = Pipeline(stages, device=device)
    for frame in frames:
        run.push(frame)
    return list(run.pull(finish=True))
