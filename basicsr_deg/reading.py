"""Sequences of frames in folders of images, videos and animations. A frame is (h, w, 3) uint8 RGB.

Files are read by `ldm.video`, as in upscaling; unreadable files raise ValueError.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ldm import video
from ldm.video.decoding import main_stream, open_container
from ldm.video.images import frame_count, is_image, read_image
from ldm.video.source import is_visible, natural_order

PICTURES = video.IMAGE_SUFFIXES


def entries(folder: Path) -> list[Path]:
    """Return the entries of a folder in natural order, without hidden files and system files."""
    return sorted(filter(is_visible, folder.iterdir()), key=lambda path: natural_order(path.name))


def read_picture(path: Path) -> np.ndarray:
    """Read an image file as (h, w, 3) uint8 RGB. Raises ValueError for an unreadable or truncated file."""
    return read_image(Path(path))


class PictureSequence:
    """A clip whose frames are image files, in the given order."""

    def __init__(self, name: str, files: Sequence[Path]):
        self.name, self.files = name, list(files)

    def __len__(self) -> int:
        return len(self.files)

    def exact_length(self) -> int:
        """Return the number of readable frames."""
        return len(self.files)

    def frames(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Return the frames with these numbers."""
        return [read_picture(self.files[number]) for number in numbers]


class FilmSequence:
    """A clip that is a video or an animation; only the requested frames are decoded, with their rotation applied."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, Path(path)
        self._source: video.Source | None = None

    def __len__(self) -> int:
        """Return the number of frames in the container's header, which may be too large; otherwise count them."""
        if self._source is None and not is_image(self.path):
            with open_container(self.path) as container:
                stated = main_stream(container).frames
            if stated:
                return stated
        return self.exact_length()

    def exact_length(self) -> int:
        """Return the number of readable frames."""
        return self.probed().frames

    def probed(self) -> video.Source:
        """Return the properties of the file; it is probed once."""
        if self._source is None:
            source = video.probe(self.path, damaged="repeat")  # a truncated file counts up to its last frame
            self._source = replace(source, damaged="stop")
        return self._source

    def frames(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Return the frames with these numbers. Raises ValueError for a file with fewer frames."""
        source, first, stop = self.probed(), min(numbers), max(numbers) + 1
        wanted, found = set(numbers), {}
        # one thread, since data loaders use a process per core
        for number, frame in enumerate(video.read(source, first, stop, as_rgb8=True, threads=1), first):
            if number in wanted:
                found[number] = frame
        if missing := sorted(wanted - set(found)):
            raise ValueError(f"{self.path}: frame {missing[0]} cannot be read, expected {len(self)}; remove this video")
        return [found[number] for number in numbers]


def is_film(path: Path) -> bool:
    """Whether a file holds several frames: a video, or an animated image."""
    if path.suffix.lower() in video.VIDEO_SUFFIXES:
        return True
    return is_image(path) and frame_count(path) > 1
