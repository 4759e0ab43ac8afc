"""Test sets: what a set should hold, which layout a folder has, and in what its clips are not the published ones.

Every set is a file of configs/benchmark. All sizes are (height, width) in pixels. Nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm import video
from ldm.video.source import files_in, natural_order

KEYS = {"gt", "lq", "kind", "renamed"}  # of a layout
SHOWN = 5  # names in a message
GIVEN = "given"  # LQ of unknown making, as it was found


@dataclass(frozen=True)
class Found:
    """A folder that was understood: clips of the truth by name, those of every kind of LQ, and what to tell of it."""

    base: Path
    gt: dict[str, Path]
    lq: dict[str, dict[str, Path]]
    lines: tuple[str, ...]
    folders: dict[str, str] = field(default_factory=dict)  # kind of LQ, or "gt": the folder

    @property
    def names(self) -> list[str]:
        """Clips in natural order."""
        return sorted(self.gt or {name for kind in self.lq.values() for name in kind}, key=natural_order)


@dataclass(frozen=True)
class Clip:
    """A clip of a test set, looked at: `frames` of `size`, the restored ones' (None: not known without LQ or truth)."""

    name: str
    gt: video.Source | None
    lq: video.Source | None
    frames: int
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Dataset:
    """A test set as published, and how its figures are taken.

    `layouts`: by name, where the truth (`gt`) and the input (`lq`) of clips lie below the root, "." the root itself,
    with {clip} where every clip has a folder of its own; `kind` is what the LQ is: the name of a degradation, or
    "given". `lq` are the kinds to take, the first one best; a degradation that is not found is made from the truth.
    `frames` of every clip, or by its name. `renamed`: names of the clips in layouts that say `renamed: true`.
    `published`: tables by name, each with source, lq, and methods' figures.
    """

    title: str
    about: str
    scale: int
    layouts: Mapping
    lq: Sequence
    metrics: Sequence
    published: Mapping = field(default_factory=dict)
    folders: Sequence = ()
    clips: Sequence | None = None
    renamed: Sequence | None = None
    count: int | None = None
    frames: object = None
    size: Sequence | None = None
    truth: bool = True

    def __post_init__(self):
        for name, layout in self.layouts.items():
            if unknown := set(layout) - KEYS:
                raise ValueError(f"layout {name}: got {sorted(unknown)[0]!r}, expected {', '.join(sorted(KEYS))}")

    def expected_frames(self, name: str) -> int | None:
        """Of a clip, as published; None where nobody says."""
        return self.frames.get(name) if isinstance(self.frames, Mapping) else self.frames

    def find(self, root: Path) -> Found:
        """The layout of a folder. Raises ValueError for one in which no layout fits, naming those looked for."""
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder; expected {self.title}: {self.about}")
        candidates = [found for base in self._bases(root) for found in self._readings(base)]
        if not candidates:
            wanted = dict.fromkeys(str(word) for layout in self.layouts.values() for word in _places(layout))
            looked = ", ".join("clips in it" if word == "." else f"{word}/" for word in wanted)
            raise ValueError(f"{root}: no layout of {self.title} fits; expected one of {looked} (read README.md)")
        return max(candidates, key=self._fitness)

    def _bases(self, root: Path) -> list[Path]:
        """The root, and folders in it that are named like the set."""
        named = {word.casefold() for word in (self.title, *self.folders)}
        inside = sorted(path for path in root.iterdir() if path.is_dir() and path.name.casefold() in named)
        return [root, *inside]

    def _readings(self, base: Path) -> list[Found]:
        """What the layouts make of a folder, one for each place of the truth; those with the same truth together."""
        readings: dict[str | None, list[tuple[str, dict, Path | None]]] = {}
        for name, layout in self.layouts.items():
            readings.setdefault(layout.get("gt"), []).append((name, layout))
        found = []
        for place, layouts in readings.items():
            gt = self._chosen(clips_at(base, place), layouts[0][1]) if place else {}
            lq, names, folders = {}, [], {}
            for name, layout in layouts:
                clips = self._chosen(clips_at(base, layout.get("lq")), layout) if layout.get("lq") else {}
                if clips and (layout.get("kind") or GIVEN) not in lq:
                    kind = layout.get("kind") or GIVEN
                    lq[kind], folders[kind] = clips, layout["lq"]
                    names.append(name)
            if gt or (lq and place is None):
                names = names or [layouts[0][0]]
                lines = self._told(base, place if gt else None, gt, lq, folders, names)
                found.append(Found(base, gt, lq, lines, folders | ({"gt": place} if gt else {})))
        return found

    def _chosen(self, clips: Mapping[str, Path], layout: Mapping) -> dict[str, Path]:
        """Those of the set, under the names of the set; all of them where none has a name that is expected.

        Where clips are renamed, a folder with more of them than the set has is another part of the same data.
        """
        if self.renamed:
            moved = {self.clips[k]: clips[old] for k, old in enumerate(self.renamed) if old in clips}
            if moved or layout.get("renamed") or len(clips) > len(self.clips):
                return moved
        if not self.clips:
            return dict(clips)
        return {name: clips[name] for name in self.clips if name in clips} or dict(clips)

    def _told(self, base, place, gt, lq, folders, names) -> tuple[str, ...]:
        holds = [f"truth in {place}"] * bool(gt) + [f"LQ ({kind}) in {folders[kind]}" for kind in lq]
        return (f"{self.title}: {base}, layout {' + '.join(names)}: {'; '.join(holds)}",)

    def _fitness(self, found: Found) -> tuple[int, int, int]:
        """How well a reading fits: expected clips, then whether there is a truth, then kinds of LQ that are wanted."""
        known = len(set(found.names) & set(self.clips or ())) if self.clips else min(len(found.names), 1)
        return known, bool(found.gt) == self.truth, sum(kind in self.lq for kind in found.lq)

    def differences(self, clips: Sequence[Clip]) -> list[str]:
        """In what the clips are not the published ones, in words; such clips give other figures."""
        lines, names = [], [clip.name for clip in clips]
        if self.clips and set(names) != set(self.clips):
            absent = [name for name in self.clips if name not in names]
            lines.append(f"{len(self.clips) - len(absent)} of {len(self.clips)} clips, without {first_few(absent)}")
        elif self.count and len(names) != self.count:
            lines.append(f"{len(names)} clips, the set has {self.count}")
        odd = [f"{c.name} ({c.frames})" for c in clips if self.expected_frames(c.name) not in (None, c.frames)]
        if odd:
            lines.append(f"clips of another length than {self._length()}: {first_few(odd)}")
        size = tuple(self.size[::-1]) if self.size else None
        odd = [f"{c.name} ({c.size[1]}x{c.size[0]})" for c in clips if size and c.size and c.size != size]
        if odd:
            lines.append(f"frames of another size than {size[1]}x{size[0]}: {first_few(odd)}")
        return lines

    def _length(self) -> str:
        return "published" if isinstance(self.frames, Mapping) else f"{self.frames} frames"


