"""Compression of a whole clip by a video codec, in memory through PyAV."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import av
import cv2
import numpy as np

from basicsr_deg.compression import as_bytes
from basicsr_deg.walk import check_probability, pick, read_range, read_weights
from ldm.video.opening import open_media, open_output

BUILDABLE = ("VideoCodec",)  # what a configuration may name as a target

ENCODERS = {"libx264": "libx264", "h264": "libx264", "mpeg4": "mpeg4"}  # h264: FFmpeg's default encoder for it
# Results must not depend on the CPU features, the date or the encoder version. Without this option, x264's vectorised
# macroblock tree also reads uninitialised memory: 4 of 10 random small clips gave different results in repeated runs.
OPTIONS = {"libx264": {"x264-params": "cpu-independent=1"}}
BITEXACT = 1 << 23  # AV_CODEC_FLAG_BITEXACT


class VideoCodec:
    """Encode a clip as a video and decode it; frames are rounded to uint8, the output is float32 with integer values.

    Frames whose size differs from the first one are resized to it. Odd sides are padded by one repeated row or column
    for the encoder and cropped after decoding. The encoder uses one thread, so that its output is reproducible.

    Args:
        codecs: libx264, h264, mpeg4 -> probability; drawn once per clip.
        bitrate: [low, high] in bits per second; an integer is drawn once per clip.
        rate: frames per second.
        pixel_format: pixel format of the encoder, as named by FFmpeg.
        channels: "rgb", or "released" to exchange red and blue before encoding and after decoding, as in the released
            code (B35 in docs/RELEASED.md).
        prob: probability that the stage is applied.
    Raises:
        ValueError: an unknown codec or value of `channels`, or a rate, bit rate or probability out of range.
    """

    def __init__(
        self,
        codecs: Mapping[str, float],
        bitrate: Sequence[float],
        *,
        rate: int = 1,
        pixel_format: str = "yuv420p",
        channels: str = "rgb",
        prob: float = 1.0,
    ):
        if channels not in ("rgb", "released"):
            raise ValueError(f"channels: got {channels!r}, expected rgb or released")
        if rate < 1:
            raise ValueError(f"rate: got {rate}, expected at least 1 frame per second")
        self.codecs = read_weights(codecs, tuple(ENCODERS), "codecs")
        self.bitrate = tuple(int(end) for end in read_range(bitrate, "bitrate"))
        if self.bitrate[0] < 1:
            raise ValueError(f"bitrate: got {list(bitrate)}, expected at least 1 bit per second")
        self.rate, self.pixel_format, self.channels = rate, pixel_format, channels
        self.prob = check_probability(prob)

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        notes = {} if notes is None else notes
        codec = pick(self.codecs, rng)
        bitrate = int(rng.integers(self.bitrate[0], self.bitrate[1] + 1))
        notes |= {"codec": codec, "bitrate": bitrate}
        yield from self.coded(frames, codec, bitrate)

    def coded(self, frames: Iterable[np.ndarray], codec: str, bitrate: int) -> Iterator[np.ndarray]:
        """Encode and decode frames (h, w, 3) by one codec at one bit rate, in bits per second.

        Raises:
            ValueError: the codec is not available or fails.
        """
        video, count, size = io.BytesIO(), 0, None
        try:
            with open_output(video, "mp4") as container:
                for count, frame in enumerate(frames, 1):  # noqa: B007
                    if size is None:
                        size = frame.shape[:2]
                        stream = self._stream(container, codec, bitrate, size)
                    picture = av.VideoFrame.from_ndarray(self._seen(_padded(frame, size)), format="rgb24")
                    picture.pts, picture.time_base = count - 1, Fraction(1, self.rate)
                    container.mux(stream.encode(picture))
                if size is None:
                    return
                container.mux(stream.encode())
            yield from self._decoded(video, count, size)
        except av.FFmpegError as error:
            at = f"{bitrate} bit/s" + (f" of {size[1]}x{size[0]}" if size else "")
            raise ValueError(f"{codec} at {at} failed: {error.strerror}; use other codecs or a larger size") from error

    def _stream(self, container, codec: str, bitrate: int, size: tuple[int, int]):
        if ENCODERS[codec] not in av.codecs_available:
            known = ", ".join(name for name in ENCODERS if ENCODERS[name] in av.codecs_available) or "none"
            raise ValueError(f"this PyAV has no encoder {ENCODERS[codec]}, expected one of {known}")
        stream = container.add_stream(ENCODERS[codec], rate=self.rate)
        stream.height, stream.width = (side + side % 2 for side in size)
        stream.bit_rate, stream.pix_fmt = bitrate, self.pixel_format
        stream.options = OPTIONS.get(ENCODERS[codec], {})
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= BITEXACT
        return stream

    def _seen(self, frame: np.ndarray) -> np.ndarray:
        """Exchange red and blue if `channels` is "released"; FFmpeg's own conversion of bgr24 rounds differently."""
        return np.ascontiguousarray(frame[..., ::-1]) if self.channels == "released" else frame

    def _decoded(self, video: io.BytesIO, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
        video.seek(0)
        found = 0
        with open_media(video) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for found, picture in enumerate(container.decode(video=0), 1):  # noqa: B007
                yield self._seen(picture.to_ndarray(format="rgb24")[: size[0], : size[1]]).astype(np.float32)
        if found != count:
            raise ValueError(f"got {found} frames back from the codec, expected {count}; use other codecs")


def _padded(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frame as uint8 at `size` (h, w), padded to even sides by repeating the last row and column."""
    if frame.shape[:2] != size:
        frame = cv2.resize(frame.astype(np.float32, copy=False), size[::-1], interpolation=cv2.INTER_LINEAR)
    frame = as_bytes(frame)
    return np.ascontiguousarray(np.pad(frame, (*((0, side % 2) for side in size), (0, 0)), mode="edge"))
