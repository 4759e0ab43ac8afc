"""Scores of scripts/benchmark.py: one clip of one method at a time, frame by frame, kept in files of their own."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm import video
from ldm.engine import provenance
from ldm.files import write_whole
from ldm.metrics.protocol import Measure, Options, measures
from scripts.benchmark_sets import Clip

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Scores:
    """Figures by method, seed and clip in a folder; what was scored before by the same code is not scored again."""

    folder: Path
    names: Sequence[str]
    options: Options

    def of(self, clip: Clip, result: video.Source, *, place: str, report: Report) -> dict:
        """`{figures, curves, reasons, protocols, better, of, hashes}` of a clip's result, each by metric.

        A figure that is not there is None and has a reason. Raises ValueError naming the clip for frames that cannot
        be scored.
        """
        made = measures(self.names, options=self.options, count=clip.frames)
        hashes = {"result": provenance.digest(result.path, result.names)}
        hashes["truth"] = provenance.digest(clip.gt.path, clip.gt.names) if clip.gt else None
        file, key = self.folder / f"{place}.json", key_of(clip, hashes, made)
        if (kept := _kept(file, key)) is not None:
            report(clip.frames, clip.frames)
            return kept
        try:
            _push_all(clip, result, made, report)
            scores = {"hashes": hashes, **summary(made)}
        except ValueError as error:
            line = str(error)
            raise ValueError(line if str(result.path) in line else f"{result.path}: {line}") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, f"{json.dumps({'key': key, **scores}, allow_nan=False)}\n".encode())
        return scores


def key_of(clip: Clip, hashes: dict, made: Sequence[Measure]) -> str:
    """A hash of all that decides the figures."""
    what = {
        **hashes,
        "frames": clip.frames,
        "size": clip.size,
        "metrics": [(measure.name, measure.protocol, measure.missing) for measure in made],
        "versions": provenance.versions(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _kept(file: Path, key: str) -> dict | None:
    """The scores in a file, if they are those of the key."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if content.pop("key") == key else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _push_all(clip: Clip, result: video.Source, made: Sequence[Measure], report: Report) -> None:
    """Feed all frames of a result and its truth, never holding more than the measures do."""
    truths = video.read(clip.gt, 0, clip.frames, as_rgb8=True) if clip.gt else None
    for number, frame in enumerate(video.read(result, 0, clip.frames, as_rgb8=True), 1):
        truth = next(truths) if truths else None
        if truth is not None:
            height, width = clip.size
            frame, truth = frame[:height, :width], truth[:height, :width]
        for measure in made:
            measure.push(frame, truth)
        report(number, clip.frames)


def summary(made: Sequence[Measure]) -> dict:
    """What measures say at the end of a clip, in numbers that JSON has: None with a reason for any other."""
    scores = {"figures": {}, "curves": {}, "reasons": {}, "protocols": {}, "better": {}, "of": {}}
    for measure in made:
        curve = [value if math.isfinite(value) else None for value in measure.per_frame()]
        figures = measure.figures()
        if any(value is not None for value in curve):
            scores["curves"][measure.name] = curve
        for name, value in figures.items():
            good = math.isfinite(value) and not measure.missing
            scores["figures"][name] = value if good else None
            if not good:
                scores["reasons"][name] = _reason(value, measure.missing)
            scores["protocols"][name], scores["better"][name] = measure.protocol, measure.better
            if name != measure.name:
                scores["of"][name] = measure.name
    return scores


def _reason(value: float, missing: str | None) -> str:
    if missing:
        return f"n/a ({missing})"
    return "inf (equal to the truth)" if math.isinf(value) else "n/a (no frame or pair has a value)"
