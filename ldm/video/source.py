"""What can be read, and under which names: the description of a source, its errors, and the order of files."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
VIDEO_SUFFIXES = frozenset(
    ".mp4 .mkv .mov .webm .avi .m4v .mpg .mpeg .ts .mts .m2ts .wmv .flv .y4m .gif .h264 .264 .h265 .265".split()
)
DEFAULT_RATE = Fraction(25)  # frames per second of images, which carry none


class VideoError(ValueError):
    """A file or folder that cannot be read or written as moving pictures; the message is one line for a person."""


@dataclass(frozen=True)
class Source:
    """What can be read at `path`: kind "video", "folder" or "image"; sizes as shown (rotation applied).

    `frames` is the number of frames the source holds (None where only decoding can tell), `names` the file names in
    order (empty for a video). `rate` is in frames per second; images get `DEFAULT_RATE`.
    """

    kind: str
    path: Path
    frames: int | None
    width: int
    height: int
    rate: Fraction
    names: tuple[str, ...] = ()


def snap_rate(rate) -> Fraction:
    """A frame rate as a Fraction; values within 0.01 % of n or n*1000/1001 (23.976, 29.97 ...) become exactly that.

    Raises:
        VideoError: a rate that is not positive.
    """
    rate = Fraction(rate).limit_denominator(1_000_000)
    if rate <= 0:
        raise VideoError(f"got a frame rate of {float(rate):g}, expected a positive number")
    near = (Fraction(round(rate)), Fraction(round(rate * 1001 / 1000) * 1000, 1001))
    return next((exact for exact in near if exact and abs(rate - exact) <= exact / 10_000), rate)


def files_in(folder, suffixes):
    """Names of the visible files of a folder that have one of the suffixes, in natural order (2 before 10)."""
    names = (p.name for p in folder.iterdir() if p.suffix.lower() in suffixes and is_visible(p) and p.is_file())
    return tuple(sorted(names, key=natural_order))


def is_visible(path):
    """Whether a person would see this entry: not a dot file, nor what macOS puts into archives."""
    return not path.name.startswith((".", "__MACOSX"))


def natural_order(name):
    """A sorting key by which digits count as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name.casefold())], name
