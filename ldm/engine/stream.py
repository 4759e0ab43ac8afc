"""A method over a video of any length: read, restore, write in parts, put together; resumable after any stop."""

import contextlib
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm import video
from ldm.engine.device import give_back_memory, is_out_of_memory
from ldm.engine.plan import Plan
from ldm.engine.resume import WorkFolder
from ldm.methods.mgld import MGLD, Progress, silent
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Frame

READ_AHEAD, WRITE_BEHIND = 4, 2  # frames


@dataclass(frozen=True)
class Task:
    """One clip: what is read, frames `start` to `stop` of it, and what is made of them.

    `rounding` turns a restored frame (c, h, w) in [0, 1] into what the writer takes.
    """

    source: video.Source
    format: video.Format
    upscale: float = 4.0
    seed: int = 42
    start: int = 0
    stop: int | None = None
    rounding: Callable[[Tensor], Tensor | np.ndarray] = lambda frame: frame

    @property
    def frames(self) -> int | None:
        """How many there are, where that is known."""
        if self.source.frames is None:
            return None
        return len(range(self.source.frames)[self.start : self.stop])


def restore_parts(
    method: MGLD,
    task: Task,
    work: WorkFolder,
    plan: Plan,
    *,
    report: Progress = silent,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict, Plan]:
    """All parts of the output, in `work.parts`; goes on where an earlier run stopped.

    Returns the last state ("parts", their names; "written", frames; "seconds" by stage) and the plan: where memory runs
    out, tiles are halved, which `say` is told, and what was not yet saved is done again. The method is left as it was.

    Raises VideoError, FloatingPointError or whatever ends the work; what was saved stays in the folder.
    """
    asked = method.windows, method.decoding
    try:
        while True:
            plan.apply(method)
            try:
                return _parts(method, task, work, plan.part_frames, report), plan
            except Exception as error:
                smaller = plan.smaller(step=method.unet.downsampling) if is_out_of_memory(error) else None
                if smaller is None or method.patches:
                    raise
            plan = smaller
            work.replan(vars(plan))
            say(f"out of memory; going on from the last saved frame: {plan}")
    finally:
        method.windows, method.decoding = asked  # a plan is that of one clip


def _parts(method: MGLD, task: Task, work: WorkFolder, part_frames: int, report: Progress) -> dict:
    names = video.png_names(task.source.names[task.start : task.stop])  # of all parts, for they may depend on others
    state = work.load()
    with work.resuming() if state else contextlib.nullcontext():
        run = _Run(method, task, state, report)
    with contextlib.closing(run):
        while not run.finished:
            began, path = time.perf_counter(), work.part(len(run.parts))
            frames = run.until_saved(part_frames)
            if (first := next(frames, None)) is not None:
                with contextlib.closing(ahead(itertools.chain([first], frames), WRITE_BEHIND, run.left)) as rest:
                    run.written += video.write_part(path, rest, task.format, names=names[run.written :])
                run.parts.append(path.name)
            run.seconds["all"] += time.perf_counter() - began
            work.save(run.state())
            give_back_memory()
        return run.state()


class _Left(Exception):
    """Nobody waits for the frames any more."""


class _Run:
    """The frames on their way between two savings of the state.

    They may be made in another thread than they are used in; where `left` is set it stops at the next network call.
    """

    def __init__(self, method: MGLD, task: Task, state: dict | None, report: Progress) -> None:
        state = state or {}
        self.task, self.report = task, report
        self.parts, self.written = list(state.get("parts", ())), state.get("written", 0)
        self.taken, self.finished = state.get("taken", 0), state.get("finished", False)
        self.seconds, self.calls = Counter(state.get("seconds", {})), Counter(state.get("calls", {}))
        self.before = Counter(self.calls)
        size, source = (task.source.height, task.source.width), task.source
        self.pipeline = method.stream(
            size, upscale=task.upscale, seed=task.seed, progress=self._progress, frames=task.frames
        )
        if "pipeline" in state:
            self.pipeline.resume(state["pipeline"])
        reading = () if self.finished else _read(source, task.start + self.taken, task.stop)
        self.source, self.left = ahead(reading, READ_AHEAD), threading.Event()

    def close(self) -> None:
        """Stop reading, and let go of what is on the way."""
        self.source.close()
        self.pipeline = None  # whose stages report to this run

    def until_saved(self, count: int) -> Iterator[Tensor | np.ndarray]:
        """What comes out until `count` more frames went in, or, after the last one, until as many came out."""
        self.left.clear()
        for pixels in itertools.islice(self.source, count):
            self.pipeline.push(Frame(self.task.start + self.taken, _values(pixels)))
            self.taken += 1
            count -= 1
            yield from map(self._picture, self.pipeline.pull())
        if not count:
            return
        left = self.pipeline.pull(finish=True)
        yield from map(self._picture, itertools.islice(left, count))
        self.finished = not self.pipeline.on_the_way

    def _picture(self, frame: Frame) -> Tensor | np.ndarray:
        """A restored frame as the writer takes it, with its transparency enlarged where it has one."""
        sr = frame["sr"][0]
        if "alpha" in frame.values:
            alpha = frame["alpha"].float() / torch.iinfo(frame["alpha"].dtype).max
            sr = torch.cat([sr, resize(alpha, tuple(sr.shape[-2:])).clamp(0, 1)])
        return self.task.rounding(sr)

    def _progress(self, stage: str, done: int, total: int | None) -> None:
        if self.left.is_set():
            raise _Left
        self.calls[stage] = self.before[stage] + done
        self.report(stage, self.calls[stage], total and max(total, self.calls[stage]))

    def state(self) -> dict:
        """Everything needed to go on, for `torch.save`."""
        seconds = self.seconds + Counter(self.pipeline.seconds)
        self.pipeline.seconds.clear()
        self.seconds = seconds
        return {
            "parts": self.parts, "written": self.written, "taken": self.taken, "finished": self.finished,
            "seconds": dict(seconds), "calls": dict(self.calls), "pipeline": self.pipeline.state(),
        }  # fmt: skip


class DamagedInput(video.VideoError):
    """The input cannot be read to its end: the same command would fail again."""


def _read(source: video.Source, start: int, stop: int | None) -> Iterator[np.ndarray]:
    try:
        yield from video.read(source, start, stop)
    except video.VideoError as error:
        raise DamagedInput(str(error)) from None


def _values(pixels: np.ndarray) -> dict[str, Tensor]:
    """(h, w, 3 or 4) uint8 or uint16 -> "lq" (1, 3, h, w), and "alpha" (1, h, w) where there is one."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    values = {"lq": planes[None, :3]}
    return values | {"alpha": planes[3:]} if len(planes) > 3 else values


def ahead(items: Iterable, depth: int, over: threading.Event | None = None) -> Iterator:
    """The items, made up to `depth` ahead of their use in another thread; its errors arrive here.

    `over` is set when no more are wanted: an item that takes long may look at it.
    """
    ready, over = queue.Queue(depth), over or threading.Event()

    def make() -> None:
        try:
            for item in items:
                if not _put(ready, (item, None), over):
                    return
            _put(ready, (None, StopIteration()), over)
        except BaseException as error:  # whatever it is, the user of the items gets it
            _put(ready, (None, error), over)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, end = ready.get()
            if isinstance(end, StopIteration):
                return
            if end is not None:
                raise end
            yield item
    finally:
        over.set()
        thread.join()
        end = None  # an error would hold this frame, which would hold it, and all that its traceback names


def _put(ready: queue.Queue, item: tuple, over: threading.Event) -> bool:
    """Wait for room; False where nobody waits for items any more."""
    while not over.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
