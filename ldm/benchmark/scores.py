"""Scores of one clip of one method, computed frame by frame and cached per measure."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm import video
from ldm.benchmark.sets import Clip
from ldm.engine import provenance
from ldm.files import read_object, write_atomically
from ldm.metrics.measure import Measure
from ldm.metrics.protocol import Options, measures

PARTS = ("figures", "curves", "reasons", "protocols", "better", "of")  # of scores, each by metric


@dataclass(frozen=True)
class Scores:
    """Measure clips; results are cached by method, seed and clip, with a hash of everything that determines them."""

    folder: Path
    names: Sequence[str]
    options: Options

    def of(self, clip: Clip, result: video.Source, *, place: str, report: Callable[[int, int], None]) -> dict:
        """Return `{figures, curves, reasons, protocols, better, of, hashes}` of a clip's result, each by metric.

        A missing value is None and has a reason. Raises ValueError for frames that cannot be scored.
        """
        hashes = {"result": provenance.digest(result.path, result.names)}
        hashes["truth"] = provenance.digest(clip.gt.path, clip.gt.names) if clip.gt else None
        fresh = measures(self.names, options=self.options, count=clip.frames)
        file, keys = self.folder / f"{place}.json", {measure.name: key_of(clip, hashes, measure) for measure in fresh}
        cached = {name: entry for name, entry in _read_cache(file).items() if entry["key"] == keys.get(name)}
        wanted = [measure for measure in fresh if measure.name not in cached]
        try:
            if wanted:
                _push_all(clip, result, wanted, report)
            else:
                report(clip.frames, clip.frames)
            new = {measure.name: {"key": keys[measure.name], **summary(measure)} for measure in wanted}
        except ValueError as error:
            line = str(error)
            raise ValueError(line if str(result.path) in line else f"{result.path}: {line}") from None
        # A measure that failed, such as for missing weights, is not cached and is tried again.
        lasting = {
            m.name: new[m.name]
            for m in wanted
            if keys[m.name] == key_of(clip, hashes, m) or (m.reference and clip.gt is None)
        }
        if lasting:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, f"{json.dumps(cached | lasting, allow_nan=False)}\n".encode())
        entries = [(cached | new)[measure.name] for measure in fresh]
        return {"hashes": hashes, **_merged(entries)}

    def without(self, clip: Clip, reason: str) -> dict:
        """Return the same as `of` for a result that cannot be scored, with the reason for every value."""
        fresh = measures(self.names, options=self.options, count=clip.frames)
        for measure in fresh:
            measure.missing = measure.missing or reason
        return {"hashes": {}, **_merged(map(summary, fresh))}


def key_of(clip: Clip, hashes: Mapping, measure: Measure) -> str:
    """Return a hash of everything that determines the values of a measure."""
    what = {
        **hashes,
        "frames": clip.frames,
        "size": clip.size,
        "measure": (measure.name, measure.protocol, measure.missing),
        "versions": provenance.versions(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _read_cache(file: Path) -> dict[str, dict]:
    """Return the entries of a cache file by measure; an empty dict if it cannot be read."""
    try:
        return {name: entry for name, entry in read_object(file).items() if {"key", *PARTS} <= entry.keys()}
    except (OSError, ValueError, AttributeError):
        return {}


def _merged(entries: Iterable[Mapping]) -> dict:
    """Merge the parts of all entries, each by metric."""
    entries = list(entries)
    return {part: {name: value for entry in entries for name, value in entry[part].items()} for part in PARTS}


def _push_all(clip: Clip, result: video.Source, fresh: Sequence[Measure], report: Callable[[int, int], None]) -> None:
    """Pass all frames of a result and its ground truth to the measures, one at a time."""
    truths, number = video.read(clip.gt, 0, clip.frames, as_rgb8=True) if clip.gt else None, 0
    for number, frame in enumerate(video.read(result, 0, clip.frames, as_rgb8=True), 1):
        truth = next(truths) if truths else None
        if truth is not None:
            height, width = clip.size
            frame, truth = frame[:height, :width], truth[:height, :width]
        for measure in fresh:
            measure.push(frame, truth)
        report(number, clip.frames)
    if number != clip.frames:
        raise ValueError(f"has {number} frames, expected {clip.frames}")


def summary(measure: Measure) -> dict:
    """Return the results of a measure at the end of a clip; values that are not finite are None and have a reason."""
    parts = {part: {} for part in PARTS}
    curve = [value if math.isfinite(value) else None for value in measure.per_frame()]
    if any(value is not None for value in curve):
        parts["curves"][measure.name] = curve
    for name, value in measure.figures().items():
        good = math.isfinite(value) and not measure.missing
        parts["figures"][name] = value if good else None
        if not good:
            parts["reasons"][name] = _reason(value, measure.missing, measure.per_frame())
        parts["protocols"][name], parts["better"][name] = measure.protocol, measure.better
        if name != measure.name:
            parts["of"][name] = measure.name
    return parts


def _reason(value: float, missing: str | None, per_frame: Sequence[float]) -> str:
    if missing:
        return f"n/a ({missing})"
    if not math.isinf(value):
        return "n/a (no frame or pair has a value)"
    equal = [number for number, one in enumerate(per_frame) if math.isinf(one)]
    return f"inf (equal to the truth{f' in frame {equal[0]}' if len(equal) < len(per_frame) else ''})"
