"""Frames flowing through stages: what is computed over time without holding the clip.

A stage takes frames in order and gives frames in order, some of them later, because what becomes of a frame depends on
its neighbours. It holds no more of them than that takes. So stages in a row (`Pipeline`) turn a video of any length
into another in bounded memory, and the result is the one that the whole clip at once would give. What is on the way
can be saved after any frame and taken up again (`state`, `resume`).
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """One frame on its way: its number in the video, whether its scene ends with it, and tensors (B, ...) by name."""

    number: int
    values: dict[str, Tensor]
    last: bool = False

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def put(self, **values: Tensor) -> "Frame":
        """The frame with these values added or replaced."""
        return replace(self, values=self.values | values)

    def without(self, *names: str) -> "Frame":
        """The frame without these values, which are no longer needed."""
        return replace(self, values={name: value for name, value in self.values.items() if name not in names})


def together(frames: Iterable[Frame], name: str) -> Tensor:
    """(B, T, ...): a value of several frames side by side."""
    return torch.stack([frame[name] for frame in frames], dim=1)


class Stage:
    """What every stage has: frames held between two calls. Its subclasses say what `push` gives for a frame."""

    label = "other"

    def called(self, label: str) -> "Stage":
        """This stage, under a name that says where time goes."""
        self.label = label
        return self

    def __init__(self) -> None:
        self.held: list[Frame] = []
        self.first = 0  # place of held[0] in its scene

    @property
    def count(self) -> int:
        """Frames of the present scene that have come so far."""
        return self.first + len(self.held)

    def push(self, frame: Frame) -> list[Frame]:
        """Take the next frame; the frames that are ready now."""
        raise AssertionError("a stage says what it gives")

    def finish(self) -> list[Frame]:
        """No frame follows; the frames that waited for one."""
        return []

    def state(self) -> dict:
        """What is held, as plain dictionaries, lists, numbers and tensors."""
        plain = {name: value for name, value in vars(self).items() if name in self.kept}
        return plain | {"held": [vars(frame) for frame in self.held]}

    def resume(self, state: dict) -> None:
        """Go on from what `state` gave."""
        vars(self).update(state | {"held": [Frame(**frame) for frame in state["held"]]})

    kept: tuple[str, ...] = ("first",)

    def forget(self, place: int) -> list[Frame]:
        """Let go of the frames before this place of the scene; returns them."""
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
    """`fn` on overlapping windows of `size` frames, cross-faded where they overlap.

    `fn(frames)` gives (B, T, ...) for T <= size frames; row t is stored under `name` in frame t. Windows start every
    `size - overlap` frames and the last one of a scene is flush with its end (`ldm.ops.tiling.starts`), or, with
    `flush` False, as short as what is left. A window's weight rises to its middle and falls again.
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
        self.parts: list[list[tuple[int, Tensor]]] = []  # for each held frame, its (weight, result) of windows so far

    def push(self, frame: Frame) -> list[Frame]:
        self.held.append(frame)
        self.parts.append([])
        while self.begin + self.size < self.count:  # this window is not the last
            self._run(self.begin)
            self.begin += self.stride
        if not frame.last:
            return self._release(min(self.begin, self.count - self.size))
        self._run(max(self.count - self.size, 0) if self.flush else self.begin)
        ready = self._release(self.count)
        self.first = self.begin = 0
        return ready

    def _run(self, begin: int) -> None:
        at = begin - self.first
        window = self.held[at : at + self.size]
        try:
            values = self.fn(window)
        except FloatingPointError as error:
            raise FloatingPointError(f"frames {window[0].number} to {window[-1].number}: {error}") from None
        for k in range(len(window)):
            self.parts[at + k].append((min(k + 1, len(window) - k), values[:, k]))

    def _release(self, place: int) -> list[Frame]:
        frames = self.forget(place)
        parts, self.parts = self.parts[: len(frames)], self.parts[len(frames) :]
        return [frame.put(**{self.name: _blended(part)}) for frame, part in zip(frames, parts, strict=True)]


def _blended(parts: list[tuple[int, Tensor]]) -> Tensor:
    """The weighted mean; of a single part, that part itself."""
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
    """Stages in a row. `push` frames, `finish` when there are no more, and `pull` what is ready."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = list(stages)
        self.waiting = [deque() for _ in range(len(self.stages) + 1)]  # before each stage, and behind the last
        self.ended = 0  # stages that know that no frame follows
        self.seconds = Counter()  # by the stages' labels

    def push(self, frame: Frame) -> None:
        self.waiting[0].append(frame)

    def pull(self, *, finish: bool = False) -> Iterator[Frame]:
        """The frames that are ready, one by one; with `finish`, all that are left. Frames far along go first."""
        while self._advance(finish):
            if self.waiting[-1]:
                yield self.waiting[-1].popleft()

    def _advance(self, finish: bool) -> bool:
        """Move one frame one stage on; False where nothing moves."""
        if self.waiting[-1]:
            return True
        for k in reversed(range(len(self.stages))):
            if self.waiting[k]:
                began = time.perf_counter()
                self.waiting[k + 1].extend(self.stages[k].push(self.waiting[k].popleft()))
                self.seconds[self.stages[k].label] += time.perf_counter() - began
                return True
        if finish and self.ended < len(self.stages):
            self.waiting[self.ended + 1].extend(self.stages[self.ended].finish())
            self.ended += 1
            return True
        return False

    def state(self) -> dict:
        """All frames on the way, for `torch.save`; `resume` of a pipeline made alike goes on from there."""
        return {
            "stages": [stage.state() for stage in self.stages],
            "waiting": [[vars(frame) for frame in queue] for queue in self.waiting],
            "ended": self.ended,
        }

    def resume(self, state: dict) -> None:
        """Raises ValueError for the state of other stages."""
        if len(state["stages"]) != len(self.stages):
            raise ValueError(f"got the state of {len(state['stages'])} stages, expected {len(self.stages)}")
        for stage, part in zip(self.stages, state["stages"], strict=True):
            stage.resume(part)
        self.waiting = [deque(Frame(**frame) for frame in queue) for queue in state["waiting"]]
        self.ended = state["ended"]

    @property
    def on_the_way(self) -> int:
        """Frames that were pushed and not yet pulled."""
        return sum(len(stage.held) for stage in self.stages) + sum(map(len, self.waiting))


def run_through(stages: list[Stage], frames: list[Frame]) -> list[Frame]:
    """All frames through all stages."""
    run = Pipeline(stages)
    for frame in frames:
        run.push(frame)
    return list(run.pull(finish=True))