def _places(layout: Mapping) -> list[str]:
    return [layout[key] for key in ("gt", "lq") if layout.get(key)]


def clips_at(base: Path, place: str) -> dict[str, Path]:
    """Clips by name at a place below a folder, in which case does not matter; none where it is not there.

    Raises ValueError for two of one name.
    """
    head, per_clip, tail = place.partition("{clip}")
    folder = below(base, head)
    if folder is None:
        return {}
    if per_clip:
        clips = {child.name: below(child, tail.lstrip("/")) for child in folder.iterdir() if child.is_dir()}
        return {name: path for name, path in clips.items() if path and files_in(path, video.IMAGE_SUFFIXES)}
    try:
        paths = video.clips_in(folder)
    except video.VideoError:
        return {}
    if paths == [folder]:
        return {base.resolve().name: folder}
    clips = {}
    for path in paths:
        name = path.name if path.is_dir() else path.stem
        if name in clips:
            raise ValueError(f"{folder}: got {clips[name].name} and {path.name}, expected one clip of the name {name}")
        clips[name] = path
    return clips


def below(base: Path, place: str) -> Path | None:
    """A folder below another, found whatever the case of its letters."""
    for part in (part for part in place.split("/") if part and part != "."):
        fitting = [child for child in base.iterdir() if child.name.casefold() == part.casefold() and child.is_dir()]
        if not fitting:
            return None
        base = next((child for child in fitting if child.name == part), sorted(fitting)[0])
    return base


def first_few(names) -> str:
    """A few names for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")
