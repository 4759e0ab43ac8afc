"""Work over whole scenes: units in any order, saved and resumed one by one."""

from collections.abc import Callable, Mapping, Sequence

from ldm.streaming.pipeline import Frame, Stage


class WholeScene(Stage):
    """Collects the frames of a scene, then changes them unit by unit; the scene leaves after its last unit.

    A unit is the smallest piece of work worth saving, such as one network pass over one frame in a bidirectional
    sampler. Between two units the pipeline can be saved and resumed. Memory grows with the length of a scene.

    Args:
        count: count(frames) -> how many units a scene of so many frames takes, at least 0.
        unit: unit(frames, k) -> the frames that unit k changes, by their place in the scene; `frames` is the scene.
    """

    kept = ("first", "done", "complete")

    def __init__(
        self, count: Callable[[int], int], unit: Callable[[Sequence[Frame], int], Mapping[int, Frame]]
    ) -> None:
        super().__init__()
        self.units_of, self.unit = count, unit
        self.done = 0  # units of the current scene
        self.complete = False  # whether all frames of the scene are here

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
