"""Write frames to an encoder in a container, a folder of PNGs, or one PNG. Equal frames give equal bytes."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from ldm.video.formats import Format
from ldm.video.opening import open_output
from ldm.video.pixels import encoder_frame, to_samples, with_channels
from ldm.video.source import VideoError

ENCODERS = {"h264": "libx264", "hevc": "libx265", "prores": "prores_ks", "ffv1": "ffv1"}
BITEXACT = 1 << 23  # AV_CODEC_FLAG_BITEXACT: nothing of the encoder's version or the day
THREADS = 4  # fixed, since the output of x264 depends on it
# By how many frames decoding runs ahead of showing at most, for the B-frames of preset medium
LEAD = {"h264": 2, "hevc": 2}
# Settings that would otherwise depend on the machine, such as its number of threads and processor features
X264 = "cpu-independent=1"
X265 = f"log-level=none:pools={THREADS}:frame-threads=2:open-gop=0:info=0"
CONTAINER_OPTIONS = {"fflags": "+bitexact"}


def add_video(container, format: Format):
    """Add an encoder for frames of this format to an output container; its time unit is one frame."""
    name = "libx264rgb" if format.codec == "h264" and format.lossless else ENCODERS[format.codec]
    stream = container.add_stream(name, rate=format.rate)
    stream.height, stream.width = format.size
    stream.pix_fmt, stream.options = format.pixel_format, _options(format)
    codec = stream.codec_context
    codec.time_base, codec.thread_count = 1 / format.rate, THREADS
    codec.flags |= BITEXACT
    codec.sample_aspect_ratio = format.sample_aspect
    codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc = format.color
    if format.codec == "hevc" and container.format.name in ("mp4", "mov"):
        codec.codec_tag = "hvc1"  # headers out of band, without which Apple's players refuse the file
    return stream


def _options(format):
    if format.codec == "h264":
        quality = {"qp": "0"} if format.lossless else {"crf": str(format.crf), "preset": "medium"}
        return {**quality, "x264-params": X264}
    if format.codec == "hevc":
        quality = {} if format.lossless else {"crf": str(format.crf)}
        return {**quality, "preset": "medium", "x265-params": X265 + ":lossless=1" * format.lossless + _light(format)}
    if format.codec == "prores":
        return {"profile": "4444" if "444" in format.pixel_format else "hq", "vendor": "apl0"}
    return {"level": "3", "g": "1", "slices": "4", "slicecrc": "1"}


def _light(format):
    """Return HDR10's static metadata as options of x265."""
    display, content = format.light
    words = ":master-display=G({},{})B({},{})R({},{})WP({},{})L({},{})".format(*display) if display else ""
    return words + (":max-cll={},{}".format(*content) if content else "")


class VideoSink:
    """A container with one video stream.

    All sinks have the methods of this class; `ldm.video.writing.Writer` calls `open`, for each frame `samples` and
    `put`, and at the end `close`.
    """

    def __init__(self, container, format: Format):
        self.container, self.format = container, format
        self.file, self.packets = None, 0

    def samples(self, frame, what):
        """Convert a frame to (h, w, channels) of the format; `what` names it in messages. Raises VideoError."""
        return with_channels(to_samples(frame, self.format.dtype, what), self.format.channels)

    def open(self, path):
        """Create the output. Raises VideoError if the encoder does not support the format."""
        path.touch()  # FFmpeg would report an error at the first frame only
        self.file = open_output(path, self.container, CONTAINER_OPTIONS)
        self.stream = add_video(self.file, self.format)
        try:
            self.file.start_encoding()
        except (av.FFmpegError, ValueError):
            height, width = self.format.size
            wanted = f"{self.format.codec} of {width}x{height} {self.format.pixel_format}"
            raise VideoError(f"{path}: the encoder refuses {wanted}; choose another size or codec") from None
        self.reformatter = VideoReformatter()

    def put(self, pixels, number):
        """Write the pixels of frame `number`."""
        frame = encoder_frame(pixels, self.format.pixel_format, self.format.color, self.reformatter)
        # the ProRes encoder reads the colours from its frames
        frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc = self.format.color
        frame.pts, frame.time_base = number, Fraction(1) / self.format.rate
        self._mux(self.stream.encode(frame))

    def close(self):
        """Write what the encoder holds and close the file; does nothing before `open`."""
        if self.file is None:
            return
        try:
            self._mux(self.stream.encode())
        finally:
            self.file.close()

    def _mux(self, packets):
        """Write packets, with decoding times of our own: x265 reads unset memory for those of one or two frames."""
        for packet in packets:
            packet.dts = round((self.packets - LEAD.get(self.format.codec, 0)) / self.format.rate / packet.time_base)
            assert packet.dts <= packet.pts, f"packet {self.packets} is decoded after it is shown"
            self.file.mux(packet)
            self.packets += 1


class ImageSink:
    """One PNG."""

    def __init__(self, format=None):
        self.format = format

    def samples(self, frame, what):
        """Convert a frame to the format; without a format, arrays are kept and tensors become 8 bits."""
        if self.format is None:
            deep = isinstance(frame, np.ndarray) and frame.dtype == np.uint16
            return to_samples(frame, np.uint16 if deep else np.uint8, what)
        return with_channels(to_samples(frame, self.format.dtype, what), self.format.channels)

    def open(self, path):
        self.path = path
        path.touch()

    def put(self, pixels, number):
        if number:
            raise VideoError("got a second frame for a single image; name a folder or a video instead")
        _save_png(self.path, pixels)

    def close(self):
        pass


class FolderSink(ImageSink):
    """A folder of PNGs with the given names, or numbered without them."""

    def __init__(self, names=(), format=None):
        super().__init__(format)
        self.names = png_names(names)

    def open(self, path):
        self.path = path
        path.mkdir()

    def put(self, pixels, number):
        if self.names and number >= len(self.names):
            raise VideoError(f"got frame {number}, but names for {len(self.names)} frames only")
        _save_png(self.path / (self.names[number] if self.names else counted_name(number)), pixels)


def counted_name(number):
    """Return the file name of an image by its number."""
    return f"{number:08d}.png"


def png_names(names):
    """Return names with the suffix .png in place of their own, or after it if names would be equal (a.jpg, a.bmp)."""
    plain = [f"{Path(name).stem}.png" for name in names]
    return plain if len(set(plain)) == len(plain) else [f"{Path(name).name}.png" for name in names]


def _save_png(path, pixels):
    order = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, order))
    if not done:
        raise VideoError(f"{path}: an image of {pixels.shape[1]}x{pixels.shape[0]} cannot be stored as PNG")
    path.write_bytes(data.tobytes())
