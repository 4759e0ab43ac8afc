"""Reading: look at a path, list what it holds, stream its frames."""

import logging
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch

from ldm.video.images import common_size, has_alpha, mixed_sizes, read_image
from ldm.video.source import (
    DEFAULT_RATE,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Source,
    VideoError,
    files_in,
    is_visible,
    natural_order,
    snap_rate,
)

log = logging.getLogger(__name__)

# FFmpeg's swscale flags: bicubic | full chroma interpolation | full chroma input | accurate rounding
EXACT_SCALING = 0x4 | 0x2000 | 0x4000 | 0x40000
BT709, BT601 = 1, 6  # AVColorSpace; also the numbers of their primaries and transfer curves
# AVColorSpace -> swscale's number of the same matrix: BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020
SCALER_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}


def probe(path) -> Source:
    """Look at a video file, an image or a folder of images; raises VideoError for anything else."""
    path = Path(path)
    if path.is_dir():
        names = files_in(path, IMAGE_SUFFIXES)
        if not names:
            raise VideoError(f"{path}: no images in this folder; expected {' '.join(sorted(IMAGE_SUFFIXES))}")
        width, height = common_size(path, names)
        return Source("folder", path, len(names), width, height, DEFAULT_RATE, names)
    if not path.is_file():
        raise VideoError(f"{path}: no such file or folder")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = read_image(path).shape[:2]
        return Source("image", path, 1, width, height, DEFAULT_RATE, (path.name,))
    return _probe_video(path)


def sequences(path) -> list[Source]:
    """List what a path holds, in natural order: itself, or each video and folder of images inside a folder."""
    return [probe(child) for child in clips_in(path)]


def clips_in(path) -> list[Path]:
    """The paths of `sequences`, not yet looked at; raises VideoError for a folder without any."""
    path = Path(path)
    if not path.is_dir() or files_in(path, IMAGE_SUFFIXES):
        return [path]
    found = [path / name for name in files_in(path, VIDEO_SUFFIXES)]
    folders = (child for child in path.iterdir() if child.is_dir() and is_visible(child))
    found += [child for child in folders if files_in(child, IMAGE_SUFFIXES)]
    if not found:
        raise VideoError(f"{path}: no images, videos or folders of images in this folder")
    return sorted(found, key=lambda child: natural_order(child.name))


def read(source, *, start=0, stop=None) -> Iterator[np.ndarray]:
    """Stream frames `start` to `stop` (exclusive; None: all) as (h, w, 3) uint8 RGB in presentation order.

    `source` is a Source or a path. A video read to its end is checked for completeness.

    Raises:
        VideoError: as `probe`; a damaged frame; a file that ends early; images of different sizes.
    """
    if start < 0 or (stop is not None and stop < start):
        raise VideoError(f"got frames {start} to {stop}, expected 0 <= start <= stop")
    source = source if isinstance(source, Source) else probe(source)
    if source.kind == "video":
        return _read_video(source.path, start, stop)
    return _read_images(source, start, stop)


def _read_video(path, start, stop):
    reformatter, size = av.video.reformatter.VideoReformatter(), None
    for number, frame in enumerate(islice(_decode(path), stop)):
        if number == 0 and any(component.is_alpha for component in frame.format.components):
            log.warning("%s: transparency is dropped", path)
        size = size or (frame.width, frame.height)
        if size != (frame.width, frame.height):
            now, before = f"{frame.width}x{frame.height}", "{}x{}".format(*size)
            raise VideoError(f"{path}: frame {number} is {now}, those before {before}; expected one size")
        if number >= start:
            yield _to_rgb(frame, reformatter)


def _read_images(source, start, stop):
    folder = source.path if source.kind == "folder" else source.path.parent
    for number, name in enumerate(source.names[start:stop]):
        if number == 0 and has_alpha(folder / name):
            log.warning("%s: transparency is dropped", source.path)
        image = read_image(folder / name)
        size = image.shape[1::-1]
        if size != (source.width, source.height):
            raise VideoError(mixed_sizes(folder, source.names[0], (source.width, source.height), name, size))
        yield image


def read_clip(source, *, start=0, stop=None) -> torch.Tensor:
    """Read frames into memory, (T, 3, H, W) float32 in [0, 1]; raises VideoError as `read`, or if none is there."""
    frames = list(read(source, start=start, stop=stop))
    if not frames:
        raise VideoError(f"{getattr(source, 'path', source)}: no frames from {start} to {stop}")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float().div(255).contiguous()


# --------------------------------------------------------------------------------------------------------- videos


def _open(path):
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video, or cut short ({_reason(error)})") from None
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: holds no video stream")
    return container


def _reason(error):
    return getattr(error, "strerror", None) or "unknown format"


def _probe_video(path):
    packets = 0
    with _open(path) as container:
        stream = container.streams.video[0]
        promised = _promised(container)
        rate = snap_rate(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        hidden = stream.codec_context.name == "vp8"  # holds packets that are never shown
        try:
            for packet in container.demux(stream):
                packets += packet.size > 0 and not packet.is_discard
                promised -= packet.size > 0 and packet.is_discard
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path}: damaged after {packets} frames ({_reason(error)})") from None
    if packets == 0:
        raise VideoError(f"{path}: the video holds no frames")
    if packets < promised:
        raise VideoError(f"{path}: cut short, {packets} of {promised} frames are there")
    first = next(_read_video(path, 0, 1), None)
    if first is None:
        raise VideoError(f"{path}: no frame can be decoded")
    height, width = first.shape[:2]
    return Source("video", path, None if hidden else packets, width, height, rate)


def _promised(container):
    """How many frames the container says it holds; 0 where that is no exact promise (only the MP4 family lists all)."""
    return container.streams.video[0].frames if "mp4" in container.format.name else 0


def _promised_end(stream):
    """Seconds at which a Matroska file says its stream ends (its tag DURATION, "00:00:02.500"), else 0."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) if match else 0.0


def _decode(path):
    """All frames of a video in presentation order, then a check that none is missing."""
    decoded, time = 0, 0.0
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        promised, end = _promised(container), _promised_end(stream)
        try:
            for packet in container.demux(stream):
                promised -= packet.size > 0 and packet.is_discard
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise VideoError(f"{path}: frame {decoded}{_of(promised)} is damaged")
                    decoded, time = decoded + 1, frame.time or 0.0
                    yield frame
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path}: damaged, {decoded}{_of(promised)} frames decoded ({_reason(error)})") from None
        if decoded < promised:
            raise VideoError(f"{path}: damaged, {decoded}{_of(promised)} frames decoded")
        rate = stream.average_rate or DEFAULT_RATE
        if time + 3 / rate < end:
            raise VideoError(f"{path}: cut short, {decoded} of about {round(end * rate)} frames decoded")
    if decoded == 0:
        raise VideoError(f"{path}: the video holds no frames")


def _of(promised):
    return f" of {promised}" if promised > 0 else ""


def _to_rgb(frame, reformatter):
    """A decoded frame as (h, w, 3) uint8 RGB, upright.

    Frames that do not name their matrix are taken as players do: BT.709 if high definition, otherwise BT.601.
    """
    matrix = SCALER_MATRIX.get(int(frame.colorspace)) or SCALER_MATRIX[matrix_of_size(frame.height, frame.width)]
    rgb = reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=EXACT_SCALING)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise, as np.rot90 counts
    return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))


def matrix_of_size(height, width):
    """The colour matrix that players assume for a picture of this size: BT709 or BT601."""
    return BT709 if width >= 1280 or height > 576 else BT601
