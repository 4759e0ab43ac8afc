"""Sources of clips: footage on the disk, and scenes rendered from pictures.

A source has `len(source)`; `name(number)`; `long_enough(frames)`, the numbers of the clips with at least that many
frames; and `clip(number, rng, frames, step=1)`, which returns every `step`-th frame, (T, H, W, 3) uint8 RGB, from a
random start. `rng` is a `numpy.random.Generator`. Sources read files at first use; an invalid folder is a ValueError.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np

from basicsr_deg.reading import PICTURES, FilmSequence, PictureSequence, entries, is_film, read_picture
from basicsr_deg.scenes import moving_layers
from basicsr_deg.textures import procedural_picture
from ldm.video.folders import gaps, list_folder, log_skipped, some
from ldm.video.source import is_visible

BUILDABLE = ("RenderedScenes", "StillPhotographs", "folder_clips")  # what a configuration may name as a target

TRUTHS = ("gt", "gts", "hr", "hq", "truth", "gt-video", "train_sharp", "train_sharp_sub")  # folders of sharp frames
DRAWN = 0.2  # fraction of the scenes of photographs that also have a procedural picture
LOG = logging.getLogger(__name__)
Found = tuple[str, list]  # recognised layout, and sequences


class Footage:
    """Clips of recorded frames. `find()` returns a description for the log and the sequences; it is called once."""

    def __init__(self, find: Callable[[], Found]):
        self.find = find
        self._found: list | None = None

    def __len__(self) -> int:
        return len(self._sequences())

    def name(self, number: int) -> str:
        """Return the name of a clip, for messages."""
        return self._sequences()[number].name

    def long_enough(self, frames: int) -> list[int]:
        """Return the numbers of the clips with at least `frames` frames; log the others. Raises ValueError for none."""
        return long_enough(self._sequences(), frames, LOG)

    def clip(self, number: int, rng: np.random.Generator, frames: int, *, step: int = 1) -> np.ndarray:
        """Return frames from a random start. Raises ValueError for an unreadable clip or frames of different sizes."""
        sequence, span = self._sequences()[number], (frames - 1) * step + 1
        if (count := sequence.exact_length()) < span:
            raise ValueError(f"{sequence.name}: has only {count} frames, expected {span}; leave this clip out")
        start = int(rng.integers(count - span + 1))
        read = sequence.frames(range(start, start + span, step))
        sizes = sorted({f"{frame.shape[1]}x{frame.shape[0]}" for frame in read})
        if len(sizes) > 1:
            raise ValueError(f"{sequence.name}: got frames of {' and '.join(sizes[:2])}, expected one size for a clip")
        return np.stack(read)

    def _sequences(self) -> list:
        if self._found is None:
            what, self._found = self.find()
            LOG.info("%s", what)
        return self._found


def long_enough(clips: Sequence, frames: int, log: logging.Logger) -> list[int]:
    """Return the numbers of the clips with at least `frames` frames, and log the names of the others.

    A clip has `name` and `len(clip)`. Raises ValueError if all are too short.
    """
    lengths = [len(clip) for clip in clips]
    short = [f"{clip.name} ({count})" for clip, count in zip(clips, lengths, strict=True) if count < frames]
    if len(short) == len(lengths):
        raise ValueError(f"got only clips of less than {frames} frames, expected longer ones: {some(short)}")
    if short:
        log.info("%d clips have less than %d frames and are left out: %s", len(short), frames, some(short))
    return [number for number, count in enumerate(lengths) if count >= frames]


def folder_clips(root: str, *, only: Sequence[str] | None = (), without: Sequence[str] | None = ()) -> Footage:
    """Return the clips of a folder: subfolders of images, videos, both, or a single clip; also below `GT/` or `hr/`.

    `only` and `without` select clips by shell patterns of their names or of the last parts of their names (`000` also
    matches `train/000`).
    """
    return Footage(partial(find_clips, root, only=only, without=without))


def find_clips(root: str | Path, *, only: Sequence[str] | None = (), without: Sequence[str] | None = ()) -> Found:
    """Return a description of a folder and its sequences. Raises ValueError for a folder without clips."""
    root, only, without = existing(root), patterns_of(only, "only"), patterns_of(without, "without")
    what, sequences = recognise_clips(root)
    if not sequences:
        raise ValueError(f"got {root} without clips, expected sub-folders of pictures, video files, or pictures")
    for kind, patterns in (("only", only), ("without", without)):
        idle = [one for one in patterns if not any(matches_any(sequence.name, [one]) for sequence in sequences)]
        if idle:
            names = some(s.name for s in sequences)
            LOG.warning("%s: %s=%s matches none of the clips, %s", root, kind, ",".join(idle), names)
    chosen = [s for s in sequences if (not only or matches_any(s.name, only)) and not matches_any(s.name, without)]
    if not chosen:
        names = some(s.name for s in sequences)
        raise ValueError(f"got only={only} and without={without}, expected to leave some of {names}")
    return f"{root}: {what}, {len(chosen)} of {len(sequences)} clips taken", chosen


def existing(root: str | Path) -> Path:
    """Return a path with `~` expanded. Raises ValueError if it does not exist."""
    path = Path(root).expanduser()
    if not path.exists():
        hint = "; variables such as $HOME are not expanded here" if "$" in str(root) else ""
        raise ValueError(f"got {root}, which is not there; expected a folder of clips or a video{hint}")
    return path


def patterns_of(given: Sequence[str] | None, what: str) -> list[str]:
    """Return patterns as a list of strings. Raises ValueError for a string in place of a list."""
    if isinstance(given, str):
        raise ValueError(f"got {what}={given!r}, expected a list such as [{given}]")
    return [str(pattern) for pattern in given or ()]


def recognise_clips(root: Path, seen: set[Path] | None = None) -> Found:
    """Recognise the layout of a folder; folders that are reached again through links count once."""
    if root.is_file():
        return "one video", [FilmSequence(root.stem, root)] if is_film(root) else []
    seen = set() if seen is None else seen
    seen.add(root.resolve())
    inside = entries(root)
    named = {path.name.casefold(): path for path in inside if path.is_dir()}
    if sharp := next((named[name] for name in TRUTHS if name in named), None):
        what, sequences = recognise_clips(sharp, seen)
        return f"the folder {sharp.name} of pairs: {what}", sequences
    content = list_folder(root)
    log_skipped(root, content)
    if content.images:
        if missing := gaps(content.images):
            LOG.warning("%s: numbers are missing between the frames' names: %s", root, some(missing))
        return "one clip of pictures", [PictureSequence(root.resolve().name, [root / n for n in content.images])]
    films = [FilmSequence(Path(name).stem, root / name) for name in content.videos]
    below = {}
    for name in sorted(content.folders, key=lambda name: (root / name).is_symlink()):  # links come last
        if (root / name).resolve() not in seen:
            below[name] = sequences_of(root / name, seen)
    found = [sequence for name in content.folders for sequence in below.get(name, ())]
    kinds = ["video files"] * bool(films) + ["folders"] * bool(found)
    return " and ".join(kinds), films + found


def sequences_of(folder: Path, seen: set[Path]) -> list:
    """Return the clips of a subfolder: its images, those of its own folder of ground truth, or its videos."""
    what, sequences = recognise_clips(folder, seen)
    if len(sequences) == 1 and isinstance(sequences[0], PictureSequence) and "folders" not in what:
        return [PictureSequence(folder.name, sequences[0].files)]
    for sequence in sequences:
        sequence.name = f"{folder.name}/{sequence.name}"
    return sequences


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether a shell pattern matches a name or the last parts of it."""
    parts = name.split("/")
    tails = ["/".join(parts[place:]) for place in range(len(parts))]
    return any(fnmatchcase(tail, str(pattern)) for pattern in patterns for tail in tails)


