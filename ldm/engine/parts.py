"""Restore a video of any length in parts: read, restore, write. An interrupted run resumes."""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm import video
from ldm.engine.device import is_out_of_memory, pin_for, return_memory, to_host
from ldm.engine.plan import Plan
from ldm.engine.resume import WorkFolder
from ldm.engine.threads import Stopped, consume, prefetch
from ldm.methods.contract import Method, Progress, Request, no_progress
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Frame

READ_AHEAD, WRITE_BEHIND = 4, 2  # frames


@dataclass(frozen=True)
class Task:
    """One clip to restore: the source, its frames `start` to `stop`, and the output format.

    `rounding` converts a restored frame (c, h, w) in [0, 1] to the type that the writer expects. A task may be a
    part of one with the frames `whole` of the source, from its scene number `scene` on.
    """

    source: video.Source
    format: video.Format
    upscale: float = 4.0
    seed: int = 42
    start: int = 0
    stop: int | None = None
    prompt: str | None = None
    whole: tuple[int, int | None] | None = None
    scene: int = 0
    rounding: Callable[[Tensor], Tensor | np.ndarray] = lambda frame: frame

    @property
    def frames(self) -> int | None:
        """Number of frames; None if unknown."""
        if self.source.frames is None:
            return None
        return len(range(self.source.frames)[self.start : self.stop])

    @property
    def request(self) -> Request:
        """The request to the method."""
        size = (self.source.height, self.source.width)
        return Request(size, self.frames, self.upscale, self.seed, self.prompt, self.scene)

    @property
    def png_names(self) -> Sequence[str]:
        """Names of restored images; empty unless the source has names."""
        start, stop = self.whole or (self.start, self.stop)
        names = video.png_names(self.source.names[start:stop])  # of the whole: a name may depend on the others
        return names[self.start - start :]


def restore_parts(
    method: Method,
    task: Task,
    work: WorkFolder,
    plan: Plan,
    *,
    report: Progress = no_progress,
    warn: Callable[[str], None] = lambda line: None,
) -> tuple[dict, Plan]:
    """Write all parts of the output into `work.parts`, continuing where an earlier run stopped.

    Returns the final state ("parts": names; "written": number of frames; "seconds": by stage) and the plan. If memory
    runs out, continues from the last saved state with the next levers of the method and reports this through `warn`.

    Raises VideoError, FloatingPointError and other errors of the method; saved parts stay in the work folder.
    """
    while True:
        try:
            return _parts(method, task, work, plan, report), plan
        except Exception as error:
            smaller = plan.next(method) if is_out_of_memory(error) else None
            if smaller is None:
                raise
        plan = smaller
        work.replan(plan.plain())
        warn(f"out of memory; continuing from the last saved frame: {plan}")


def _parts(method: Method, task: Task, work: WorkFolder, plan: Plan, report: Progress) -> dict:
    names = task.png_names
    state = work.load()
    if state:
        _check_progress(state, work)
    with work.resuming() if state else contextlib.nullcontext():
        run = _Run(method, task, plan, state, report)
    with contextlib.closing(run), work.computing():
        while not run.finished:
            began, path = time.perf_counter(), work.part(len(run.parts))
            frames = run.until_saved(plan.part_frames)
            if (first := next(frames, None)) is not None:
                write = partial(_write_part, run, path, names=names[run.written :])
                run.written += consume(write, itertools.chain([first], frames), WRITE_BEHIND, run.stopping)
                run.parts.append(path.name)
            run.seconds["all"] += time.perf_counter() - began
            work.save(run.state())
        return run.state()


def _write_part(run: "_Run", path: Path, frames: Iterator[Callable[[], Tensor]], *, names: Sequence[str]) -> int:
    return video.write_part(path, map(run.pixels, frames), run.task.format, names=names)


def _check_progress(state: dict, work: WorkFolder) -> None:
    """Raise WorkError unless the counts of a saved state are counts, and its times are times."""
    counts = [state.get(name, 0) for name in ("written", "taken", "scene")]
    switches = [state.get(name, False) for name in ("finished", "exhausted")]
    tables = [state.get(name, {}) for name in ("seconds", "calls")]
    with work.resuming():
        if not all(type(value) is int and value >= 0 for value in counts) or {*map(type, switches)} != {bool}:
            raise ValueError("counts of another form")
        for table in tables:
            if not all(isinstance(name, str) and type(value) in (int, float) for name, value in table.items()):
                raise ValueError("times of another form")


