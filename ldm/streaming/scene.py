"""Processing of whole scenes in units that can be saved and resumed one by one."""

from collections.abc import Callable, Mapping, Sequence

from ldm.streaming.pipeline import Frame, Stage


class WholeScene(Stage):
    """Collect the frames of a scene, process them unit by unit, and return them after the last unit.

    A unit is the smallest work worth saving, such as one network call on one frame in a bidirectional sampler. The
    pipeline can be saved and resumed between units. Memory grows with the length of a scene.

    Args:
        count: count(frames) -> number of units for a scene of so many frames, at least 0.
        unit: unit(scene, k) -> the frames that unit k changes, by their positions in the scene.
    """

    kept = ("first", "done", "complete")

    def __init__(
        self, count: Callable[[int], int], unit: Callable[[Sequence[Frame], int], Mapping[int, Frame]]
    ) -> None:
        super().__init__()
        self.units_of, self.unit = count, unit
        self.done = 0  # units of the current scene
        self.complete = False  # whether all frames of the scene have arrived

    def consistent(self) -> bool:
        return self.first == 0 and self.done <= self.units_of(len(self.held)) and (self.complete or not self.done)

    @property
    def pending(self) -> bool:
        return self.complete

    def push(self, frame: Frame) -> list[Frame]:
        self.held.append(frame)
        self.complete = frame.last
        return []

    def work(self) -> list[Frame]:
        if self.done < self.units_of(len(self.held)):
            for place, frame in self.unit(self.held, self.done).items():
                self.held[place] = frame
            self.done += 1
        if self.done < self.units_of(len(self.held)):
            return []
        ready, self.held, self.done, self.complete = self.held, [], 0, False
        return ready
