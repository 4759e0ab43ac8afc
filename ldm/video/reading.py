"""Reading: look at a path, list what it holds, stream its frames."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from ldm.video.images import common_form, mixed_sizes, read_image
from ldm.video.pixels import frame_pixels, frame_tensor, to_bytes
from ldm.video.probing import decode, probe_video
from ldm.video.source import (
    DEFAULT_RATE,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    Source,
    VideoError,
    files_in,
    is_visible,
    natural_order,
)


def probe(path) -> Source:
    """Look at a video file, an image or a folder of images; raises VideoError for anything else."""
    path = Path(path)
    if path.is_dir():
        names = files_in(path, IMAGE_SUFFIXES)
        if not names:
            raise VideoError(f"{path}: no images in this folder; expected {' '.join(sorted(IMAGE_SUFFIXES))}")
        return _source_of_images("folder", path, names)
    if not path.is_file():
        raise VideoError(f"{path}: no such file or folder")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        read_image(path)  # whole, which its first bytes do not tell
        return _source_of_images("image", path, (path.name,))
    return probe_video(path)


def _source_of_images(kind, path, names):
    form, notes = common_form(path if kind == "folder" else path.parent, names)
    return Source(
        kind, path, len(names), form.width, form.height, DEFAULT_RATE, names,
        depth=form.depth, alpha=form.alpha, notes=notes,
    )  # fmt: skip


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


def read(source, start=0, stop=None, *, as_rgb8=False) -> Iterator[np.ndarray]:
    """Stream frames `start` to `stop` (exclusive; None: all) in presentation order, upright.

    `source` is a Source or a path. Frames are (h, w, 3) RGB, or (h, w, 4) with straight alpha where the source has it;
    uint8, or uint16 of full scale (65535 is one) where its depth is more than 8. With `as_rgb8` they are always
    (h, w, 3) uint8. A video read to its end is checked for completeness.

    Raises:
        VideoError: as `probe`; a damaged frame; a file that ends early; images of different sizes.
    """
    if start < 0 or (stop is not None and stop < start):
        raise VideoError(f"got frames {start} to {stop}, expected 0 <= start <= stop")
    source = source if isinstance(source, Source) else probe(source)
    frames = _read_video if source.kind == "video" else _read_images
    return _as_rgb8(frames(source, start, stop)) if as_rgb8 else frames(source, start, stop)


def _as_rgb8(frames):
    for frame in frames:
        yield np.ascontiguousarray((frame if frame.dtype == np.uint8 else to_bytes(frame))[..., :3])


def _read_video(source, start, stop):
    reformatter, size = VideoReformatter(), None
    for number, frame in enumerate(_frames_between(source, start, stop), start):
        size = size or (frame.width, frame.height)
        if size != (frame.width, frame.height):
            now, before = f"{frame.width}x{frame.height}", "{}x{}".format(*size)
            raise VideoError(f"{source.path}: frame {number} is {now}, those before {before}; expected one size")
        yield frame_pixels(frame, source.alpha, source.color, reformatter)


def _frames_between(source, start, stop):
    """Decoded frames `start` to `stop`: from the key frame before them where the file tells which that is."""
    if start >= source.frames or start == stop:
        return
    number = start
    for frame in (
        _from_key_frame(source, start) if start and source.seekable else islice(decode(source.path), start, None)
    ):
        if number == source.frames:
            raise VideoError(f"{source.path}: holds more frames than the {number} it promised")
        yield frame
        number += 1
        if number == stop:
            return
    if number < source.frames:
        raise VideoError(f"{source.path}: damaged, {number} of {source.frames} frames decoded")


def _from_key_frame(source, start):
    """Frames from `start` on, told by their times; decoded from the beginning if seeking comes out behind it."""
    wanted, found = source.times[start], False
    for frame in decode(source.path, seek=wanted):
        found = found or frame.pts == wanted
        if not found and frame.pts > wanted:
            break
        if found:
            yield frame
    if not found:
        yield from islice(decode(source.path), start, None)


def _read_images(source, start, stop):
    folder = source.path if source.kind == "folder" else source.path.parent
    for name in source.names[start:stop]:
        image = read_image(folder / name, source.depth, source.alpha)
        size = image.shape[1::-1]
        if size != (source.width, source.height):
            raise VideoError(mixed_sizes(folder, source.names[0], (source.width, source.height), name, size))
        yield image


def read_clip(source, *, start=0, stop=None) -> torch.Tensor:
    """Read frames into memory, (T, 3, H, W) float32 in [0, 1], without alpha.

    Raises:
        VideoError: as `read`; no frame there.
    """
    frames = [frame_tensor(frame[..., :3]) for frame in read(source, start, stop)]
    if not frames:
        raise VideoError(f"{getattr(source, 'path', source)}: no frames from {start} to {stop}")
    return torch.stack(frames)
