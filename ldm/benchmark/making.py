"""What is made before scoring: enlarged and restored clips. What is there and would come out the same is left alone."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ldm import video
from ldm.benchmark.sets import Clip
from ldm.engine import provenance
from ldm.engine.finished import finished
from ldm.engine.jobs import Job, JobOptions, Model, Tell, prepare, restore_job
from ldm.engine.resume import remove_partials
from ldm.methods.contract import Progress
from ldm.ops.resize import resize
from ldm.video.sinks import Pictures


def enlarge_clip(clip: Clip, output: Path, report: Callable[[int, int], None]) -> Path:
    """The LQ enlarged by bicubic interpolation, the field's baseline; an output of the same frames is left alone."""
    names = clip.lq.names[: clip.frames]
    about = {"sha256": provenance.digest(clip.lq.path, names), "frames": clip.frames, "size": list(clip.size)}
    made_of = {"input": about, "weights": {}, "versions": provenance.versions()}
    record = _read(provenance.beside(output))
    if output.exists() and made_of.items() <= record.items() and provenance.is_as_written(output, record):
        return output
    remove_partials(output)
    with video.Writer(output, clip.size, Pictures(names), overwrite=True) as writer:
        for number, frame in enumerate(video.read(clip.lq, 0, clip.frames, as_rgb8=True), 1):
            small = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
            writer.write(resize(small, clip.size).clamp(0, 1))
            report(number, clip.frames)
    provenance.record(output, made_of)
    return output


def _read(record: Path) -> dict:
    """A JSON, empty where it cannot be read."""
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


class Restorer:
    """Restores clips with a model, as scripts/upscale.py does; `wishes` but for seed, scale and frames, `say(line)` for
    what cannot be kept, `tell(line)` for what is gone on with."""

    def __init__(self, model: Model, wishes: JobOptions, *, say: Tell, tell: Tell):
        self.model, self.wishes, self.say, self.tell = model, wishes, say, tell

    def restored(self, clip: Clip, output: Path, *, seed: int, scale: int, report: Progress) -> dict:
        """Write the frames of a clip and return their record; gone on with where a run was stopped.

        Raises ValueError for an output that was made otherwise.
        """
        wishes = replace(self.wishes, upscale=scale, seed=seed, overwrite=True)
        if clip.frames < clip.lq.frames:
            wishes = replace(wishes, max_frames=clip.frames)
        job = prepare(Job(clip.lq.path, output), wishes, warn=self.say)
        if (record := finished(job, self.model)) is not None:
            return record
        return restore_job(job, self.model, report=report, warn=self.say, tell=self.tell)


def rates(records: Iterable[Mapping]) -> tuple[float | None, int | None]:
    """Seconds a frame over all records, stops and all, and the greatest memory in bytes."""
    records = list(records)
    frames = sum(record["frames"] for record in records)
    seconds = sum(record["seconds"]["all"] for record in records)
    peak = max((record["memory"]["peak"] for record in records), default=None)
    return (round(seconds / frames, 3) if frames else None), peak
