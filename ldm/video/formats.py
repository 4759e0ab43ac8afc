"""Choose the format of an output: container, codec, pixel format, colours and times."""

from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from pathlib import Path

import numpy as np

from ldm.video.pixels import FULL, LIMITED, LUMA, matrix_of_size
from ldm.video.source import DEFAULT_RATE, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Color, Light, Source, VideoError, snap_rate

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # FFmpeg's names of what is written
SUFFIXES = {container: suffix for suffix, container in CONTAINERS.items()}
# the bits per sample that each codec is written with, and the containers it goes into
DEPTHS = {"h264": (8,), "hevc": (8, 10, 12), "prores": (10,), "ffv1": (8, 10, 12, 16), "png": (8, 16)}
HOMES = {
    "h264": ("mp4", "matroska", "mov"),
    "hevc": ("mp4", "matroska", "mov"),
    "prores": ("mov",),
    "ffv1": ("matroska",),
}
WITH_ALPHA = ("prores", "ffv1", "png")
MOST_TICKS = 2**31 - 1  # a second of MP4 holds no more


@dataclass(frozen=True)
class Format:
    """The format of an output. `container` is FFmpeg's name, or "folder" or "image" for PNG; `size` is (height, width).

    `crf` is None for lossless formats (and for ProRes, which has no such scale). `time_base` is the unit of the
    output's times; frames are shown at `rate`, or at the times of the source.
    """

    container: str
    codec: str
    pixel_format: str
    size: tuple[int, int]
    depth: int = 8
    alpha: bool = False
    crf: float | None = 18
    color: Color = Color()
    light: Light = Light()
    sample_aspect: Fraction = Fraction(1)
    rate: Fraction = DEFAULT_RATE
    time_base: Fraction = 1 / DEFAULT_RATE

    @property
    def is_video(self) -> bool:
        """Whether frames become one stream rather than one PNG each."""
        return self.codec != "png"

    @property
    def dtype(self) -> type:
        """Type of the samples: uint8, or uint16 of full scale for more than 8 bits."""
        return np.uint8 if self.depth == 8 else np.uint16

    @property
    def channels(self) -> int:
        """Number of channels: 3 for RGB, 4 with transparency."""
        return 4 if self.alpha else 3

    @property
    def lossless(self) -> bool:
        """Whether decoded pixels equal the written ones."""
        return self.crf is None and self.codec != "prores"


def choose_format(source: Source, output, *, size, codec=None, depth=None, crf=18, lossless=False) -> Format:
    """Return the format that keeps the most of `source` in `output`.

    Args:
        output: its suffix selects the container: .mp4, .mkv, .mov, .png; no suffix: a folder of PNGs.
        size: (height, width) of the frames.
        codec: h264, hevc, prores or ffv1. By default H.264; HEVC for more than 8 bits; ProRes in .mov and FFV1 in .mkv
            for transparency; FFV1 in .mkv for lossless frames of more than 8 bits.
        depth: bits per sample; by default those of the source, as far as the codec supports them.
        crf: quality of H.264 and HEVC, 0 (best) to 51.
        lossless: keep RGB exactly.

    Raises:
        VideoError: an unknown suffix, codec or depth; an unsupported combination; an invalid size or crf.
    """
    if min(size) < 1:
        raise VideoError(f"got a size of {size[0]}x{size[1]}, expected (height, width) of at least 1 pixel")
    container = container_of(output, source)
    if container in ("folder", "image"):
        return _png(source, container, tuple(size), codec, depth)
    if not 0 <= crf <= 51:
        raise VideoError(f"got crf {crf}, expected 0 (best) to 51")
    codec = _codec(source, container, codec, depth, lossless)
    depth = _depth(source, codec, depth, lossless, container)
    alpha = source.alpha and codec in WITH_ALPHA
    keeps_rgb = lossless or codec == "ffv1"
    return Format(
        container, codec, _pixel_format(codec, depth, alpha, keeps_rgb, size), tuple(size), depth, alpha,
        crf=None if keeps_rgb or codec == "prores" else crf, color=_color(source, size, keeps_rgb),
        light=source.light if codec == "hevc" else Light(), sample_aspect=source.sample_aspect,
        rate=snap_rate(source.rate), time_base=_time_base(source, container),
    )  # fmt: skip


def container_of(output, source=None) -> str:
    """Return the container for the name of an output: a value of CONTAINERS, "image" or "folder". Raises VideoError.

    If `source` is a folder, a dot in the name of the output need not begin a suffix.
    """
    path, suffix = Path(output), Path(output).suffix.lower()
    known = {*CONTAINERS, *VIDEO_SUFFIXES, *IMAGE_SUFFIXES}
    dotted = getattr(source, "kind", "") == "folder" and suffix not in known  # a folder such as clip.v1
    if path.is_dir() or not suffix or dotted:
        if path.exists() and not path.is_dir():
            raise VideoError(f"{path}: is no folder, expected one to write images into, or a name with a suffix")
        return "folder"
    if suffix == ".png":
        return "image"
    if suffix not in CONTAINERS:
        names = ", ".join([*CONTAINERS, ".png"])
        raise VideoError(f"{path}: cannot write {suffix}; expected {names} or a folder name without a suffix")
    return CONTAINERS[suffix]


