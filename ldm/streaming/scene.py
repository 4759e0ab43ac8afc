"""Stages that process a whole scene, or blocks of it, in units of work after each of which the state can be saved."""

from collections.abc import Callable, Collection, Iterable, Mapping

from ldm.streaming.pipeline import Frame, Stage, frames_from

BEFORE = -1  # key, in the result of a unit, of the values for the next block


class Block(list):
    """The frames of a block and those ahead of it, in order.

    Attributes:
        kept: number of frames that belong to the block; the others are processed again in the next block.
        before: values that the previous block returned for this one; None in the first block of a scene.
    """

    def __init__(self, frames: Iterable[Frame], *, kept: int, before: Frame | None) -> None:
        super().__init__(frames)
        self.kept, self.before = kept, before


class WholeScene(Stage):
    """Collect the frames of a scene, process them unit by unit, and return them after the last unit.

    A unit is, for example, one network call on one frame in a bidirectional sampler. The pipeline can be saved and
    resumed between units. With `block`, a scene is processed in blocks: a block is processed when its frames and
    `ahead` more have arrived, or when the scene is complete. Memory is proportional to the length of the scene, or to
    `block + ahead`.

    Args:
        count: count(frames) -> number of units for so many frames, at least 0.
        unit: unit(block, k) -> {position in the block: changed frame} of unit k; the key `BEFORE` holds the values for
            the next block.
        block: number of frames of a block; None for whole scenes.
        ahead: number of frames after a block that are processed with it; their results are discarded.
        host: names of values that stay on the CPU.
    Raises:
        ValueError: a block without frames, or a negative `ahead`.
    """

    state_names = ("first", "done", "complete")

    def __init__(
        self,
        count: Callable[[int], int],
        unit: Callable[[Block, int], Mapping[int, Frame]],
        *,
        block: int | None = None,
        ahead: int = 0,
        host: Collection[str] = (),
    ) -> None:
        super().__init__()
        if (block is not None and block < 1) or ahead < 0:
            raise ValueError(f"got blocks of {block} frames with {ahead} ahead, expected at least 1 and 0")
        self.units_of, self.unit, self.block, self.ahead, self.host = count, unit, block, ahead, host
        self.done = 0  # units of the current block
        self.complete = False  # whether all frames of the block have arrived
        self.before: Frame | None = None

    def consistent(self) -> bool:
        return self.first == 0 and self.done <= self.units_of(len(self.held)) and (self.complete or not self.done)

    @property
    def pending(self) -> bool:
        return self.complete

    def push(self, frame: Frame) -> list[Frame]:
        self.held.append(self._on_host(frame))
        self.complete = frame.last or (self.block is not None and len(self.held) == self.block + self.ahead)
        return []

    def work(self) -> list[Frame]:
        count = self.units_of(len(self.held))
        if self.done < count:
            block = Block(self.held, kept=self._own(), before=self.before)
            for place, frame in self.unit(block, self.done).items():
                if place == BEFORE:
                    self.before = frame
                else:
                    self.held[place] = self._on_host(frame)
            self.done += 1
        return [] if self.done < count else self._release()

    def _own(self) -> int:
        """Return the number of held frames that belong to the block."""
        return len(self.held) if self.held[-1].last else self.block

    def _release(self) -> list[Frame]:
        """Return the frames of the finished block; those ahead of it begin the next one."""
        own = self._own()
        ready, self.held = self.held[:own], self.held[own:]
        self.before = None if ready[-1].last else self.before
        self.done, self.complete = 0, False
        return ready

    def _on_host(self, frame: Frame) -> Frame:
        return frame.put(**{name: frame[name].to("cpu") for name in self.host if name in frame.values})

    def state(self) -> dict:
        return super().state() | {"before": [] if self.before is None else [vars(self.before)]}

    def resume(self, state: dict) -> None:
        if not isinstance(state, dict) or "before" not in state:
            raise ValueError("got a saved stage without the frame before its block, expected one of a scene")
        before = frames_from(state["before"])
        super().resume({name: value for name, value in state.items() if name != "before"})
        self.before = before[0] if before else None
        self.held = [self._on_host(frame) for frame in self.held]
