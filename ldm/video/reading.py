"""Probe a path, list the clips in it, and stream their frames."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from ldm.video.animation import animation_frames, probe_animation
from ldm.video.decoding import LostFrame, decode
from ldm.video.folders import gaps, list_folder, log_skipped, some
from ldm.video.images import common_form, frame_count, is_image, mixed_sizes, read_image
from ldm.video.pixels import frame_pixels, frame_tensor, to_bytes
from ldm.video.probing import probe_video
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

LOG = logging.getLogger(__name__)


def probe(path, *, damaged="stop") -> Source:
    """Return the description of a video file, an image or a folder of images. Raises VideoError for anything else.

    `damaged`: treatment of frames that cannot be decoded, one of `DAMAGED`.
    """
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
    if is_image(path):
        if frame_count(path) > 1:
            return probe_animation(path)
        read_image(path)  # raises VideoError for a truncated file
        return _source_of_images("image", path, (path.name,))
    return probe_video(path, damaged)


def _source_of_images(kind, path, names):
    form, notes = common_form(path if kind == "folder" else path.parent, names)
    if kind == "folder" and (missing := gaps(names)):
        notes += (f"numbers are missing between the images' names: {some(missing)}",)
    return Source(
        kind, path, len(names), form.width, form.height, DEFAULT_RATE, names,
        depth=form.depth, alpha=form.alpha, notes=notes,
    )  # fmt: skip


def sequences(path) -> list[Source]:
    """Probe the clips of a path in natural order: itself, or each video and folder of images in a folder."""
    return [probe(child) for child in clips_in(path)]


def clips_in(path) -> list[Path]:
    """Return the paths of `sequences` without probing them. Raises VideoError for a folder without clips."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    content = list_folder(path)
    if content.images:
        log_skipped(path, content)
        return [path]
    found, skipped, seen = [path / name for name in content.videos], list(content.skipped), {path.resolve()}
    folders = sorted((path / name for name in content.folders), key=lambda child: child.is_symlink())
    for child in folders:
        if child.resolve() in seen or not files_in(child, IMAGE_SUFFIXES):
            skipped.append(child.name)
        else:
            found.append(child)
        seen.add(child.resolve())
    if not found:
        raise VideoError(f"{path}: no images, videos or folders of images in this folder{_deeper(path, content)}")
    log_skipped(path, content._replace(skipped=tuple(skipped)))
    return sorted(found, key=lambda child: natural_order(child.name))


def _deeper(path, content):
    """Return a hint for a folder whose clips are in deeper folders."""
    for name in content.folders:
        below = [child for child in (path / name).iterdir() if is_visible(child)]
        if any(child.suffix.lower() in VIDEO_SUFFIXES or child.is_dir() for child in below):
            return f"; perhaps {path / name} is meant"
    return ""


def read(source, start=0, stop=None, *, as_rgb8=False, threads=None) -> Iterator[np.ndarray]:
    """Stream frames `start` to `stop` (exclusive; None: all) in presentation order, upright.

    `source` is a Source or a path. Frames are (h, w, 3) RGB, or (h, w, 4) with straight alpha where the source has it;
    uint8, or uint16 of full scale (65535 is one) where its depth is more than 8. With `as_rgb8` they are always
    (h, w, 3) uint8. A video read to its end is checked for completeness. `threads` is the number of decoding threads.

    Raises:
        VideoError: as `probe`; a damaged frame; a file that ends early; images of different sizes.
    """
    if start < 0 or (stop is not None and stop < start):
        raise VideoError(f"got frames {start} to {stop}, expected 0 <= start <= stop")
    source = source if isinstance(source, Source) else probe(source)
    if source.kind == "video":
        frames = _read_video(source, start, stop, threads)
    elif source.kind == "animation":
        frames = animation_frames(source, start, stop)
    else:
        frames = _read_images(source, start, stop)
    return _as_rgb8(frames) if as_rgb8 else frames


def _as_rgb8(frames):
    for frame in frames:
        yield np.ascontiguousarray((frame if frame.dtype == np.uint8 else to_bytes(frame))[..., :3])


def _read_video(source, start, stop, threads):
    reformatter, size = VideoReformatter(), None
    for number, frame in enumerate(_frames_between(source, start, stop, threads), start):
        size = size or (frame.width, frame.height)
        if size != (frame.width, frame.height):
            now, before = f"{frame.width}x{frame.height}", "{}x{}".format(*size)
            raise VideoError(f"{source.path}: frame {number} is {now}, those before {before}; expected one size")
        yield frame_pixels(frame, source.alpha, source.color, reformatter)


def _frames_between(source, start, stop, threads):
    """Yield the decoded frames `start` to `stop`, seeking to the key frame before them if the source is seekable."""
    if start >= source.frames or start == stop:
        return
    if source.damaged == "repeat":
        yield from islice(_repaired(source, start), (source.frames if stop is None else stop) - start)
        return
    number, options = start, {"threads": threads, "stated": source.frames}
    whole = islice(decode(source.path, source.track, source.clock, **options), start, None)
    for frame in _from_key_frame(source, start, options) if start and source.seekable else whole:
        if number == source.frames:
            raise VideoError(f"{source.path}: holds more frames than the {number} it promised")
        yield frame
        number += 1
        if number == stop:
            return
    if number < source.frames:
        ways = f"--damaged repeat shows the last of them for the rest, --max_frames {number} ends there"
        raise VideoError(f"{source.path}: damaged, {number} of {source.frames} frames decoded; {ways}")


def _from_key_frame(source, start, options):
    """Yield the frames from `start` on; decodes from the beginning if seeking goes past that frame."""
    wanted, found = source.times[start], False
    for frame in decode(source.path, source.track, seek=wanted, **options):
        found = found or frame.pts == wanted
        if not found and frame.pts > wanted:
            break
        if found:
            yield frame
    if not found:
        yield from islice(decode(source.path, source.track, **options), start, None)


def _repaired(source, start):
    """Yield the frames from `start` to the end; a frame that cannot be decoded is replaced by the one before it."""
    if not source.seekable:
        yield from islice(_repeated(source), start, None)
        return
    seek = source.times[start] if start else None
    frames = (f for f in decode(source.path, source.track, seek=seek, damaged="repeat") if not isinstance(f, LostFrame))
    shown = next(frames, None)
    if shown is None or (start and shown.pts > source.times[start]):
        frames = (f for f in decode(source.path, source.track, damaged="repeat") if not isinstance(f, LostFrame))
        shown = next(frames)
    coming, repeats = next(frames, None), 0
    for time in source.times[start:]:
        while coming is not None and coming.pts <= time:
            shown, coming = coming, next(frames, None)
        repeats += shown.pts != time
        yield shown
    if repeats:
        LOG.warning("%s: %d damaged frames are replaced by the frame before each", source.path, repeats)


def _repeated(source):
    """Yield all frames of a video that is not seekable; lost ones at its start become the first decoded frame."""
    shown, waiting = None, 0
    for frame in decode(source.path, source.track, source.clock, damaged="repeat"):
        if isinstance(frame, LostFrame) and shown is None:
            waiting += 1
            continue
        shown = shown if isinstance(frame, LostFrame) else frame
        for _ in range(waiting + 1):
            yield shown
        waiting = 0


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
