"""Scores of one clip of one method at a time, frame by frame, kept measure by measure in files of their own."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm import video
from ldm.benchmark.sets import Clip
from ldm.engine import provenance
from ldm.files import write_whole
from ldm.metrics.measure import Measure
from ldm.metrics.protocol import Options, measures

PARTS = ("figures", "curves", "reasons", "protocols", "better", "of")  # of scores, each by metric


@dataclass(frozen=True)
class Scores:
    """Figures by method, seed and clip in a folder; what was measured before by the same code is not measured again."""

    folder: Path
    names: Sequence[str]
    options: Options

    def of(self, clip: Clip, result: video.Source, *, place: str, report: Callable[[int, int], None]) -> dict:
        """`{figures, curves, reasons, protocols, better, of, hashes}` of a clip's result, each by metric.

        A figure that is not there is None and has a reason. Raises ValueError naming the clip for frames that cannot
        be scored.
        """
        hashes = {"result": provenance.digest(result.path, result.names)}
        hashes["truth"] = provenance.digest(clip.gt.path, clip.gt.names) if clip.gt else None
        made = measures(self.names, options=self.options, count=clip.frames)
        file, keys = self.folder / f"{place}.json", {measure.name: key_of(clip, hashes, measure) for measure in made}
        kept = {name: entry for name, entry in _kept(file).items() if entry["key"] == keys.get(name)}
        wanting = [measure for measure in made if measure.name not in kept]
        try:
            if wanting:
                _push_all(clip, result, wanting, report)
            else:
                report(clip.frames, clip.frames)
            fresh = {measure.name: {"key": keys[measure.name], **summary(measure)} for measure in wanting}
        except ValueError as error:
            line = str(error)
            raise ValueError(line if str(result.path) in line else f"{result.path}: {line}") from None
        # What failed on the way, for want of weights as it may be, is tried again.
        lasting = {m.name: fresh[m.name] for m in wanting if keys[m.name] == key_of(clip, hashes, m) or _needs(m, clip)}
        if lasting:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, f"{json.dumps(kept | lasting, allow_nan=False)}\n".encode())
        entries = [(kept | fresh)[measure.name] for measure in made]
        return {"hashes": hashes, **{part: _together(entry[part] for entry in entries) for part in PARTS}}


def key_of(clip: Clip, hashes: Mapping, measure: Measure) -> str:
    """A hash of all that decides a measure's figures."""
    what = {
        **hashes,
        "frames": clip.frames,
        "size": clip.size,
        "measure": (measure.name, measure.protocol, measure.missing),
        "versions": provenance.versions(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _needs(measure: Measure, clip: Clip) -> bool:
    """Whether a measure cannot be had for want of a truth, which will not come."""
    return measure.reference and clip.gt is None


def _kept(file: Path) -> dict[str, dict]:
    """What a file of scores has by measure; nothing where it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: entry for name, entry in content.items() if {"key", *PARTS} <= entry.keys()}
    except (OSError, ValueError, AttributeError):
        return {}


def _together(parts) -> dict:
    return {name: value for part in parts for name, value in part.items()}


def _push_all(clip: Clip, result: video.Source, made: Sequence[Measure], report: Callable[[int, int], None]) -> None:
    """Feed all frames of a result and its truth, never holding more than the measures do."""
    truths, number = video.read(clip.gt, 0, clip.frames, as_rgb8=True) if clip.gt else None, 0
    for number, frame in enumerate(video.read(result, 0, clip.frames, as_rgb8=True), 1):
        truth = next(truths) if truths else None
        if truth is not None:
            height, width = clip.size
            frame, truth = frame[:height, :width], truth[:height, :width]
        for measure in made:
            measure.push(frame, truth)
        report(number, clip.frames)
    if number != clip.frames:
        raise ValueError(f"has {number} frames, expected {clip.frames}")


def summary(measure: Measure) -> dict:
    """What a measure says at the end of a clip, in numbers that JSON has: None with a reason for any other."""
    said = {part: {} for part in PARTS}
    curve = [value if math.isfinite(value) else None for value in measure.per_frame()]
    figures = measure.figures()
    if any(value is not None for value in curve):
        said["curves"][measure.name] = curve
    for name, value in figures.items():
        good = math.isfinite(value) and not measure.missing
        said["figures"][name] = value if good else None
        if not good:
            said["reasons"][name] = _reason(value, measure.missing, measure.per_frame())
        said["protocols"][name], said["better"][name] = measure.protocol, measure.better
        if name != measure.name:
            said["of"][name] = measure.name
    return said


def _reason(value: float, missing: str | None, per_frame: Sequence[float]) -> str:
    if missing:
        return f"n/a ({missing})"
    if not math.isinf(value):
        return "n/a (no frame or pair has a value)"
    equal = [number for number, one in enumerate(per_frame) if math.isinf(one)]
    return f"inf (equal to the truth{f' in frame {equal[0]}' if len(equal) < len(per_frame) else ''})"
