"""What can be read, and under which names: the description of a source, its errors, and the order of files."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))
VIDEO_SUFFIXES = frozenset(
    ".mp4 .mkv .mov .webm .avi .m4v .mpg .mpeg .ts .mts .m2ts .wmv .flv .y4m .gif .h264 .264 .h265 .265".split()
)
DEFAULT_RATE = Fraction(25)  # frames per second of images, which carry none


class VideoError(ValueError):
    """A file or folder that cannot be read or written as moving pictures; the message is one line for a person."""


class Color(NamedTuple):
    """How sample values mean colours, as FFmpeg numbers it (ITU-T H.273); 0 and 2 say that nobody knows.

    `range` is 1 (limited: black at 16 of 255) or 2 (full); `matrix` 0 is RGB.
    """

    range: int = 0
    matrix: int = 2
    primaries: int = 2
    transfer: int = 2


class Light(NamedTuple):
    """HDR10's static metadata; empty where there is none.

    `display`: the mastering display as x265 writes it: x and y of green, blue, red and white in units of 1/50000, then
    the greatest and least luminance in units of 1/10000 cd/m2. `content`: the greatest light level of a pixel, and of
    a frame's mean, in cd/m2.
    """

    display: tuple[int, ...] = ()
    content: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """What can be read at `path`: kind "video", "folder" or "image"; sizes as shown (rotation applied).

    `frames` is the number of frames the source holds, `names` the file names in order (empty for a video). `rate` is in
    frames per second, of a variable rate the mean; images get `DEFAULT_RATE`.

    `depth` is the number of bits per sample (8, 10, 12 or 16), `alpha` whether pixels carry transparency, and
    `sample_aspect` the width of a pixel over its height as shown. `times` are the presentation times of all frames in
    units of `time_base` seconds, strictly rising, and `end` is when the last one ends; None where the file tells none.
    They count from `origin`, in seconds of the file's own clock: 0, but for broadcasts, whose clocks start anywhere.

    `audio` and `subtitles` name the codec of each such stream, `others` whatever else the file holds, and `notes` says
    in a line each what reading it loses already.
    """

    kind: str
    path: Path
    frames: int | None
    width: int
    height: int
    rate: Fraction
    names: tuple[str, ...] = ()
    depth: int = 8
    alpha: bool = False
    color: Color = Color()
    light: Light = Light()
    sample_aspect: Fraction = Fraction(1)
    times: tuple[int, ...] | None = None
    end: int | None = None
    time_base: Fraction | None = None
    origin: Fraction = Fraction(0)
    audio: tuple[str, ...] = ()
    subtitles: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seekable: bool = False

    def seconds(self, number) -> Fraction:
        """When frame `number` is shown; for the number of frames, when the last one ends."""
        if self.times is None:
            return number / self.rate
        return (self.times[number] if number < len(self.times) else self.end) * self.time_base


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
    """Whether a person put this entry there: not a dot file, nor what macOS and Windows leave in folders."""
    return not path.name.startswith((".", "__MACOSX")) and path.name.casefold() not in ("thumbs.db", "desktop.ini")


def natural_order(name):
    """A sorting key by which digits count as numbers."""
    parts = re.split(r"([0-9]+)", name.casefold())  # words and numbers by turns
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
