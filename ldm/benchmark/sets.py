"""Test sets: find the clips in a folder of known layout, and compare them with the published set.

Every test set is described by a file of configs/benchmark. All sizes are (height, width) in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ldm import video
from ldm.benchmark.checking import check_dataset
from ldm.files import read_text
from ldm.printable import printable
from ldm.video.source import files_in, is_visible, natural_order

BUILDABLE = ("Dataset",)  # what a configuration may name as a target

SHOWN = 5  # names in a message
GIVEN = "given"  # LQ that was found, of unknown degradation


@dataclass(frozen=True)
class Found:
    """Clips in a folder of known layout: ground truth and each kind of LQ by name, and lines that describe them."""

    base: Path
    gt: dict[str, Path]
    lq: dict[str, dict[str, Path]]
    lines: tuple[str, ...]
    folders: dict[str, str] = field(default_factory=dict)  # kind of LQ, or "gt": the folder
    left_out: tuple[str, ...] = ()  # lines on clips that are not used

    @property
    def names(self) -> list[str]:
        """Names of the clips in natural order."""
        return sorted(self.gt or {name for kind in self.lq.values() for name in kind}, key=natural_order)

    def describe_lq(self, kind: str | None) -> str:
        """Return the origin of the LQ of a kind, for messages; `kind` None is unknown."""
        if kind is None:
            return "unknown"
        return f"{kind}, in {self.folders[kind]}" if kind in self.lq else f"{kind}, made from the truth where needed"


@dataclass(frozen=True)
class Clip:
    """An inspected clip of a test set. `size` is that of restored frames; None without both LQ and ground truth."""

    name: str
    gt: video.Source | None
    lq: video.Source | None
    frames: int
    size: tuple[int, int] | None

    @property
    def file_name(self) -> str:
        """Name of a folder for its frames, without dots, so that it cannot be confused with a video."""
        return self.name.replace("%", "%25").replace(".", "%2E")

    def found_in(self, paths: Mapping[str, Path]) -> Path | None:
        """Return the path of this clip, by its name (in any case) or file name; None if there is none."""
        folded = {name.casefold(): path for name, path in paths.items()}
        return paths.get(self.name) or paths.get(self.file_name) or folded.get(self.name.casefold())


@dataclass(frozen=True)
class Dataset:
    """A published test set and its measurement.

    Args:
        title, about: name and description of the set.
        scale: ratio of restored sides to input sides.
        layouts: name -> {gt, lq, kind, renamed, list}: folders of ground truth and input below the root ("." is the
            root), with {clip} if each clip has a folder of its own. `kind` of the LQ is the name of a degradation, or
            "given". `list` is a file below the root that lists the clips, one path such as 00001/0266 a line.
        lq: kinds of LQ to use, in order of preference; a degradation that is not found is made from the truth.
        metrics: names of metrics.
        published: name -> table with source, protocol, lq, and values of methods.
        protocols: name -> {metrics, lq, published}: what replaces those of the set (`measured_by`).
        folders: other names of the folder of the set.
        clips, renamed: names of the clips, and those in layouts with `renamed: true`.
        count, frames, size, truth: number of clips, frames per clip (or by name), size of frames, and whether the set
            has a ground truth.

    Raises ValueError for invalid settings.
    """

    title: str
    about: str
    scale: int
    layouts: Mapping
    lq: Sequence
    metrics: Sequence
    published: Mapping = field(default_factory=dict)
    protocols: Mapping = field(default_factory=dict)
    folders: Sequence = ()
    clips: Sequence | None = None
    renamed: Sequence | None = None
    count: int | None = None
    frames: object = None
    size: Sequence | None = None
    truth: bool = True

    def __post_init__(self):
        check_dataset(self)

    def measured_by(self, protocol: str) -> "Dataset":
        """Return the set with metrics, kinds of LQ and tables of a protocol. Raises ValueError for an unknown name."""
        if protocol not in self.protocols:
            raise ValueError(f"got protocol {protocol!r}, expected one of {', '.join(self.protocols) or 'none'}")
        chosen = self.protocols[protocol]
        tables = {name: self.published[name] for name in chosen["published"] if name in self.published}
        return replace(self, metrics=chosen["metrics"], lq=chosen["lq"], published=tables)

    def expected_frames(self, name: str) -> int | None:
        """Return the published number of frames of a clip; None if unknown."""
        return self.frames.get(name) if isinstance(self.frames, Mapping) else self.frames

    def find(self, root: Path) -> Found:
        """Find the clips in a folder. Raises ValueError, with the expected folders, if no layout fits."""
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; expected {self.title}: {self.about}")
        candidates = [found for base in self._bases(root) for found in self._fitting_layouts(base)]
        if not candidates:
            places = [layout[key] for layout in self.layouts.values() for key in ("gt", "lq") if layout.get(key)]
            wanted = dict.fromkeys(map(str, places))
            looked = ", ".join("clips in it" if word == "." else f"{word}/" for word in wanted)
            raise ValueError(f"{root}: no layout of {self.title} fits; expected one of {looked} (read README.md)")
        best = max(candidates, key=self._fitness)
        for place in best.folders.values():
            refuse_ambiguity(best.base, place)
        lines = (*best.lines, *_other_folders(best))
        return replace(best, lines=lines, left_out=(*_without_truth(best), *_without_frames(best)))

    def _bases(self, root: Path) -> list[Path]:
        """Return the root and its folders that have a name of the set."""
        named = {word.casefold() for word in (self.title, *self.folders)}
        inside = sorted(path for path in root.iterdir() if path.is_dir() and path.name.casefold() in named)
        return [root, *inside]

    def _fitting_layouts(self, base: Path) -> list[Found]:
        """Return the layouts that fit a folder; those with the same folder of ground truth are merged."""
        by_truth: dict[tuple, list[tuple[str, Mapping]]] = {}
        for name, layout in self.layouts.items():
            by_truth.setdefault((layout.get("gt"), layout.get("list")), []).append((name, layout))
        found = []
        for (place, _), layouts in by_truth.items():
            gt = self._chosen(clips_at(base, place, layouts[0][1].get("list")), layouts[0][1]) if place else {}
            lq, names, folders = {}, [], {}
            for name, layout in layouts:
                clips = clips_at(base, layout["lq"], layout.get("list")) if layout.get("lq") else {}
                clips = self._chosen(clips, layout)
                if clips and (layout.get("kind") or GIVEN) not in lq:
                    kind = layout.get("kind") or GIVEN
                    as_truth = {name.casefold(): name for name in gt}
                    clips = {n if n in gt else as_truth.get(n.casefold(), n): path for n, path in clips.items()}
                    lq[kind], folders[kind] = clips, layout["lq"]
                    names.append(name)
            if gt or (lq and place is None):
                names = names or [layouts[0][0]]
                holds = [f"truth in {place}"] * bool(gt) + [f"LQ ({kind}) in {folders[kind]}" for kind in lq]
                line = f"{self.title}: {base}, layout {' + '.join(names)}: {'; '.join(holds)}"
                found.append(Found(base, gt, lq, (line,), folders | ({"gt": place} if gt else {})))
        return found

    def _chosen(self, clips: Mapping[str, Path], layout: Mapping) -> dict[str, Path]:
        """Return the clips of the set by name; all clips if none has an expected name.

        If clips are renamed, a folder with more clips than the set is another part of the same data.
        """
        if self.renamed:
            moved = {self.clips[k]: clips[old] for k, old in enumerate(self.renamed) if old in clips}
            if moved or layout.get("renamed") or len(clips) > len(self.clips):
                return moved
        if not self.clips:
            return dict(clips)
        folded = {name.casefold(): path for name, path in clips.items()}
        return {name: folded[name.casefold()] for name in self.clips if name.casefold() in folded} or dict(clips)

    def _fitness(self, found: Found) -> tuple[int, int, int]:
        """Rank a layout: by expected clips, then by the presence of a ground truth, then by wanted kinds of LQ."""
        known = len(set(found.names) & set(self.clips or ())) if self.clips else min(len(found.names), 1)
        return known, bool(found.gt) == self.truth, sum(kind in self.lq for kind in found.lq)

    def differences(self, clips: Sequence[Clip]) -> list[str]:
        """Return lines on how the clips differ from the published set, so that values are not comparable."""
        lines, names = [], [clip.name for clip in clips]
        if self.clips and set(names) != set(self.clips):
            absent = [name for name in self.clips if name not in names]
            lines.append(f"{len(self.clips) - len(absent)} of {len(self.clips)} clips, without {first_few(absent)}")
        elif self.count and len(names) != self.count:
            lines.append(f"{len(names)} clips, the set has {self.count}")
        odd = [f"{c.name} ({c.frames})" for c in clips if self.expected_frames(c.name) not in (None, c.frames)]
        if odd:
            usual = "published" if isinstance(self.frames, Mapping) else f"{self.frames} frames"
            lines.append(f"clips of another length than {usual}: {first_few(odd)}")
        size = tuple(self.size[::-1]) if self.size else None
        odd = [f"{c.name} ({c.size[1]}x{c.size[0]})" for c in clips if size and c.size and c.size != size]
        if odd:
            lines.append(f"frames of another size than {size[1]}x{size[0]}: {first_few(odd)}")
        return lines


def clips_at(base: Path, place: str, listed: str | None = None) -> dict[str, Path]:
    """Return clips by name in a subfolder, whose name may differ in case; empty if it does not exist.

    `listed` names a file below `base` that lists them; the clip 00001/0266 has the name 00001_0266. Raises ValueError
    for a list that cannot be read or leaves the subfolder.
    """
    head, per_clip, tail = place.partition("{clip}")
    folder = subfolder(base, head)
    if folder is None or (listed and not (base / listed).is_file()):
        return {}
    if listed:
        paths = {"_".join(Path(line).parts): folder / line / tail.strip("/") for line in _listed(base / listed)}
        return {name: path for name, path in paths.items() if path.is_dir()}
    if per_clip:
        clips = {child.name: subfolder(child, tail.lstrip("/")) for child in folder.iterdir() if child.is_dir()}
        return {name: path for name, path in clips.items() if path and files_in(path, video.IMAGE_SUFFIXES)}
    try:
        paths = video.clips_in(folder)
    except video.VideoError:
        return {}
    if paths == [folder]:
        return {base.resolve().name: folder}
    return {_name_of(path): path for path in paths}


def _listed(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if wrong := next((line for line in lines if Path(line).is_absolute() or ".." in Path(line).parts), None):
        raise ValueError(f"{path}: got {printable(wrong)}, expected paths below the folder of the clips")
    return lines


def _name_of(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def refuse_ambiguity(base: Path, place: str) -> None:
    """Raise ValueError for an ambiguous folder: two clips of one name, or images beside folders of images."""
    head, per_clip, _ = place.partition("{clip}")
    folder = subfolder(base, head)
    if per_clip or folder is None:
        return
    paths = video.clips_in(folder)
    if paths == [folder]:
        clips = [child.name for child in _visible(folder) if child.is_dir() and files_in(child, video.IMAGE_SUFFIXES)]
        if clips:
            stray = files_in(folder, video.IMAGE_SUFFIXES)[0]
            what = f"got {stray} beside folders of frames ({first_few(clips)})"
            raise ValueError(f"{folder}: {what}; move one or the other")
        return
    for path in paths:
        if twin := next((other for other in paths if other != path and _name_of(other) == _name_of(path)), None):
            what = f"got {path.name} and {twin.name}"
            raise ValueError(f"{folder}: {what}, expected one clip of the name {_name_of(path)}")


def _without_truth(found: Found) -> list[str]:
    """Return lines on clips that have LQ but no ground truth, if other clips have one."""
    extra = {kind: [name for name in clips if name not in found.gt] for kind, clips in found.lq.items() if found.gt}
    return [f"LQ ({kind}) without a truth, left out: {first_few(names)}" for kind, names in extra.items() if names]


def _without_frames(found: Found) -> list[str]:
    """Return lines on clips without readable frames."""
    places = [place for place in found.folders.values() if "{clip}" not in place and place != "."]
    folders = [folder for place in places if (folder := subfolder(found.base, place))]
    suffixes = (*video.IMAGE_SUFFIXES, *video.VIDEO_SUFFIXES)
    children = [child for folder in folders for child in _visible(folder)]
    empty = [child for child in children if not child.exists() or (child.is_dir() and not files_in(child, suffixes))]
    return [f"{path} holds no frames that can be read, left out" for path in empty]


def _other_folders(found: Found) -> list[str]:
    """Return a line on folders of clips that are not used."""
    used = {place.partition("{clip}")[0].strip("/").partition("/")[0].casefold() for place in found.folders.values()}
    if used & {"", "."}:
        return []
    others = [child for child in _visible(found.base) if child.is_dir() and child.name.casefold() not in used]
    names = [child.name for child in others if clips_at(found.base, child.name)]
    return [f"not used: {first_few(names)}"] if names else []


def _visible(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if is_visible(child))


def subfolder(base: Path, place: str) -> Path | None:
    """Return a subfolder, whose name may differ in case; None if there is none."""
    for part in (part for part in place.split("/") if part and part != "."):
        fitting = [child for child in base.iterdir() if child.name.casefold() == part.casefold() and child.is_dir()]
        if not fitting:
            return None
        base = next((child for child in fitting if child.name == part), sorted(fitting)[0])
    return base


def first_few(names) -> str:
    """Return the first names, for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
