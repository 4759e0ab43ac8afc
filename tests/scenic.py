"""Light methods with every kind of stage: scenes, windows of frames, and units of work over a scene."""

from ldm.methods.contract import Request, no_progress
from ldm.streaming.pipeline import Each, Frame, Pipeline, Scenes, Windowed, stack
from ldm.streaming.scene import WholeScene
from tests import foreign


class Scenic(foreign.Soften):
    """Smooth each scene over time, in windows of 4 frames."""

    def stream(self, request: Request, levers: foreign.Rows | None = None, progress=no_progress) -> Pipeline:
        def smooth(frames):
            progress("smoothing", frames[0].number, request.frames)
            mean = stack(frames, "sr").mean(1, keepdim=True)
            return 0.5 * stack(frames, "sr") + 0.5 * mean

        windows = Windowed(smooth, size=4, overlap=2, name="sr")
        clamp = Each(lambda frame: frame.put(sr=frame["sr"].clamp(0, 1)))
        return Pipeline([*super().stream(request, levers).stages, Scenes(is_cut), windows, clamp], device=self.device)

    def find_scenes(self, request: Request) -> Pipeline:
        return Pipeline(self.stream(request).stages[:2], device=self.device)


class Backwards(Scenic):
    """The same, and then a pass backwards over blocks of 8 frames, frame by frame."""

    def stream(self, request: Request, levers: foreign.Rows | None = None, progress=no_progress) -> Pipeline:
        def unit(block, k):
            place = len(block) - 1 - k
            after = block[min(place + 1, len(block) - 1)]["sr"]
            return {place: block[place].put(sr=0.75 * block[place]["sr"] + 0.25 * after)}

        blocks = WholeScene(lambda count: count, unit, block=8, ahead=2)
        return Pipeline([*super().stream(request, levers, progress).stages, blocks], device=self.device)


def is_cut(before: Frame, frame: Frame) -> tuple[bool, Frame]:
    return bool((frame["sr"].mean() - before["sr"].mean()).abs() > 0.2), frame


def card(method: type = Scenic) -> dict:
    """Return the description of a model with one of these methods."""
    return {**foreign.CARD, "method": {"target": f"tests.scenic.{method.__name__}", "params": {"gain": 1.0}}}