class PictureClips:
    """Base of the sources that make clips of any length from photographs, which are read at first use.

    Args:
        length: number of clips per pass.
        size: height and width of a frame.
        pictures: a folder of photographs; None for no photographs.
    """

    def __init__(self, *, length: int, size: int, pictures: str | None = None):
        self.length, self.size, self.pictures = length, size, pictures

    def __len__(self) -> int:
        return self.length

    def long_enough(self, frames: int) -> range:
        """Return all numbers. Raises ValueError for an invalid folder of photographs."""
        _ = self.photographs
        return range(self.length)

    @cached_property
    def photographs(self) -> list[np.ndarray]:
        """The photographs, (h, w, 3) uint8 RGB. Raises ValueError for an invalid folder."""
        return [] if self.pictures is None else read_pictures(Path(self.pictures))


class RenderedScenes(PictureClips):
    """Random clips of moving layers; a clip depends on the generator alone, not on its number.

    Without photographs, all pictures are procedural.
    """

    def name(self, number: int) -> str:
        """Return the name of a clip, for messages."""
        return f"scene {number}"

    def clip(self, number: int, rng: np.random.Generator, frames: int, *, step: int = 1) -> np.ndarray:
        """Render a new scene."""
        span = (frames - 1) * step + 1
        return moving_layers(rng, self._sources(rng), frames=span, size=(self.size, self.size))[::step]

    def _sources(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Return pictures for one clip: mostly photographs, if there are any."""
        if not self.photographs:
            return [procedural_picture(rng, (384, 384))]
        chosen = [self.photographs[k] for k in rng.integers(len(self.photographs), size=3)]
        return [*chosen, procedural_picture(rng, (384, 384))] if rng.random() < DRAWN else chosen


class StillPhotographs(PictureClips):
    """Static clips: random crops of photographs, shrunk by a random factor; a cheap source for image networks.

    Photographs are never enlarged, and those smaller than `size` are left out. Raises ValueError for no folder, and at
    first use for one without a photograph that is large enough.
    """

    def __init__(self, *, length: int, size: int, pictures: str | None):
        if pictures is None:
            raise ValueError("got no photographs, expected a folder of them; add photographs=FOLDER")
        super().__init__(length=length, size=size, pictures=pictures)

    def name(self, number: int) -> str:
        """Return the name of a clip, for messages."""
        return f"photograph crop {number}"

    def clip(self, number: int, rng: np.random.Generator, frames: int, *, step: int = 1) -> np.ndarray:
        """Return `frames` copies of a crop; larger photographs are drawn more often."""
        areas = np.sqrt([photograph.shape[0] * photograph.shape[1] for photograph in self.photographs])
        photograph = self.photographs[rng.choice(len(self.photographs), p=areas / areas.sum())]
        room = min(photograph.shape[:2]) / self.size
        side = int(round(self.size * room ** (rng.random() ** 2)))  # mostly near the photograph's own scale
        top, left = (int(rng.integers(whole - side + 1)) for whole in photograph.shape[:2])
        crop = photograph[top : top + side, left : left + side]
        if side > self.size:
            crop = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return np.repeat(crop[None], frames, axis=0)

    @cached_property
    def photographs(self) -> list[np.ndarray]:
        """The photographs that are large enough. Raises ValueError for none."""
        found = read_pictures(Path(self.pictures))
        large = [picture for picture in found if min(picture.shape[:2]) >= self.size]
        if not large:
            what = f"got {len(found)} photographs of less than {self.size} pixels a side in {self.pictures}"
            raise ValueError(f"{what}, expected larger ones")
        return large


def read_pictures(folder: Path) -> list[np.ndarray]:
    """Read all images below a folder except hidden ones. Raises ValueError if there are none."""
    folder, files = folder.expanduser(), []
    seen = {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, followlinks=True):
        files += [Path(place, n) for n in names if is_visible(Path(n)) and Path(n).suffix.lower() in PICTURES]
        inside, folders[:] = sorted(folders), []
        inside.sort(key=lambda name, place=place: os.path.islink(os.path.join(place, name)))  # links come last
        for name in inside:
            real = os.path.realpath(os.path.join(place, name))
            if is_visible(Path(name)) and real not in seen:
                seen.add(real)
                folders.append(name)
    if not files:
        kinds = ", ".join(sorted(PICTURES))
        where = f"got {folder} for photographs, {'without any picture' if folder.is_dir() else 'which is no folder'}"
        raise ValueError(f"{where}; expected a folder of pictures ({kinds})")
    return [read_picture(path) for path in sorted(files)]