def _png(source, container, size, codec, depth):
    if codec is not None:
        raise VideoError(f"got codec {codec} for images, which are always PNG; leave it out or name a video")
    if depth not in (None, 8, 16):
        raise VideoError(f"got {depth} bits per sample for PNG, expected 8 or 16")
    depth = depth or (8 if source.depth == 8 else 16)
    color = Color(FULL, 0, source.color.primaries, source.color.transfer)
    names = {(8, False): "rgb", (8, True): "rgba", (16, False): "rgb48", (16, True): "rgba64"}
    name = names[depth, source.alpha]
    return Format(container, "png", name, size, depth, source.alpha, None, color, rate=snap_rate(source.rate))


def _codec(source, container, codec, depth, lossless):
    if codec is None:
        deep = (depth or source.depth) > 8
        if source.alpha and container != "mp4" and not (lossless and container == "mov"):
            return "prores" if container == "mov" else "ffv1"
        if lossless and deep and container == "matroska":
            return "ffv1"
        return "hevc" if deep else "h264"
    if codec not in HOMES:
        raise VideoError(f"got codec {codec}, expected one of {', '.join(HOMES)}")
    if container not in HOMES[codec]:
        homes = " or ".join(SUFFIXES[home] for home in HOMES[codec])
        raise VideoError(f"got codec {codec} for {SUFFIXES[container]}, expected it for {homes}")
    if lossless and codec == "prores":
        raise VideoError("got lossless with codec prores, which is never; expected h264, hevc or ffv1")
    return codec


def _depth(source, codec, depth, lossless, container):
    known = DEPTHS[codec]
    if depth is None:
        fitting = [bits for bits in known if bits >= source.depth]
        deepest = 10 if codec == "hevc" and source.depth == 16 and not lossless else known[-1]
        return fitting[0] if fitting else deepest
    if depth not in known:
        can = [name for name in HOMES if depth in DEPTHS[name] and container in HOMES[name]]
        other = f"; choose codec {' or '.join(can)}" if can else ""
        raise VideoError(f"got {depth} bits for {codec}, expected {' or '.join(map(str, known))}{other}")
    return depth


def _pixel_format(codec, depth, alpha, lossless, size):
    deep = "" if depth == 8 else f"{depth}le"
    if codec == "ffv1" and not deep:
        return "bgra" if alpha else "bgr0"
    if codec == "ffv1":
        return f"gbr{'a' if alpha else ''}p{deep}"
    if lossless:
        return "rgb24" if codec == "h264" else f"gbrp{deep}"
    if codec == "prores" and alpha:
        return "yuva444p10le"
    if codec == "prores":
        return "yuv444p10le" if size[1] % 2 else "yuv422p10le"
    return f"yuv{'444' if size[0] % 2 or size[1] % 2 else '420'}p{deep}"


def _color(source, size, rgb):
    """Return the colours of the source; an unknown matrix or range is the one that reading assumed."""
    range_, matrix, primaries, transfer = source.color
    if rgb:
        return Color(FULL, 0, primaries, transfer)
    if source.kind == "video" and matrix != 0:
        matrix = matrix if matrix in LUMA else matrix_of_size(source.height, source.width)
        return Color(range_ or LIMITED, 9 if matrix == 10 else matrix, primaries, transfer)
    matrix = matrix_of_size(*size)
    known = primaries != 2, transfer != 2
    return Color(LIMITED, matrix, primaries if known[0] else matrix, transfer if known[1] else matrix)


def _time_base(source, container):
    """Return the unit of the output's times: that of the source, or finer for rounded times of a constant rate."""
    if source.times is None:
        return 1 / snap_rate(source.rate)
    exact = lcm(source.rate.numerator, source.seconds(0).denominator)
    steady = container != "matroska" and exact <= MOST_TICKS and is_constant_rate(source)
    return Fraction(1, exact) if steady else source.time_base


def is_constant_rate(source) -> bool:
    """Whether the times of a source are those of a constant rate, up to rounding."""
    step = source.time_base * source.rate  # of one tick, in frames
    p, q, first = step.numerator, step.denominator, source.times[0]
    return all(abs((time - first) * p - number * q) < p for number, time in enumerate(source.times))


def ticks(source, format, start, stop) -> list[int]:
    """Return the times of frames `start` to `stop` and of the end of the last, in units of the format's time base.

    The first frame of a span keeps the time of the source's first frame.
    """
    if source.times is None:
        return list(range(stop - start + 1))
    steady = format.container != "matroska" and is_constant_rate(source)
    first, unit = source.seconds(0), format.time_base
    shift = source.seconds(start) - first
    if steady:
        found = [round((first + number / source.rate) / unit) for number in range(stop - start + 1)]
        end = source.seconds(stop) - shift
        if stop == source.frames and end - found[-1] * unit > 1 / source.rate:  # the last frame is shown for longer
            found[-1] = round(end / unit)
        return found
    return [round((source.seconds(number) - shift) / unit) for number in range(start, stop + 1)]
