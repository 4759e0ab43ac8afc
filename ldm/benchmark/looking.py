"""A look at every clip before any work: whether truth, LQ and results are whole and belong to each other.

All sizes are (height, width) in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from ldm import video
from ldm.benchmark.numbering import gap_in, other_frames
from ldm.benchmark.sets import Clip, Dataset, Found, clips_at, first_few, refuse_doubt

Report = Callable[[str, int | None, int | None], None]  # what, done (None: one more), total


class Talk(NamedTuple):
    """How a run speaks: `say(line)` for warnings, `tell(line)` for results, `bar(title, total)` for progress."""

    say: Callable[[str], None]
    tell: Callable[[str], None]
    bar: Callable[..., AbstractContextManager[Report]]


def look(dataset: Dataset, found: Found, kind: str | None, *, scale: int, most: tuple, talk: Talk) -> list[Clip]:
    """The clips with the LQ of a kind (made later where there is none), each checked against its truth and the others.

    `most` are the numbers of clips and of frames to take, None for all. Raises ValueError for clips that are not whole,
    and says all of them before.
    """
    max_clips, max_frames = most
    names = found.names[:max_clips]
    paths = {"gt": found.gt, "lq": found.lq.get(kind, {})}
    absent = [name for name in names if paths["lq"] and name not in paths["lq"]]
    if absent:
        raise ValueError(f"{found.base}: {first_few(absent)} is in the truth, not in the LQ ({kind}); expected both")
    sources, lines = {}, []
    with talk.bar("looking at clips", 2 * len(names)) as report:
        for part, clips in paths.items():
            chosen = {name: clips[name] for name in names if name in clips}
            sources[part] = looked_at(chosen, lambda name: report(name, None, None))
            lines += problems(sources[part], fixed=isinstance(dataset.frames, int))
    _raise_first(lines, talk.say)
    clips = []
    for name in names:
        try:
            gt, lq = (sources[part].get(name) for part in ("gt", "lq"))
            clips.append(paired(name, gt, lq, scale, max_frames))
        except ValueError as error:
            lines.append(str(error))
    _raise_first(lines, talk.say)
    return clips


def look_at_results(folders: Mapping[str, Path], clips: Sequence[Clip], talk: Talk) -> dict[str, dict]:
    """Restored clips by method and name. Raises ValueError for those that are missing or do not fit, and says all."""
    found, lines = {}, []
    for method, folder in folders.items():
        refuse_doubt(folder, ".")
        there = clips_at(folder, ".")
        paths = {clip.name: clip.found_in(there) for clip in clips}
        if absent := [name for name, path in paths.items() if path is None]:
            wanted = "expected folders or videos of these names"
            raise ValueError(
                f"{folder}: no result of clip {first_few(absent)}; {wanted}, got {first_few(there) or 'none'}"
            )
        with talk.bar(f"looking at {method}", len(clips)) as report:
            found[method] = looked_at(paths, lambda name: report(name, None, None))
        for clip in clips:
            try:
                check_result(clip, found[method][clip.name])
            except ValueError as error:
                lines.append(str(error))
    _raise_first(lines, talk.say)
    return found


def _raise_first(lines: Sequence[str], say: Callable[[str], None]) -> None:
    """Say every line but the last, and raise that: each is a clip that is not whole."""
    for line in lines[:-1]:
        say(line)
    if lines:
        raise ValueError(lines[-1])


def problems(clips: Mapping[str, video.Source], *, fixed: bool) -> list[str]:
    """What is missing in sources that should be whole clips, a line for each; `fixed`: all are of one length."""
    gaps = {source.path: gap for source in clips.values() if (gap := gap_in(source.names))}
    lines = [f"{path}: {gap}" for path, gap in gaps.items()]
    usual = max((source.frames for source in clips.values()), default=0)
    for source in clips.values():
        if fixed and source.frames != usual and source.path not in gaps:
            lines.append(f"{source.path}: has {source.frames} frames, other clips of the set {usual}")
    return lines


def looked_at(paths: Mapping[str, Path], report: Callable[[str], None]) -> dict[str, video.Source]:
    """Sources by name. Raises VideoError for what cannot be read."""
    sources = {}
    for name, path in paths.items():
        report(name)
        sources[name] = video.probe(path)
    return sources


def paired(name: str, gt: video.Source | None, lq: video.Source | None, scale: int, most: int | None) -> Clip:
    """A clip of truth and LQ that fit each other. Raises ValueError naming the one that does not.

    A truth that is not a multiple of the scale loses the rows and columns that are too many, as in making LQ.
    """
    sides = [(source.height, source.width) if source else None for source in (gt, lq)]
    size, frames = sides[0], (gt or lq).frames
    if lq is not None:
        size = tuple(side * scale for side in sides[1])
    if gt is not None and lq is not None:
        if gt.frames != lq.frames:
            got = f"{lq.path}: has {lq.frames} frames and the truth {gt.path} {gt.frames}"
            raise ValueError(f"{got}; expected as many")
        if odd := other_frames(lq.names, gt.names):
            raise ValueError(f"{lq.path}: {odd}")
        if not all(0 <= large - small < scale for large, small in zip(sides[0], size, strict=True)):
            got, want = f"{lq.width}x{lq.height}", f"{gt.width}x{gt.height}"
            raise ValueError(f"{lq.path}: got frames of {got}, expected 1/{scale} of the truth's {want}")
    elif gt is not None:
        size = tuple(side - side % scale for side in sides[0])
    return Clip(name, gt, lq, min(frames, most or frames), size)


def check_result(clip: Clip, source: video.Source) -> None:
    """Raise ValueError, naming what is wrong, unless restored frames belong to a clip."""
    if lost := gap_in(source.names):
        raise ValueError(f"{source.path}: {lost}")
    whole = (clip.gt or clip.lq).frames
    if not clip.frames <= source.frames <= whole:
        raise ValueError(f"{source.path}: has {source.frames} frames, clip {clip.name} has {whole}")
    odd = [other_frames(source.names, known.names) for known in (clip.gt, clip.lq) if known]
    if all(odd):
        raise ValueError(f"{source.path}: {odd[0]}")
    got, truth = (source.height, source.width), clip.gt and (clip.gt.height, clip.gt.width)
    if got not in (clip.size, truth):
        of = f"as clip {clip.name} has" if clip.gt else f"for clip {clip.name} (--scale?)"
        sizes = f"got frames of {got[1]}x{got[0]}, expected {clip.size[1]}x{clip.size[0]}"
        raise ValueError(f"{source.path}: {sizes} {of}")
