"""Restore one clip in several processes: parts of whole scenes as jobs, joined by the process that finishes last.

No stage of a method combines frames of different scenes, noise depends on the numbers of frames alone, and the ends of
encoded parts are counted from the beginning of a scene (`ldm.engine.parts`). Therefore the output has the bytes that
one process makes.

The folder `OUTPUT.split` holds `film.json` (what determines the output, the plan, and the parts) and for each part a
work folder, a claim while a process works on it, and an empty file when it is finished.
"""

import contextlib
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ldm import video
from ldm.engine.claims import Claim, ClaimError, holder, take
from ldm.engine.device import Peak
from ldm.engine.finished import is_finished, portable, stored_manifest
from ldm.engine.jobs import Job, Log, Model, join_parts, made_of, manifest_of, plan_for, write_result
from ldm.engine.parts import Task, frame_values, restore_parts
from ldm.engine.plan import Plan, resumed_plan
from ldm.engine.resume import WorkError, WorkFolder, recorded_plan
from ldm.engine.sharing import share
from ldm.files import is_temporary, set_aside, write_atomically
from ldm.methods.contract import Progress
from ldm.streaming.pipeline import Frame

MIN_SAVES = 4  # minimum length of a part, in numbers of frames between two saved states
POLL = 1.0  # seconds between two checks of the work of another process
MAX_SCENES = 1_000_000
OWN_FILES = re.compile(r"film\.json|\.(scenes|join|\d{8})\.claim-\d+|\d{8}\.(work|done)")


class Part(NamedTuple):
    """Frames `start` to `stop` of the source, from scene number `scene` on."""

    start: int
    stop: int
    scene: int


@dataclass(frozen=True)
class SharedJob:
    """A job that processes share: its model, the manifest that determines its output, its plan, and its parts."""

    job: Job
    model: Model
    manifest: Mapping
    plan: Plan
    predicted: int | None
    parts: tuple[Part, ...]

    @property
    def folder(self) -> Path:
        """The folder in which the processes share the parts."""
        return split_folder(self.job.output)

    def place(self, part: Part) -> Path:
        """Return the path beside which the claim and the work folder of a part are."""
        return self.folder / f"{part.start:08d}"

    def mark(self, part: Part) -> Path:
        """Return the path of the file that exists when a part is finished."""
        return self.folder / f"{part.start:08d}.done"

    def plan_of(self, part: Part) -> Plan:
        """Return the plan of a part, which changes if memory runs out."""
        begun = recorded_plan(self.place(part))
        return resumed_plan(self.model.method, begun, part_frames=self.plan.part_frames) or self.plan

    def work(self, part: Part, *, warn: Log) -> WorkFolder:
        """Return the work folder of a part."""
        manifest = {**self.manifest, "plan": self.plan_of(part).plain(), "part": list(part)}
        return WorkFolder(self.place(part), manifest, warn=warn)

    @property
    def unfinished(self) -> list[Part]:
        """The parts that are not finished."""
        return [part for part in self.parts if not self.mark(part).exists()]


def split_folder(output: Path) -> Path:
    """Return the path of the folder in which processes share the parts of an output."""
    return output.with_name(f"{output.name}.split")


def restore_split(job: Job, model: Model, *, report: Progress, warn: Log, log: Log) -> dict | None:
    """Restore the free parts of a clip; the process that finishes the last one joins them to the output.

    Returns the record of the output, or None if other processes still work on it; `log` receives a line for each of
    their parts. Raises ValueError for a method without scenes, and the errors of `ldm.engine.jobs.restore_job`; the
    same command resumes.
    """
    folder = split_folder(job.output)
    try:
        if folder.is_symlink():
            raise WorkError(f"{folder}: is a link; remove it, the folder must be beside its output")
        folder.mkdir(parents=True, exist_ok=True)
        shared = _shared_job(job, model, log)
        _, left = share(shared.unfinished, partial(_restore_part, shared, report=report, warn=warn), place=shared.place)
        for part in [part for part in left if part in shared.unfinished]:
            log(f"{job.output.name}: frames {part.start} to {part.stop - 1} are left to {holder(shared.place(part))}")
        if shared.unfinished:
            return None
        claim = take(folder / "join")
        if claim is None:
            log(f"{job.output.name}: left to {holder(folder / 'join')}, which joins its parts")
            return None
        with claim:
            return _join(shared, warn)
    except (ClaimError, OSError):
        if not folder.exists() and is_finished(job.output, made_of(job, model, "format")):
            log(f"{job.output.name}: finished by another process")
            return None
        raise


def _restore_part(shared: SharedJob, part: Part, claim: Claim, *, report: Progress, warn: Log) -> bool:
    if shared.mark(part).exists():
        return True

    def watched(stage: str, done: int, total: int | None) -> None:
        claim.check()
        report(stage, done, total)

    span = shared.job.task.start, shared.job.task.stop
    cut = {"start": part.start, "stop": part.stop, "whole": span, "scene": part.scene}
    task = replace(shared.job.task, rounding=shared.model.rounding, **cut)
    with shared.work(part, warn=warn) as work:
        restore_parts(shared.model.method, task, work, shared.plan_of(part), report=watched, warn=warn)
        write_atomically(shared.mark(part), b"")
    return True


