"""Write frames to a video, a folder of PNGs or one PNG, atomically."""

from pathlib import Path

import av

from ldm.video.formats import CONTAINERS, Format, choose_format, container_of
from ldm.video.replacing import Replacement
from ldm.video.sinks import FolderSink, ImageSink, VideoSink
from ldm.video.source import DEFAULT_RATE, Source, VideoError, snap_rate

__all__ = ["CONTAINERS", "Writer", "open_writer", "refuse_input", "write_part"]
# Parts keep their packets as the final container does, and the exact number and order of their frames
PART_CONTAINERS = {"prores": "mov"}  # the others: mp4


def open_writer(
    path, *, size, rate=DEFAULT_RATE, crf=18, lossless=False, names=None, source=None, overwrite=False
) -> "Writer":
    """Open an output to use in a `with` block: a video (.mp4, .mkv, .mov), one .png, or a folder of PNGs (no suffix).

    Videos are H.264 with 8 bits, without sound; `choose_format`, `write_part` and `join` make all other kinds.

    Args:
        size: (height, width) of every frame.
        rate: frames per second of a video.
        crf: H.264 quality, 0 (best) to 51.
        lossless: store RGB exactly (H.264 RGB with qp 0) instead.
        names: file names of a folder's images, one per frame; the suffix becomes .png. Without them those of `source`,
            and without those 00000000.png and so on.
        source: the input (a Source or a path), which is never overwritten.
        overwrite: replace a folder that already holds PNGs. Single files are always replaced.

    Raises:
        VideoError: an unknown suffix; the input as output; a folder in use; an invalid size, rate or crf.
    """
    path = Path(path)
    refuse_input(path, source)
    if min(size) < 1:
        raise VideoError(f"got a size of {size[0]}x{size[1]}, expected (height, width) of at least 1 pixel")
    container = container_of(path, source)
    if container == "folder":
        sink = FolderSink(names if names is not None else getattr(source, "names", ()))
    elif container == "image":
        sink = ImageSink()
    else:
        plain = Source("folder", path, None, size[1], size[0], snap_rate(rate))
        options = {"codec": "h264", "crf": crf, "lossless": lossless}
        sink = VideoSink(container, choose_format(plain, path, size=size, **options))
    return Writer(path, tuple(size), sink, overwrite=overwrite)


def write_part(path, frames, format: Format, *, names=()) -> int:
    """Encode frames to one part of an output, for `join`, and return their number.

    A part is written atomically: a file of one stream whose times count frames, or a folder of PNGs. Its bytes depend
    on its frames and the format alone.

    Args:
        names: file names of a folder's images, one per frame; the suffix becomes .png. Without them they are numbered.

    Raises:
        VideoError: no frames; frames of another size; what `Writer` raises.
    """
    path = Path(path)
    if format.container == "folder":
        sink = FolderSink(names, format)
    elif format.container == "image":
        sink = ImageSink(format)
    else:
        sink = VideoSink(PART_CONTAINERS.get(format.codec, "mp4"), format)
    with Writer(path, format.size, sink, overwrite=True) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.written


def refuse_input(path, source):
    """Raise VideoError if an output is or contains the input `source` (a Source, a path or None)."""
    origin = source.path if isinstance(source, Source) else source
    if origin is not None and path.resolve() in (Path(origin).resolve(), *Path(origin).resolve().parents):
        raise VideoError(f"{path}: the output is, or holds, the input; choose another name")


class Writer:
    """Writes frames one by one; the output gets its name when the `with` block ends without an exception.

    Until then its name is `.NAME.partial-PID-RANDOM`; it is removed on any exception and on Ctrl-C.
    """

    def __init__(self, path, size, sink, *, overwrite=False):
        self.path, self.size, self.sink = path, size, sink
        self.output = Replacement(path, overwrite=overwrite)
        self.written = 0

    def __enter__(self):
        try:
            self.output.prepare()
            self.sink.open(self.output.partial)
        except (OSError, av.FFmpegError) as error:
            self.output.discard()
            raise VideoError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        except BaseException:
            self.output.discard()
            raise
        return self

    def write(self, frame):
        """Append a frame: a float tensor (3|4, h, w) in [0, 1], clamped and rounded, or an array (h, w, 3|4).

        Arrays are uint8 or uint16 of full scale, RGB with straight alpha.
        """
        pixels = self.sink.samples(frame, f"frame {self.written}")
        if pixels.shape[:2] != self.size:
            got, want = "x".join(map(str, pixels.shape[:2])), "x".join(map(str, self.size))
            raise VideoError(f"{self.path}: got frame {self.written} of {got}, expected {want} (height x width)")
        try:
            self.sink.put(pixels, self.written)
        except (OSError, av.FFmpegError) as error:
            raise VideoError(f"{self.path}: writing stopped at frame {self.written} ({error.strerror})") from None
        self.written += 1

    def __exit__(self, kind, error, trace):
        try:
            self.sink.close()
            if kind is None:
                if self.written == 0:
                    raise VideoError(f"{self.path}: no frame was written")
                self.output.publish()
        except (OSError, av.FFmpegError) as failure:
            if kind is None:
                raise VideoError(f"{self.path}: cannot be finished ({failure.strerror})") from None
        finally:
            self.output.discard()
