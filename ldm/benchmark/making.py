"""What is made before scoring: enlarged and restored clips. What is there and would come out the same is left alone."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ldm import video
from ldm.benchmark.sets import Clip
from ldm.engine import provenance
from ldm.engine.jobs import Job, Model, Say, Wishes, manifest_of, plan_for, prepare, restore_job
from ldm.engine.resume import differences, remove_partials
from ldm.methods.mgld import Progress
from ldm.ops.resize import resize
from ldm.video.sinks import Pictures

DECIDING = ("input", "weights", "settings", "arguments", "versions")  # of a manifest: what decides frames


def enlarge_clip(clip: Clip, output: Path, report: Callable[[int, int], None]) -> Path:
    """The LQ enlarged by bicubic interpolation, the field's baseline; an output of the same frames is left alone."""
    names = clip.lq.names[: clip.frames]
    about = {"sha256": provenance.digest(clip.lq.path, names), "frames": clip.frames, "size": list(clip.size)}
    made_of = {"input": about, "weights": {}, "versions": provenance.versions()}
    record = _read(provenance.beside(output))
    if output.exists() and made_of.items() <= record.items() and _is_as_written(output, record):
        return output
    remove_partials(output)
    with video.Writer(output, clip.size, Pictures(names), overwrite=True) as writer:
        for number, frame in enumerate(video.read(clip.lq, 0, clip.frames, as_rgb8=True), 1):
            small = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
            writer.write(resize(small, clip.size).clamp(0, 1))
            report(number, clip.frames)
    provenance.record(output, made_of)
    return output


def _is_as_written(output: Path, record: Mapping) -> bool:
    written = record.get("output")
    return isinstance(written, dict) and written.get("sha256") == provenance.digest(output)


def _read(record: Path) -> dict:
    """A JSON, empty where it cannot be read."""
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


class Restorer:
    """Restores clips with a model, as scripts/upscale.py does; `wishes` but for seed, scale and frames, `say(line)` for
    what cannot be kept, `tell(line)` for what is gone on with."""

    def __init__(self, model: Model, wishes: Wishes, *, say: Say, tell: Say):
        self.model, self.wishes, self.say, self.tell = model, wishes, say, tell

    def restored(self, clip: Clip, output: Path, *, seed: int, scale: int, report: Progress) -> dict:
        """Write the frames of a clip and return their record; gone on with where a run was stopped.

        Raises ValueError for an output that was made otherwise.
        """
        wishes = replace(self.wishes, upscale=scale, seed=seed, overwrite=True)
        if clip.frames < clip.lq.frames:
            wishes = replace(wishes, max_frames=clip.frames)
        job = prepare(Job(clip.lq.path, output), wishes, say=self.say)
        if (record := self._finished(job)) is not None:
            return record
        return restore_job(job, self.model, report=report, say=self.say, tell=self.tell)

    def _finished(self, job: Job) -> dict | None:
        """The record of an output that is there and is what would be made now."""
        beside = provenance.beside(job.output)
        if not (job.output.exists() and beside.is_file()):
            return None
        try:
            record = json.loads(beside.read_text(encoding="utf-8"))
            was = _lasting({key: record[key] for key in DECIDING})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{beside}: not a record of an output; remove it and {job.output}") from None
        plan, _ = plan_for(job, self.model, lambda line: None)
        now = json.loads(json.dumps(manifest_of(job, self.model, plan)))
        if found := differences(was, _lasting({key: now[key] for key in was})):
            what = "; ".join(found[:2])
            raise ValueError(f"{job.output}: made with {what}; choose another -o, or remove it to make it anew")
        if not _is_as_written(job.output, record):
            raise ValueError(
                f"{job.output}: its frames have changed since they were written; remove it to make it anew"
            )
        return record


def _lasting(manifest: Mapping) -> dict:
    """A manifest without places on this machine."""
    inside = manifest["input"] | {"path": ""}
    weights = {slot: {"sha256": entry["sha256"]} for slot, entry in manifest["weights"].items()}
    return {**manifest, "input": inside, "weights": weights}


def rates(records: Iterable[Mapping]) -> tuple[float | None, int | None]:
    """Seconds a frame over all records, stops and all, and the greatest memory in bytes."""
    records = list(records)
    frames = sum(record["frames"] for record in records)
    seconds = sum(record["seconds"]["all"] for record in records)
    peak = max((record["memory"]["peak"] for record in records), default=None)
    return (round(seconds / frames, 3) if frames else None), peak
