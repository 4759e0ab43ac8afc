"""Where clips come from: footage on the disk, and scenes rendered from pictures.

A clip source has `len(source)`; `name(number)`; `long_enough(frames)`, the numbers of the clips with that many frames;
and `clip(number, rng, frames, step=1)`, (T, H, W, 3) uint8 RGB: consecutive frames, or every `step`-th, from a start
drawn with `rng`, a `numpy.random.Generator`. Sources read at first use. A wrong folder is a ValueError of one line.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np

from basicsr_deg.reading import FILMS, PICTURES, FilmSequence, PictureSequence, entries, read_picture
from basicsr_deg.scenes import moving_layers
from basicsr_deg.textures import procedural_picture

BUILDABLE = ("RenderedScenes", "folder_clips")  # what a configuration may name as a target

TRUTHS = ("gt", "gts", "hr", "hq", "truth", "gt-video", "train_sharp", "train_sharp_sub")  # folders of sharp frames
SHOWN = 5  # names in a message
LOG = logging.getLogger(__name__)
Found = tuple[str, list]  # what a folder was recognised as, and its sequences


class Footage:
    """Clips of recorded frames. `find()` gives what was recognised, for the log, and the sequences; called once."""

    def __init__(self, find: Callable[[], Found]):
        self.find = find
        self._found: list | None = None

    def __len__(self) -> int:
        return len(self._sequences())

    def name(self, number: int) -> str:
        """What to call a clip in a message."""
        return self._sequences()[number].name

    def long_enough(self, frames: int) -> list[int]:
        """Numbers of the clips with so many frames; the others are logged. Raises ValueError where none has."""
        lengths = [len(sequence) for sequence in self._sequences()]
        short = [f"{self.name(k)} ({count})" for k, count in enumerate(lengths) if count < frames]
        if len(short) == len(lengths):
            raise ValueError(f"got only clips of less than {frames} frames, expected longer ones: {some(short)}")
        if short:
            LOG.info("%d clips have less than %d frames and are left out: %s", len(short), frames, some(short))
        return [number for number, count in enumerate(lengths) if count >= frames]

    def clip(self, number: int, rng: np.random.Generator, frames: int, *, step: int = 1) -> np.ndarray:
        """Frames from a random start. Raises ValueError for a clip that cannot be read or changes its size."""
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


def folder_clips(root: str, *, only: Sequence[str] = (), without: Sequence[str] = ()) -> Footage:
    """Clips of any folder: sub-folders of pictures, video files, both, one clip alone, `GT/` or `hr/` above them.

    `only` and `without` choose clips by shell patterns of their names.
    """
    return Footage(partial(find_clips, root, only=only, without=without))


def find_clips(root: str | Path, *, only: Sequence[str] = (), without: Sequence[str] = ()) -> Found:
    """What a folder was recognised as, and its sequences. Raises ValueError for one without clips."""
    root = Path(root)
    if not root.exists():
        raise ValueError(f"got {root}, which is not there; expected a folder of clips or a video")
    what, sequences = recognise_clips(root)
    if not sequences:
        raise ValueError(f"got {root} without clips, expected sub-folders of pictures, video files, or pictures")
    chosen = [s for s in sequences if (not only or fits_some(s.name, only)) and not fits_some(s.name, without)]
    if not chosen:
        names = some(s.name for s in sequences)
        raise ValueError(f"got only={[*only]} and without={[*without]}, expected some clip left of {names}")
    return f"{root}: {what}, {len(chosen)} of {len(sequences)} clips taken", chosen


def recognise_clips(root: Path) -> Found:
    """Try the layouts users have, from what is nearest to the frames."""
    if root.is_file():
        return "one video", [FilmSequence(root.stem, root)] if root.suffix.lower() in FILMS else []
    inside = entries(root)
    folders = [path for path in inside if path.is_dir()]
    named = {path.name.casefold(): path for path in folders}
    if sharp := next((named[name] for name in TRUTHS if name in named), None):
        what, sequences = recognise_clips(sharp)
        return f"the folder {sharp.name} of pairs: {what}", sequences
    pictures = [path for path in inside if path.suffix.lower() in PICTURES]
    if pictures and not folders:
        return "one clip of pictures", [PictureSequence(root.resolve().name, pictures)]
    films = [FilmSequence(path.stem, path) for path in inside if path.suffix.lower() in FILMS]
    below = [sequence for folder in folders for sequence in sequences_of(folder)]
    kinds = ["video files"] * bool(films) + ["folders"] * bool(below)
    return " and ".join(kinds), films + below


def sequences_of(folder: Path) -> list:
    """The clips of one sub-folder: its pictures, or those of its own `truth/` folder, or its video files."""
    what, sequences = recognise_clips(folder)
    if len(sequences) == 1 and isinstance(sequences[0], PictureSequence) and "folders" not in what:
        return [PictureSequence(folder.name, sequences[0].files)]
    for sequence in sequences:
        sequence.name = f"{folder.name}/{sequence.name}"
    return sequences


def fits_some(name: str, patterns: Iterable[str]) -> bool:
    """Whether some shell pattern fits a name."""
    return any(fnmatchcase(name, str(pattern)) for pattern in patterns)


def some(names: Iterable[str]) -> str:
    """A few names for a message."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


class RenderedScenes:
    """Endless clips of moving layers: clip after clip from the generator alone, whatever its number.

    Args:
        length: clips that count as one pass.
        size: height and width of a frame.
        pictures: a folder of photographs to move; without one every picture is procedural.
    """

    def __init__(self, *, length: int, size: int, pictures: str | None = None):
        self.length, self.size, self.pictures = length, size, pictures
        self._loaded: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return self.length

    def name(self, number: int) -> str:
        """What to call a clip in a message."""
        return f"scene {number}"

    def long_enough(self, frames: int) -> range:
        """All of them; a wrong folder of photographs shows here. Raises ValueError."""
        self._photographs()
        return range(self.length)

    def clip(self, number: int, rng: np.random.Generator, frames: int, *, step: int = 1) -> np.ndarray:
        """A scene of its own."""
        span = (frames - 1) * step + 1
        return moving_layers(rng, self._sources(rng), frames=span, size=(self.size, self.size))[::step]

    def _sources(self, rng: np.random.Generator) -> list[np.ndarray]:
        """A few pictures for one clip: photographs mostly, where there are any."""
        photographs, drawn = self._photographs(), [procedural_picture(rng, (384, 384))]
        if photographs:
            chosen = rng.integers(len(photographs), size=3)
            drawn = [photographs[k] for k in chosen] + drawn * (rng.random() < 0.3)
        return drawn

    def _photographs(self) -> list[np.ndarray]:
        if self._loaded is None:
            self._loaded = [] if self.pictures is None else read_pictures(Path(self.pictures))
        return self._loaded


def read_pictures(folder: Path) -> list[np.ndarray]:
    """All pictures below a folder; ValueError where there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        kinds = ", ".join(sorted(PICTURES))
        where = f"got {folder} for photographs, {'without any picture' if folder.is_dir() else 'which is no folder'}"
        raise ValueError(f"{where}; expected a folder of pictures ({kinds})")
    return [read_picture(path) for path in files]