class _Run:
    """The progress of a restoration, with the frames between two saved states.

    `written` and `taken` count the frames written and read, `scene` those before the scene that is being written.

    Frames are computed in the calling thread, since libraries such as cuDNN keep their plans per thread, and written in
    another. When the event `stopping` is set, computing stops at its next network call.
    """

    def __init__(self, method: Method, task: Task, plan: Plan, state: dict | None, report: Progress) -> None:
        state = state or {}
        self.task, self.report = task, report
        self.parts, self.written = list(state.get("parts", ())), state.get("written", 0)
        self.taken, self.scene = state.get("taken", 0), state.get("scene", 0)
        self.exhausted = state.get("exhausted", False)  # whether the last frame was read
        self.seconds, self.calls = Counter(state.get("seconds", {})), Counter(state.get("calls", {}))
        self.before = Counter(self.calls)
        self.pipeline = method.stream(task.request, plan.levers, self._progress)
        if "pipeline" in state:
            self.pipeline.resume(state["pipeline"])
        reading = () if self.exhausted else video.read(task.source, task.start + self.taken, task.stop)
        self.source, self.stopping = prefetch(reading, READ_AHEAD), threading.Event()

    def close(self) -> None:
        """Stop reading, and release the frames that are held."""
        self.source.close()
        self.pipeline = None  # its stages hold a reference to this run

    @property
    def finished(self) -> bool:
        """Whether all frames were restored."""
        return self.exhausted and not self.pipeline.frames_held

    def until_saved(self, count: int) -> Iterator[Callable[[], Tensor]]:
        """Yield restored frames until a part ends: with a scene, after `count` frames, or after `count` units of work.

        A frame is a function that returns its picture, for `pixels`. Without a restored frame, stops when `count`
        frames of the scene, or a multiple of it, were read. All this is counted from the beginning of a scene, so that
        the ends of parts depend neither on where a run was interrupted nor on the scenes before
        (`ldm.engine.splitting`).
        """
        self.stopping.clear()
        pipeline, made, last_unit = self.pipeline, 0, self.pipeline.units + count
        while True:
            if pipeline.idle and not self.exhausted:
                self._read()
            for frame in pipeline.pull(finish=self.exhausted, units=last_unit - pipeline.units):
                yield to_host(self._picture(frame))
                return_memory()
                made += 1
                if frame.last:
                    self.scene = frame.number + 1 - self.task.start
                if frame.last or made == count:
                    return
            if self.finished or not pipeline.idle:
                return
            if not made and not self.exhausted and (self.taken - self.scene) % count == 0:
                return

    def _read(self) -> None:
        """Give the next frame of the source to the pipeline."""
        pixels = next(self.source, None)
        if pixels is None:
            self.exhausted = True
            return
        values = {name: pin_for(value, self.pipeline.device) for name, value in frame_values(pixels).items()}
        self.pipeline.push(Frame(self.task.start + self.taken, values))
        self.taken += 1

    def pixels(self, arrived: Callable[[], Tensor]) -> Tensor | np.ndarray:
        """Convert a frame of `until_saved` for the writer; called in its thread."""
        return self.task.rounding(arrived())

    def _picture(self, frame: Frame) -> Tensor:
        """Return the picture (3 or 4, H, W) of a restored frame, with its resized alpha channel, if it has one."""
        sr = frame["sr"][0]
        if "alpha" in frame.values:
            alpha = frame["alpha"].float() / torch.iinfo(frame["alpha"].dtype).max
            sr = torch.cat([sr, resize(alpha, tuple(sr.shape[-2:])).clamp(0, 1)])
        return sr

    def _progress(self, stage: str, done: int, total: int | None) -> None:
        if self.stopping.is_set():
            raise Stopped
        self.calls[stage] = self.before[stage] + done
        self.report(stage, self.calls[stage], total and max(total, self.calls[stage]))

    def state(self) -> dict:
        """Return everything needed to continue, for `torch.save`."""
        seconds = self.seconds + Counter(self.pipeline.seconds)
        self.pipeline.seconds.clear()
        self.seconds = seconds
        return {
            "parts": self.parts, "written": self.written, "taken": self.taken, "scene": self.scene,
            "finished": self.finished, "exhausted": self.exhausted, "seconds": dict(seconds), "calls": dict(self.calls),
            "pipeline": self.pipeline.state(),
        }  # fmt: skip


def frame_values(pixels: np.ndarray) -> dict[str, Tensor]:
    """(h, w, 3 or 4) uint8 or uint16 -> "lq" (1, 3, h, w), and "alpha" (1, h, w) if there is a fourth channel."""
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    values = {"lq": planes[None, :3]}
    return values | {"alpha": planes[3:]} if len(planes) > 3 else values
