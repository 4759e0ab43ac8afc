"""Check before any work that ground truth, input and results of every clip are complete and match.

All sizes are (height, width) in pixels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ldm import video
from ldm.benchmark.numbering import gap_in, other_frames
from ldm.benchmark.sets import Clip, Dataset, Found, clips_at, first_few, refuse_ambiguity

log = logging.getLogger(__name__)
Bar = Callable[..., AbstractContextManager[Callable[..., None]]]  # (title, total) -> report(what, done, total)


def inspect(dataset: Dataset, found: Found, kind: str | None, *, scale: int, limits: tuple, bar: Bar) -> list[Clip]:
    """Return the clips with their input of the given kind (if any), after checking each against its ground truth.

    `limits` are the maximum numbers of clips and frames, or None. Raises ValueError for incomplete clips; logs a
    warning for each of them.
    """
    max_clips, max_frames = limits
    names = found.names[:max_clips]
    paths = {"gt": found.gt, "lq": found.lq.get(kind, {})}
    if absent := [name for name in names if paths["lq"] and name not in paths["lq"]]:
        raise ValueError(f"{found.base}: {first_few(absent)} is in the truth but not in the LQ ({kind}), expected both")
    sources, lines = {}, []
    with bar("inspecting clips", 2 * len(names)) as report:
        for part, clips in paths.items():
            sources[part] = {}
            for name in (name for name in names if name in clips):
                report(name)
                sources[part][name] = video.probe(clips[name])
            lines += problems(sources[part], fixed=isinstance(dataset.frames, int))
    _raise_last(lines)
    clips = []
    for name in names:
        try:
            clips.append(paired(name, sources["gt"].get(name), sources["lq"].get(name), scale, max_frames))
        except ValueError as error:
            lines.append(str(error))
    _raise_last(lines)
    return clips


def inspect_results(folders: Mapping[str, Path], clips: Sequence[Clip]) -> dict[str, dict[str, video.Source | str]]:
    """Return restored clips by method and clip; a string is the reason why a result cannot be scored.

    Raises ValueError for a folder in which no result can be scored.
    """
    found = {}
    for method, folder in folders.items():
        refuse_ambiguity(folder, ".")
        available = clips_at(folder, ".")
        found[method] = {clip.name: _result_of(clip, clip.found_in(available), folder) for clip in clips}
        lines = [result for result in found[method].values() if isinstance(result, str)]
        if len(lines) == len(clips):
            names = f"it holds {first_few(available) or 'no clips'}"
            raise ValueError(lines[0] if clips[0].found_in(available) else f"{lines[0]}; {names}")
        for line in lines:
            log.warning("%s; not scored", line)
    return found


def _result_of(clip: Clip, path: Path | None, folder: Path) -> video.Source | str:
    if path is None:
        return f"{folder}: no result of clip {clip.name}, expected a folder or video of that name"
    try:
        source = video.probe(path)
        check_result(clip, source)
    except (ValueError, OSError) as error:
        return str(error)
    return source


def _raise_last(lines: Sequence[str]) -> None:
    """Log every line but the last as a warning, and raise ValueError with the last one."""
    for line in lines[:-1]:
        log.warning("%s", line)
    if lines:
        raise ValueError(lines[-1])


def problems(clips: Mapping[str, video.Source], *, fixed: bool) -> list[str]:
    """Return a line for each incomplete clip; with `fixed`, all clips must have the same length."""
    gaps = {source.path: gap for source in clips.values() if (gap := gap_in(source.names))}
    lines = [f"{path}: {gap}" for path, gap in gaps.items()]
    usual = max((source.frames for source in clips.values()), default=0)
    for source in clips.values():
        if fixed and source.frames != usual and source.path not in gaps:
            lines.append(f"{source.path}: has {source.frames} frames, other clips of the set {usual}")
    return lines


def paired(name: str, gt: video.Source | None, lq: video.Source | None, scale: int, most: int | None) -> Clip:
    """Return a clip of matching ground truth and input. Raises ValueError if they do not match.

    The ground truth is cropped to a multiple of the scale, as in degradation.
    """
    sides = [(source.height, source.width) if source else None for source in (gt, lq)]
    size, frames = sides[0], (gt or lq).frames
    if lq is not None:
        size = tuple(side * scale for side in sides[1])
    if gt is not None and lq is not None:
        if gt.frames != lq.frames:
            got = f"{lq.path}: has {lq.frames} frames and the truth {gt.path} {gt.frames}"
            raise ValueError(f"{got}; expected equal numbers")
        if odd := other_frames(lq.names, gt.names):
            raise ValueError(f"{lq.path}: {odd}")
        if not all(0 <= large - small < scale for large, small in zip(sides[0], size, strict=True)):
            got, want = f"{lq.width}x{lq.height}", f"{gt.width}x{gt.height}"
            raise ValueError(f"{lq.path}: got frames of {got}, expected 1/{scale} of the truth's {want}")
    elif gt is not None:
        size = tuple(side - side % scale for side in sides[0])
    return Clip(name, gt, lq, min(frames, most or frames), size)


def check_result(clip: Clip, source: video.Source) -> None:
    """Raise ValueError if restored frames differ from a clip in number, numbering or size."""
    if lost := gap_in(source.names):
        raise ValueError(f"{source.path}: {lost}")
    full = (clip.gt or clip.lq).frames
    if not clip.frames <= source.frames <= full:
        raise ValueError(f"{source.path}: has {source.frames} frames, clip {clip.name} has {full}")
    odd = [other_frames(source.names, known.names) for known in (clip.gt, clip.lq) if known]
    if all(odd):
        raise ValueError(f"{source.path}: {odd[0]}")
    got, truth = (source.height, source.width), clip.gt and (clip.gt.height, clip.gt.width)
    if got not in (clip.size, truth):
        of = f"as clip {clip.name} has" if clip.gt else f"for clip {clip.name} (--scale?)"
        sizes = f"got frames of {got[1]}x{got[0]}, expected {clip.size[1]}x{clip.size[0]}"
        raise ValueError(f"{source.path}: {sizes} {of}")
