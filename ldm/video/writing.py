"""Writing: frames become a video, a folder of PNGs or one PNG, whole or not at all."""

import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from ldm.video.reading import EXACT_SCALING, SCALER_MATRIX, matrix_of_size
from ldm.video.source import DEFAULT_RATE, IMAGE_SUFFIXES, VIDEO_SUFFIXES, Source, VideoError, snap_rate

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # FFmpeg's names of what is written
LIMITED_RANGE = 1  # AVColorRange


def open_writer(
    path, *, size, rate=DEFAULT_RATE, crf=18, lossless=False, names=None, source=None, overwrite=False
) -> "Writer":
    """Open an output to use in a `with` block: a video (.mp4, .mkv, .mov), one .png, or a folder of PNGs (no suffix).

    Args:
        size: (height, width) of every frame.
        rate: frames per second of a video.
        crf: H.264 quality, 0 (best) to 51.
        lossless: store RGB exactly (H.264 RGB with qp 0) instead.
        names: file names of a folder's images, one per frame; the suffix becomes .png. Without them those of `source`,
            and without those 00000000.png and so on.
        source: what is being read (a Source or a path); it is never overwritten.
        overwrite: replace a folder that already holds PNGs. Single files are always replaced.

    Raises:
        VideoError: an unknown suffix; the input as output; a folder in use; a bad size, rate or crf.
    """
    path, origin = Path(path), source.path if isinstance(source, Source) else source
    if origin is not None and path.resolve() in (Path(origin).resolve(), *Path(origin).resolve().parents):
        raise VideoError(f"{path}: the output is, or holds, the input; choose another name")
    if min(size) < 1:
        raise VideoError(f"got a size of {size[0]}x{size[1]}, expected (height, width) of at least 1 pixel")
    known = {*CONTAINERS, *VIDEO_SUFFIXES, *IMAGE_SUFFIXES}
    dotted = getattr(source, "kind", "") == "folder" and path.suffix.lower() not in known  # a folder such as clip.v1
    if path.is_dir() or not path.suffix or dotted:
        if path.is_file():
            raise VideoError(f"{path}: is a file, expected a folder to write images into")
        names = names if names is not None else getattr(source, "names", ())
        return Writer(path, tuple(size), _Pictures(_png_names(names)), overwrite=overwrite)
    suffix = path.suffix.lower()
    if suffix == ".png":
        return Writer(path, tuple(size), _Picture())
    if suffix not in CONTAINERS:
        known = ", ".join([*CONTAINERS, ".png"])
        raise VideoError(f"{path}: cannot write {suffix}; expected {known} or a folder name without a suffix")
    if not 0 <= crf <= 51:
        raise VideoError(f"got crf {crf}, expected 0 (best) to 51")
    return Writer(path, tuple(size), _Film(CONTAINERS[suffix], tuple(size), snap_rate(rate), None if lossless else crf))


class Writer:
    """Takes frames one by one; the output appears under its name only when the `with` block ends without an exception.

    Until then it lies beside it as `.NAME.partial-PID`, which is removed on any exception, KeyboardInterrupt included.
    """

    def __init__(self, path, size, sink, *, overwrite=False):
        self.path, self.size, self.sink, self.overwrite = path, size, sink, overwrite
        self.partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        self.written = 0
        self._made = []

    def __enter__(self):
        if self.path.is_dir():
            self._check_folder()
        try:
            self._made = _make_parents(self.path.parent)
            self.sink.open(self.partial)
        except (OSError, av.FFmpegError) as error:
            self._discard()
            raise VideoError(f"{self.path}: cannot be written ({error.strerror or error})") from None
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, frame):
        """Append a frame: a float tensor (3, h, w) in [0, 1], clamped and rounded, or an array (h, w, 3) uint8 RGB."""
        pixels = _to_bytes(frame, f"frame {self.written}")
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
                self._publish()
        except (OSError, av.FFmpegError) as failure:
            if kind is None:
                raise VideoError(f"{self.path}: cannot be finished ({failure.strerror})") from None
        finally:
            self._discard()

    def _check_folder(self):
        present = sorted(child.name for child in self.path.iterdir())
        if present and not self.overwrite:
            raise VideoError(f"{self.path}: the folder is not empty; remove it, choose another or allow overwriting")
        foreign = [name for name in present if not name.lower().endswith(".png")]
        if foreign:
            raise VideoError(f"{self.path}: the folder holds {foreign[0]}, which is no PNG; choose another folder")

    def _publish(self):
        if self.written == 0:
            raise VideoError(f"{self.path}: no frame was written")
        if self.path.is_dir():
            old = self.path.with_name(f".{self.path.name}.old-{os.getpid()}")
            os.replace(self.path, old)
            os.replace(self.partial, self.path)
            shutil.rmtree(old)
        else:
            os.replace(self.partial, self.path)
        self._made = []

    def _discard(self):
        """Remove what is unfinished, and folders that were made for it."""
        if self.partial.is_dir():
            shutil.rmtree(self.partial)
        elif self.partial.exists():
            self.partial.unlink()
        for folder in reversed(self._made):
            if not any(folder.iterdir()):
                folder.rmdir()


