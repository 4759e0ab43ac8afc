"""The description of a source, its errors, and the names and order of files."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from ldm.memory import free_host_memory
from ldm.printable import printable

IMAGE_SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .tif .tiff .webp .avif .ppm .pgm .pbm .pnm".split()
)
VIDEO_SUFFIXES = frozenset(
    ".mp4 .mkv .mov .webm .avi .m4v .mpg .mpeg .ts .mts .m2ts .wmv .flv .y4m .gif .h264 .264 .h265 .265 .3gp .3g2 .asf "
    ".avc .av1 .divx .dv .f4v .hevc .ivf .m1v .m2t .m2v .mjpeg .mjpg .mk3d .mod .mp4v .mpe .mpv .mxf .nut .obu .ogg "
    ".ogm .ogv .qt .rm .rmvb .tod .tp .trp .vob .wtv".split()
)
DAMAGED = ("stop", "repeat")  # for frames that cannot be decoded: raise an error, or repeat the previous frame
MOST_PIXELS = 2**28  # of a frame
BYTES_PER_PIXEL = 32  # while a frame is read: samples of the file, RGBA of 16 bits, and a copy in float32
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db", "system volume information", "lost+found")
DEFAULT_RATE = Fraction(25)  # frames per second of images, which carry none


class VideoError(ValueError):
    """A file or folder that cannot be read or written as a video; the message is one line.

    Line ends and control characters, which names of files may hold, are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Color(NamedTuple):
    """The colour description of sample values, in the numbers of ITU-T H.273 and FFmpeg; 0 and 2 mean unknown.

    `range` is 1 (limited: black at 16 of 255) or 2 (full); `matrix` 0 is RGB.
    """

    range: int = 0
    matrix: int = 2
    primaries: int = 2
    transfer: int = 2


class Shift(NamedTuple):
    """A shift of a stream's clock from one of its packets on: `ticks` of its time base are added."""

    stream: int
    packet: int
    ticks: int


class Light(NamedTuple):
    """HDR10's static metadata; empty if there is none.

    `display`: the mastering display as x265 writes it: x and y of green, blue, red and white in units of 1/50000, then
    the greatest and least luminance in units of 1/10000 cd/m2. `content`: the greatest light level of a pixel, and of
    a frame's mean, in cd/m2.
    """

    display: tuple[int, ...] = ()
    content: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """The description of a readable clip.

    Args:
        kind: "video", "animation" (an image file of several frames), "folder" or "image".
        path: the file or folder.
        frames: number of frames; None if unknown.
        width, height: size in pixels as shown, after rotation.
        rate: frames per second, the mean of a variable rate; `DEFAULT_RATE` for images.
        names: file names of a folder's images in order; empty for a video.
        depth: bits per sample: 8, 10, 12 or 16.
        alpha: whether pixels have transparency.
        color, light: colour description and HDR metadata.
        sample_aspect: width of a pixel over its height, as shown.
        times: presentation times of all frames, strictly increasing, in units of `time_base` seconds, counted from
            `origin`; None if unknown.
        end: time at which the last frame ends, like `times`.
        origin: time in seconds on the file's clock at which it starts; 0 except for broadcasts.
        audio, subtitles, others: codec of each other stream.
        notes: one line for each property that reading the clip loses.
        seekable: whether decoding can start at a key frame.
        track: index of the video stream.
        clock: shifts of the streams' clocks.
        damaged: treatment of frames that cannot be decoded, one of `DAMAGED`.
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
    track: int = 0
    clock: tuple[Shift, ...] = ()
    damaged: str = "stop"

    def seconds(self, number) -> Fraction:
        """Return the time at which frame `number` is shown; for the number of frames, the end of the last one."""
        if self.times is None:
            return number / self.rate
        return (self.times[number] if number < len(self.times) else self.end) * self.time_base


def snap_rate(rate) -> Fraction:
    """Return a frame rate as a Fraction, rounded to n or n*1000/1001 (23.976, 29.97 ...) if it is within 0.01 % of it.

    Raises:
        VideoError: a rate that is not positive.
    """
    rate = Fraction(rate).limit_denominator(1_000_000)
    if rate <= 0:
        raise VideoError(f"got a frame rate of {float(rate):g}, expected a positive number")
    near = (Fraction(round(rate)), Fraction(round(rate * 1001 / 1000) * 1000, 1001))
    return next((exact for exact in near if exact and abs(rate - exact) <= exact / 10_000), rate)


def check_pixels(path, width, height, *, held=0):
    """Raise VideoError for a frame that is too large, from the size in its header, before it is decoded.

    A frame may have at most `MOST_PIXELS`, and `BYTES_PER_PIXEL` for each pixel plus the `held` bytes of its file must
    fit into the free memory, where the system reports it.
    """
    if width * height > MOST_PIXELS:
        raise VideoError(f"{path}: got {width}x{height}, expected at most {MOST_PIXELS} pixels; make it smaller first")
    needed, free = width * height * BYTES_PER_PIXEL + held, free_host_memory()
    if free is not None and needed > free:
        sizes = f"{width}x{height} takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        raise VideoError(f"{path}: {sizes}; make it smaller first")


def files_in(folder, suffixes):
    """Return the names of the visible files of a folder with one of the suffixes, in natural order (2 before 10)."""
    names = (p.name for p in folder.iterdir() if p.suffix.lower() in suffixes and is_visible(p) and p.is_file())
    return tuple(sorted(names, key=natural_order))


def is_visible(path):
    """Whether an entry is not hidden and not a file that systems or network disks create in folders."""
    return not path.name.startswith((".", "__MACOSX", "@", "#", "$")) and path.name.casefold() not in SYSTEM_FILES


def natural_order(name):
    """Return a sorting key in which digits count as numbers."""
    parts = re.split(r"([0-9]+)", name.casefold())  # words and numbers by turns
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