# ---- parts


def _shared_job(job: Job, model: Model, log: Log) -> SharedJob:
    """Return the job with its parts; one process finds them, and the others wait for it."""
    path = split_folder(job.output) / "film.json"
    remedy = f"repeat that, or remove {path.parent} to start again"
    made = {**manifest_of(job, model), "part_frames": job.options.save_every}
    made.pop("plan")
    while True:
        stored = stored_manifest(path, made, remedy=remedy, compared=portable)
        if stored is not None:
            parts = _checked(stored.get("parts"), path)
            plan, predicted = plan_for(job, model, log, begun=stored.get("plan"))
            return SharedJob(job, model, made, plan, predicted, parts)
        claim = take(path.with_name("scenes"))
        if claim is None:
            time.sleep(POLL)
            continue
        with claim:
            if not path.exists():
                plan, _ = plan_for(job, model, lambda line: None, begun=None)
                scenes = scene_spans(job.task, model, claim)
                parts = grouped(scenes, MIN_SAVES * plan.part_frames)
                content = {**made, "plan": plan.plain(), "parts": parts}
                write_atomically(path, json.dumps(content, indent=1).encode())
                log(f"{job.output.name}: scenes: {len(scenes)}, parts: {len(parts)}")


def scene_spans(task: Task, model: Model, claim: Claim) -> list[tuple[int, int]]:
    """Return the frames (start, stop) of all scenes of a clip. Raises ValueError for a method without scenes."""
    find = getattr(model.method, "find_scenes", None)
    pipeline = find(task.request) if find else None
    if pipeline is None:
        raise ValueError("got --split scenes, expected a method and settings that restore scenes one by one")
    ends = []
    for frame in _passed(pipeline, task):
        claim.check()
        if frame.last:
            ends.append(frame.number + 1)
    if not ends:
        raise ValueError(f"{task.source.path}: got no frames from number {task.start} on, expected some")
    return list(pairwise([task.start, *ends]))


def _passed(pipeline, task: Task) -> Iterator[Frame]:
    with contextlib.closing(video.read(task.source, task.start, task.stop)) as pictures:
        for number, pixels in enumerate(pictures, task.start):
            pipeline.push(Frame(number, frame_values(pixels)))
            yield from pipeline.pull()
    yield from pipeline.pull(finish=True)


def grouped(scenes: list[tuple[int, int]], shortest: int) -> list[Part]:
    """Group successive scenes to parts of at least `shortest` frames; only the last part may be shorter."""
    parts, first = [], 0
    for number, (_, stop) in enumerate(scenes):
        if stop - scenes[first][0] >= shortest or number == len(scenes) - 1:
            parts.append(Part(scenes[first][0], stop, first))
            first = number + 1
    return parts


def _checked(parts: object, path: Path) -> tuple[Part, ...]:
    """Return the parts in a file. Raises WorkError unless they are successive."""
    rows = parts if isinstance(parts, list) and len(parts) <= MAX_SCENES else []
    valid = [Part(*row) for row in rows if isinstance(row, list) and [type(value) for value in row] == [int] * 3]
    follow = all(one.stop == other.start for one, other in pairwise(valid))
    if not valid or len(valid) != len(rows) or not follow or not all(0 <= p.start < p.stop < 10**8 for p in valid):
        raise WorkError(f"{path}: no list of parts; remove {path.parent} to start again")
    return tuple(valid)


# ---- joining


def _join(shared: SharedJob, warn: Log) -> dict:
    """Join the finished parts of a job, write its record, and remove the folder."""
    began, files, seconds, frames = time.perf_counter(), [], Counter(), 0
    for part in shared.parts:
        with shared.work(part, warn=lambda line: None) as work:
            state = work.load()
            if not state or not state.get("finished"):
                raise WorkError(f"{work.path}: not finished; remove {shared.mark(part)}")
            files += [work.parts / name for name in state["parts"]]
            seconds.update(state["seconds"])
            frames += state["written"]
    peak = Peak(shared.model.device)
    base = peak.reset()
    join_parts(files, shared.job, shared.model)
    memory = {"before": base, "predicted peak": shared.predicted, "peak": peak.read()}
    state = {"written": frames, "seconds": seconds}
    record = write_result(shared.job, shared.manifest, shared.plan, state, began=began, memory=memory)
    if not shared.job.options.keep_work:
        _remove(shared.folder, warn)
    return record


def _remove(folder: Path, warn: Log) -> None:
    """Remove the folder of a finished job, unless it holds unexpected files."""
    foreign = [
        path.name for path in folder.iterdir() if not (OWN_FILES.fullmatch(path.name) or is_temporary(path.name))
    ]
    if foreign:
        warn(f"{folder}: not removed, since it holds {foreign[0]}")
        return
    with contextlib.suppress(OSError):
        shutil.rmtree(set_aside(folder))