def _make_parents(folder):
    """Create a folder with its parents; returns those that were missing, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
    for parent in missing:
        parent.mkdir(exist_ok=True)
    return missing


def _to_bytes(frame, what):
    if isinstance(frame, torch.Tensor):
        if frame.ndim != 3 or frame.shape[0] != 3 or not frame.is_floating_point():
            raise VideoError(f"got {what} as {tuple(frame.shape)} {frame.dtype}, expected (3, h, w) float in [0, 1]")
        values = frame.detach().float().cpu()
        if not torch.isfinite(values).all():
            raise VideoError(f"{what} holds values that are not finite numbers")
        return values.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise VideoError(f"got {what} as {frame.shape} {frame.dtype}, expected (h, w, 3) uint8 or a float tensor")
    return np.ascontiguousarray(frame)


def _png_names(names):
    """Names with the suffix .png, or in full where only suffixes told them apart (a.jpg and a.bmp)."""
    plain = [f"{Path(name).stem}.png" for name in names]
    return plain if len(set(plain)) == len(plain) else [f"{Path(name).name}.png" for name in names]


def _save_png(path, pixels):
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not done:
        raise VideoError(f"{path}: an image of {pixels.shape[1]}x{pixels.shape[0]} cannot be stored as PNG")
    path.write_bytes(data.tobytes())


class _Picture:
    """One PNG."""

    def open(self, path):
        self.path = path
        path.touch()

    def put(self, pixels, number):
        if number:
            raise VideoError("got a second frame for a single image; name a folder or a video instead")
        _save_png(self.path, pixels)

    def close(self):
        pass


class _Pictures:
    """A folder of PNGs."""

    def __init__(self, names):
        self.names = names

    def open(self, path):
        self.path = path
        path.mkdir()

    def put(self, pixels, number):
        if self.names and number >= len(self.names):
            raise VideoError(f"got frame {number}, but names for {len(self.names)} frames only")
        _save_png(self.path / (self.names[number] if self.names else f"{number:08d}.png"), pixels)

    def close(self):
        pass


class _Film:
    """An H.264 stream in a container: 4:2:0 if both sides are even, otherwise 4:4:4; RGB if crf is None (lossless)."""

    def __init__(self, container, size, rate, crf):
        self.container, self.size, self.rate, self.crf = container, size, rate, crf
        self.matrix = matrix_of_size(*size)
        self.file = None

    def open(self, path):
        path.touch()  # FFmpeg would only complain at the first frame
        self.file = av.open(str(path), "w", format=self.container)
        height, width = self.size
        stream = self.file.add_stream("libx264" if self.crf is not None else "libx264rgb", rate=self.rate)
        stream.width, stream.height = width, height
        codec = stream.codec_context
        codec.time_base = Fraction(1) / self.rate
        if self.crf is None:
            stream.pix_fmt, stream.options = "rgb24", {"qp": "0"}
        else:
            stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
            stream.options = {"crf": str(self.crf), "preset": "medium"}
            codec.colorspace = codec.color_primaries = codec.color_trc = self.matrix
            codec.color_range = LIMITED_RANGE
        self.file.start_encoding()
        self.stream, self.reformatter = stream, av.video.reformatter.VideoReformatter()

    def put(self, pixels, number):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if self.crf is not None:
            frame = self.reformatter.reformat(
                frame,
                format=self.stream.pix_fmt,
                dst_colorspace=SCALER_MATRIX[self.matrix],
                dst_color_range=LIMITED_RANGE,
                interpolation=EXACT_SCALING,
            )
        frame.pts, frame.time_base = number, Fraction(1) / self.rate
        self.file.mux(self.stream.encode(frame))

    def close(self):
        if self.file is None:
            return
        try:
            self.file.mux(self.stream.encode())
        finally:
            self.file.close()
