"""Enlarge and restore clips before scoring. Outputs that are up to date are kept."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ldm import video
from ldm.benchmark.sets import Clip
from ldm.engine import provenance
from ldm.engine.captions import captioned
from ldm.engine.finished import finished, unchanged
from ldm.engine.jobs import Job, JobOptions, Log, Model, made_of, prepare, restore_job
from ldm.engine.resume import remove_partials
from ldm.methods.contract import Progress
from ldm.video.sinks import FolderSink

Enlarge = Callable[[Tensor, tuple[int, int]], Tensor]


def enlarge_clip(
    clip: Clip, output: Path, enlarge: Enlarge, *, weights: Mapping[str, str], report: Callable[[int, int], None]
) -> dict:
    """Enlarge the input of a clip frame by frame into a folder of frames, and return its record.

    Args:
        enlarge: maps (3, h, w) in [0, 1] and a size (H, W) to (3, H, W).
        weights: SHA-256 by file, of what `enlarge` uses.
        report: called with the number of finished frames and of all.
    """
    names = clip.lq.names[: clip.frames]
    given = {"sha256": provenance.digest(clip.lq.path, names), "frames": clip.frames, "size": list(clip.size)}
    about = {"input": given, "weights": dict(weights), "versions": provenance.versions()}
    if (kept := unchanged(output, about)) is not None:
        return kept
    remove_partials(output)
    seconds = 0.0
    with video.Writer(output, clip.size, FolderSink(names), overwrite=True) as writer:
        for number, frame in enumerate(video.read(clip.lq, 0, clip.frames, as_rgb8=True), 1):
            start = time.perf_counter()
            enlarged = enlarge(torch.from_numpy(frame).permute(2, 0, 1).float() / 255, clip.size)
            seconds += time.perf_counter() - start
            writer.write(enlarged.clamp(0, 1))
            report(number, clip.frames)
    record = about | {"frames": clip.frames, "seconds": {"all": seconds}}
    provenance.write_record(output, record)
    return record


@dataclass(frozen=True)
class Restorer:
    """Restore clips with a model, as scripts/upscale.py does.

    Args:
        model: the model.
        options: options of all clips; seed, scale and number of frames are arguments of `restored`.
        warn, inform: called with a line for each warning and each plan.
    """

    model: Model
    options: JobOptions
    warn: Log
    inform: Log

    def restored(self, clip: Clip, output: Path, *, seed: int, scale: int, report: Progress) -> dict:
        """Write the restored frames of a clip and return their record; an interrupted clip resumes.

        Raises ValueError for an output that was made with other settings.
        """
        options = replace(self.options, upscale=scale, seed=seed, overwrite=True)
        if clip.frames < clip.lq.frames:
            options = replace(options, max_frames=clip.frames)
        others = [clip.gt.path] if clip.gt else []
        job = captioned(prepare(Job(clip.lq.path, output), options, warn=self.warn), self.model, *others)
        if (record := finished(output, made_of(job, self.model))) is not None:
            return record
        return restore_job(job, self.model, report=report, warn=self.warn, log=self.inform)


def rates(records: Iterable[Mapping]) -> tuple[float | None, int | None]:
    """Return seconds per frame over all records (interrupted runs included) and the largest peak memory in bytes."""
    records = list(records)
    frames = sum(record["frames"] for record in records)
    seconds = sum(record["seconds"]["all"] for record in records)
    peak = max((record["memory"]["peak"] for record in records if "memory" in record), default=None)
    return (round(seconds / frames, 6) if frames else None), peak
