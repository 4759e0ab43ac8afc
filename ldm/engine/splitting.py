"""Restore one film by several processes: parts of whole scenes as jobs, joined by the process that finishes last.

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
from ldm.engine import provenance
from ldm.engine.claims import Claim, ClaimError, holder, take
from ldm.engine.device import Peak
from ldm.engine.finished import is_finished, portable, stored_manifest
from ldm.engine.jobs import Job, Log, Model, join_parts, made_of, manifest_of, plan_for, rounded
from ldm.engine.parts import Task, frame_values, restore_parts
from ldm.engine.plan import Plan, resumed_plan
from ldm.engine.resume import WorkError, WorkFolder, recorded_plan
from ldm.engine.sharing import share
from ldm.files import is_partial, set_aside, write_whole
from ldm.methods.contract import Progress
from ldm.streaming.pipeline import Frame

SHORTEST = 4  # a part has at least so many times the frames between two saved states
WAIT = 1.0  # seconds between two looks at the work of another process
MAX_SCENES = 1_000_000
OWN = re.compile(r"film\.json|\.(scenes|join|\d{8})\.claim-\d+|\d{8}\.(work|done)")


class Part(NamedTuple):
    """Frames `start` to `stop` of the source, from the film's scene number `scene` on."""

    start: int
    stop: int
    scene: int


@dataclass(frozen=True)
class SharedFilm:
    """A film that is shared among processes: its job, its model, what determines its output, and its parts."""

    job: Job
    model: Model
    manifest: Mapping
    plan: Plan
    predicted: int | None
    parts: tuple[Part, ...]

    @property
    def folder(self) -> Path:
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
    def left(self) -> list[Part]:
        """The parts that are not finished."""
        return [part for part in self.parts if not self.mark(part).exists()]


def split_folder(output: Path) -> Path:
    """Return the path of the folder in which processes share the parts of an output."""
    return output.with_name(f"{output.name}.split")


def restore_split(job: Job, model: Model, *, report: Progress, warn: Log, log: Log) -> dict | None:
    """Restore the free parts of a film; the process that finishes the last one joins them to the output.

    Returns the record of the output, or None if other processes still work on it; `log` receives a line for each of
    their parts. Raises ValueError for a method without scenes, and the errors of `ldm.engine.jobs.restore_job`; the
    same command resumes.
    """
    folder = split_folder(job.output)
    try:
        if folder.is_symlink():
            raise WorkError(f"{folder}: is a link; remove it, the folder must be beside its output")
        folder.mkdir(parents=True, exist_ok=True)
        film = _film(job, model, log)
        _, left = share(film.left, partial(_restore_part, film, report=report, warn=warn), place=film.place)
        for part in [part for part in left if part in film.left]:
            log(f"{job.output.name}: frames {part.start} to {part.stop - 1} are left to {holder(film.place(part))}")
        if film.left:
            return None
        claim = take(folder / "join")
        if claim is None:
            log(f"{job.output.name}: left to {holder(folder / 'join')}, which joins its parts")
            return None
        with claim:
            return _join(film, warn)
    except (ClaimError, OSError):
        if not folder.exists() and is_finished(job.output, made_of(job, model, "format")):
            log(f"{job.output.name}: finished by another process")
            return None
        raise


def _restore_part(film: SharedFilm, part: Part, claim: Claim, *, report: Progress, warn: Log) -> bool:
    if film.mark(part).exists():
        return True

    def watched(stage: str, done: int, total: int | None) -> None:
        claim.check()
        report(stage, done, total)

    span = film.job.task.start, film.job.task.stop
    cut = {"start": part.start, "stop": part.stop, "whole": span, "scene": part.scene}
    task = replace(film.job.task, rounding=film.model.rounding, **cut)
    with film.work(part, warn=warn) as work:
        restore_parts(film.model.method, task, work, film.plan_of(part), report=watched, warn=warn)
        write_whole(film.mark(part), b"")
    return True


# ---- the parts of a film


def _film(job: Job, model: Model, log: Log) -> SharedFilm:
    """Return the film with its parts; one process finds them, and the others wait for it."""
    path = split_folder(job.output) / "film.json"
    remedy = f"repeat that, or remove {path.parent} to start again"
    made = {**manifest_of(job, model), "part_frames": job.options.save_every}
    made.pop("plan")
    while True:
        stored = stored_manifest(path, made, remedy=remedy, compared=portable)
        if stored is not None:
            parts = _checked(stored.get("parts"), path)
            plan, predicted = plan_for(job, model, log, begun=stored.get("plan"))
            return SharedFilm(job, model, made, plan, predicted, parts)
        claim = take(path.with_name("scenes"))
        if claim is None:
            time.sleep(WAIT)
            continue
        with claim:
            if not path.exists():
                plan, _ = plan_for(job, model, lambda line: None, begun=None)
                scenes = scene_spans(job.task, model, claim)
                parts = grouped(scenes, SHORTEST * plan.part_frames)
                content = {**made, "plan": plan.plain(), "parts": parts}
                write_whole(path, json.dumps(content, indent=1).encode())
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


# ---- the end


def _join(film: SharedFilm, warn: Log) -> dict:
    """Join the finished parts of a film, write its record, and remove the folder."""
    began, files, seconds, frames = time.perf_counter(), [], Counter(), 0
    for part in film.parts:
        with film.work(part, warn=lambda line: None) as work:
            state = work.load()
            if not state or not state.get("finished"):
                raise WorkError(f"{work.path}: not finished; remove {film.mark(part)}")
            files += [work.parts / name for name in state["parts"]]
            seconds.update(state["seconds"])
            frames += state["written"]
    peak = Peak(film.model.device)
    base = peak.reset()
    join_parts(files, film.job, film.model)
    figures = {
        "frames": frames,
        "seconds": {**rounded(seconds), "this run": round(time.perf_counter() - began, 3)},
        "memory": {"before": base, "predicted peak": film.predicted, "peak": peak.read()},
    }
    manifest = {**film.manifest, "plan": film.plan.plain()}
    provenance.write_record(film.job.output, manifest, **figures)
    if not film.job.options.keep_work:
        _remove(film.folder, warn)
    return {**manifest, **figures}


def _remove(folder: Path, warn: Log) -> None:
    """Remove the folder of a finished film, unless it holds files of others."""
    foreign = [path.name for path in folder.iterdir() if not (OWN.fullmatch(path.name) or is_partial(path.name))]
    if foreign:
        warn(f"{folder}: not removed, since it holds {foreign[0]}")
        return
    with contextlib.suppress(OSError):
        shutil.rmtree(set_aside(folder))
