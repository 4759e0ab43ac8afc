"""Decode the packets of a video to frames in presentation order, and detect missing and damaged frames."""

import logging
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av

from ldm.video.clock import demuxed
from ldm.video.opening import open_media, refuse_documents
from ldm.video.source import DEFAULT_RATE, Shift, VideoError

ATTACHED_PICTURE = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC: a cover, no moving picture
DEFAULT = 1  # AV_DISPOSITION_DEFAULT
TRANSPARENT_VPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that know of the alpha that WebM keeps beside
LOG = logging.getLogger(__name__)


class LostFrame(NamedTuple):
    """Replaces a frame that cannot be decoded; `pts` is None if unknown."""

    pts: int | None


def open_container(path):
    """Open a file for reading. Raises VideoError unless it contains video."""
    refuse_documents(path)
    try:
        container = open_media(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video, or cut short ({reason(error)})") from None
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: holds no video stream")
    return container


def reason(error):
    """Return the short message of an error of FFmpeg or the system."""
    return getattr(error, "strerror", None) or "unknown format"


def codec_name(stream):
    """Return the name of a stream's codec; for an attachment, its file name."""
    context = stream.codec_context
    return context.codec.canonical_name if context is not None else getattr(stream, "name", None) or "of unknown kind"


def main_stream(container, counts=None):
    """Return the main video stream, not a cover picture: of several, the default one, or else the first.

    `counts`: packets by stream index, where they have been counted; otherwise the header's numbers are used.
    """
    readable = [stream for stream in container.streams.video if stream.codec_context is not None]
    streams = [stream for stream in readable if not stream.disposition & ATTACHED_PICTURE]
    if len(streams) < 2:
        return (streams or readable or container.streams.video)[0]
    frames = {stream.index: stream.frames if counts is None else counts.get(stream.index, 0) for stream in streams}
    most = max(frames.values())
    films = [s for s in streams if frames[s.index] > most / 10 or (counts is None and not frames[s.index])] or streams
    return next((stream for stream in films if stream.disposition & DEFAULT), films[0])


def stated_frames(container, stream):
    """Return the number of frames that the container states; 0 if that is not exact (only the MP4 family lists all)."""
    return stream.frames if "mp4" in container.format.name else 0


def _stated_end(stream):
    """Return the end of a stream in seconds from the tag DURATION of Matroska ("00:00:02.500"); 0 without it."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) if match else 0.0


def decode(
    path, track: int, clock: Sequence[Shift] = (), *, seek=None, damaged="stop", threads=None, stated=0
) -> Iterator[av.VideoFrame | LostFrame]:
    """Yield the frames of a video in presentation order, then check that none is missing.

    Args:
        track: index of the stream.
        clock: shifts of its times.
        seek: start at the last key frame not after this time, in units of the stream's time base.
        damaged: "stop" raises VideoError at a damaged frame; "repeat" yields a `LostFrame` in its place.
        threads: number of decoding threads; None for the decoder's default.
        stated: number of frames of the file, for messages; 0 if unknown.
    """
    count = 0
    with open_container(path) as container:
        stream = container.streams[track]
        counter = _Progress(path, stated if seek is None else 0, _stated_end(stream), stream)
        decoder = _decoder(stream, 1 if damaged == "repeat" else threads)
        if seek is not None:
            container.seek(seek, stream=stream, backward=True)
            counter.end = 0.0
        for frame in _decoded(container, stream, decoder, clock, counter):
            count += 1
            if isinstance(frame, LostFrame) and damaged == "stop":
                raise counter.error(f"{counter.next_frame(seek)} is damaged")
            counter.add(frame)
            yield frame
        if damaged == "stop":
            counter.check_end()
    if count == 0:
        raise VideoError(f"{path}: the video holds no frames")


class _Progress:
    """Progress of decoding, compared with the number of frames that the file states."""

    def __init__(self, path, stated, end, stream):
        self.path, self.stated, self.end = path, stated, end
        self.unit, self.rate = stream.time_base, stream.average_rate or DEFAULT_RATE
        self.decoded, self.time, self.reached = 0, 0.0, 0.0

    def next_frame(self, seek):
        """Return a description of the next frame for messages; after a seek its number is unknown."""
        if seek is not None:
            return f"the frame at {self.time:.2f} s"
        return f"frame {self.decoded} of {self.stated}" if self.stated > 0 else f"frame {self.decoded}"

    def add(self, frame):
        """Count a decoded frame."""
        self.decoded += 1
        self.time = max(self.time, float((frame.pts or 0) * self.unit))
        duration = max(3 / self.rate, (getattr(frame, "duration", None) or 0) * self.unit)
        self.reached = max(self.reached, self.time + float(duration))

    def error(self, what):
        """Return the VideoError for a damaged file, with the options that accept it."""
        ways = "--damaged repeat shows the frame before in its place"
        ways += f", --max_frames {self.decoded} ends there" if self.decoded and self.stated > 0 else ""
        return VideoError(f"{self.path}: {what}; {ways}")

    def check_end(self):
        """Raise VideoError if the decoded frames end before the end that the file states."""
        if self.reached < self.end:
            about = round(self.end * self.rate)
            raise self.error(f"cut short, {self.decoded} of about {about} frames decoded")


def _decoded(container, stream, decoder, clock, counter):
    """Yield frames, and `LostFrame` for those that cannot be decoded or where the file ends early."""
    packets = demuxed(container, clock, stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, OSError) as error:
            LOG.debug("%s: breaks off (%s)", counter.path, reason(error))
            yield LostFrame(None)
            return
        try:
            frames = decoder(packet)
        except (av.FFmpegError, OSError):
            yield LostFrame(packet.pts)
            continue
        for frame in frames:
            yield LostFrame(frame.pts) if frame.is_corrupt else frame


def _decoder(stream, threads):
    """Return a function from packets to frames; for WebM with transparency, that of libvpx."""
    alpha = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"
    if alpha and codec_name(stream) in TRANSPARENT_VPX:
        return av.CodecContext.create(TRANSPARENT_VPX[codec_name(stream)], "r").decode
    stream.thread_type = "AUTO"
    if threads:
        stream.codec_context.thread_count = threads
    return stream.decode
