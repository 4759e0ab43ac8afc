"""What frames are read from: folders of pictures, videos, animations. A frame is (h, w, 3) uint8 RGB.

Everything is read by `ldm.video`, as in upscaling; what cannot be read is a ValueError of one line.
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
    """What lies in a folder, in natural order, without hidden files and what systems leave."""
    return sorted(filter(is_visible, folder.iterdir()), key=lambda path: natural_order(path.name))


def read_picture(path: Path) -> np.ndarray:
    """A picture file as (h, w, 3) uint8 RGB; ValueError names one that is unreadable or cut short."""
    return read_image(Path(path))


class PictureSequence:
    """A clip whose frames are picture files, in the order given."""

    def __init__(self, name: str, files: Sequence[Path]):
        self.name, self.files = name, list(files)

    def __len__(self) -> int:
        return len(self.files)

    def exact_length(self) -> int:
        """How many frames can be read."""
        return len(self.files)

    def frames(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The frames of these numbers."""
        return [read_picture(self.files[number]) for number in numbers]


class FilmSequence:
    """A clip that is a video or an animation; only what is needed of it is decoded, upright as players show it."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, Path(path)
        self._source: video.Source | None = None

    def __len__(self) -> int:
        """What the container says, which may be a few too many; counted where it says nothing."""
        if self._source is None and not is_image(self.path):
            with open_container(self.path) as container:
                stated = main_stream(container).frames
            if stated:
                return stated
        return self.exact_length()

    def exact_length(self) -> int:
        """How many frames can be read."""
        return self.looked_at().frames

    def looked_at(self) -> video.Source:
        """What the file holds; found once."""
        if self._source is None:
            source = video.probe(self.path, damaged="repeat")  # of a file that breaks off, the frames before
            self._source = replace(source, damaged="stop")
        return self._source

    def frames(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The frames of these numbers; ValueError names a file that has fewer, or breaks off."""
        source, first, stop = self.looked_at(), min(numbers), max(numbers) + 1
        wanted, found = set(numbers), {}
        # one thread, for data loaders have a process for each core already
        for number, frame in enumerate(video.read(source, first, stop, as_rgb8=True, threads=1), first):
            if number in wanted:
                found[number] = frame
        if missing := sorted(wanted - set(found)):
            raise ValueError(f"{self.path}: frame {missing[0]} cannot be read, expected {len(self)}; remove this video")
        return [found[number] for number in numbers]


def is_film(path: Path) -> bool:
    """Whether a file gives several frames: a video, or an image file with more than one."""
    if path.suffix.lower() in video.VIDEO_SUFFIXES:
        return True
    return is_image(path) and frame_count(path) > 1
