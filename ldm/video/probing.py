"""Looking at a video: its size as shown, its frames and when each is shown, its colours, what else the file holds."""

import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np

from ldm.video.pixels import depth_of, display_matrix, has_transparency
from ldm.video.source import DEFAULT_RATE, Color, Light, Source, VideoError, snap_rate

ATTACHED_PICTURE = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC: a cover, no moving picture
INDEXED = ("mp4", "matroska")  # containers whose packets say exactly which frames there are, and when
BROADCAST = ("mpegts", "mpeg")
TRANSPARENT_VPX = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that know of the alpha that WebM keeps beside
UNREADABLE_MATRICES = {
    8: "YCgCo",
    11: "Y'D'zD'x",
    12: "chroma-derived",
    13: "chroma-derived",
    14: "ICtCp",
    15: "IPT-C2",
}
# what a frame may carry that no output of ours keeps: PyAV's name of the side data -> a name for people
UNKEPT_SIDE_DATA = {
    "A53_CC": "closed captions in the pictures",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "ICC_PROFILE": "the ICC profile",
    "STEREO3D": "the arrangement of two eyes' pictures",
    "SPHERICAL": "the spherical projection",
}


class Track(NamedTuple):
    """The frames of a video stream: their number, their times (None if unknown), the end, what is odd about them."""

    frames: int
    times: tuple[int, ...] | None
    end: int | None
    note: str = ""


def probe_video(path) -> Source:
    """Look at a video file; walks through its packets, and decodes it where those do not tell which frames there are.

    Raises:
        VideoError: no readable video; no frames; one that is cut short or in colours that cannot be converted.
    """
    with open_container(path) as container:
        stream = main_stream(container)
        rate = snap_rate(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        tick, aspect, origin = stream.time_base, stream.sample_aspect_ratio, _origin(container)
        codec, counts_frames = codec_name(stream), container.format.name == "avi"  # which knows no other times
        indexed = any(name in container.format.name for name in INDEXED) and codec != "vp8"  # which has hidden frames
        held = _held_beside(container, stream)
        track = _track_of_packets(path, container, stream)
    first = next(decode(path), None)
    if first is None:
        raise VideoError(f"{path}: no frame can be decoded")
    alpha = has_transparency(first.format)
    indexed = indexed and track.times is not None and first.pts == track.times[0]
    if not indexed or codec == "gif":  # whose frames are transparent only if a pixel of them is
        track, transparent = _track_of_frames(path, codec == "gif")
        alpha = transparent if codec == "gif" else alpha
    turned = display_matrix(first)[0] == 0
    size = (first.height, first.width) if turned else (first.width, first.height)
    aspect = Fraction(1) if not aspect else 1 / aspect if turned else aspect
    notes = [*_notes_of(first), *([track.note] if track.note and not counts_frames else [])]
    frames, times, end = _counted_from(origin, track, tick)
    return Source(
        "video", path, frames, *size, _plausible(rate, times, tick),
        depth=depth_of(first.format), alpha=alpha, color=_color_of(path, first), light=_light_of(first),
        sample_aspect=aspect,
        times=times, end=end, time_base=tick if times else None, origin=origin,
        notes=tuple(notes), seekable=indexed, **held,
    )  # fmt: skip


def _origin(container):
    """Where the clock of a file stands at its beginning, in seconds: it means something in broadcasts only."""
    broadcast = any(name in container.format.name for name in BROADCAST) and container.start_time is not None
    return Fraction(container.start_time, av.time_base) if broadcast else Fraction(0)


def _counted_from(origin, track, tick):
    """The number of frames, their times and end, from a track in ticks of the file's clock."""
    if track.times is None:
        return track.frames, None, None
    begin = round(origin / tick)
    return track.frames, tuple(time - begin for time in track.times), track.end - begin


def _plausible(rate, times, tick):
    """The rate a file states, or that of its times where the two are far apart."""
    if times is None or len(times) < 2:
        return rate
    mean = (len(times) - 1) / ((times[-1] - times[0]) * tick)
    return rate if 0.5 < rate / mean < 2 else snap_rate(mean)


def open_container(path):
    """Open a file for reading; raises VideoError unless it holds video."""
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a readable video, or cut short ({reason(error)})") from None
    if not container.streams.video:
        container.close()
        raise VideoError(f"{path}: holds no video stream")
    return container


def reason(error):
    """What FFmpeg or the system says of an error, in a few words."""
    return getattr(error, "strerror", None) or "unknown format"


def main_stream(container):
    """The first video stream that is no cover picture."""
    streams = container.streams.video
    return next((stream for stream in streams if not stream.disposition & ATTACHED_PICTURE), streams[0])


def _held_beside(container, main):
    """The streams of a file beside its main one, as fields of a Source."""
    audio = tuple(codec_name(stream) for stream in container.streams.audio)
    subtitles = tuple(codec_name(stream) for stream in container.streams.subtitles)
    known = {main.index, *(stream.index for stream in (*container.streams.audio, *container.streams.subtitles))}
    others = [s for s in container.streams if s.index not in known and not is_chapter_track(s, container)]
    return {"audio": audio, "subtitles": subtitles, "others": tuple(f"{s.type} {codec_name(s)}" for s in others)}


def is_chapter_track(stream, container) -> bool:
    """Whether a stream only holds the names of chapters, as in MP4; a writer of chapters makes it anew."""
    return stream.type == "data" and codec_name(stream) in ("bin_data", "text") and bool(container.chapters())


def codec_name(stream):
    """The name of a stream's codec; of an attachment, its file name."""
    context = stream.codec_context
    return context.codec.canonical_name if context is not None else getattr(stream, "name", None) or "of unknown kind"


# ------------------------------------------------------------------------------------------------------- counting


def _track_of_packets(path, container, stream):
    """The frames that the packets of a stream promise."""
    times, end, promised = [], None, _promised(container)
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_discard:
                promised -= 1
                continue
            times.append(packet.pts)
            if packet.pts is not None and (end is None or packet.pts + (packet.duration or 0) > end):
                end = packet.pts + (packet.duration or 0)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: damaged after {len(times)} frames ({reason(error)})") from None
    if not times:
        raise VideoError(f"{path}: the video holds no frames")
    if len(times) < promised:
        raise VideoError(f"{path}: cut short, {len(times)} of {promised} frames are there")
    return _track(times, end, sort=True)


def _track_of_frames(path, alpha):
    """The frames that decoding yields, and whether a pixel is transparent (looked at only if `alpha`)."""
    times, end, transparent = [], None, False
    for frame in decode(path):
        times.append(frame.pts)
        end = None if frame.pts is None else frame.pts + (frame.duration or 0)
        transparent = transparent or (alpha and _is_see_through(frame))
    return _track(times, end), transparent


def _is_see_through(frame):
    """Whether a frame has a pixel that is not opaque, as far as 8 bits tell."""
    return frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255


def _track(times, end, *, sort=False):
    count = len(times)
    if None in times:
        return Track(count, None, None)
    times = sorted(times) if sort else times
    if any(later <= earlier for earlier, later in pairwise(times)):
        return Track(count, None, None, "the time stamps do not rise; the frames are spaced evenly instead")
    usual = (times[-1] - times[0]) // (count - 1) if count > 1 else 1
    return Track(count, tuple(times), end if end > times[-1] else times[-1] + max(usual, 1))


def _promised(container):
    """How many frames the container says it holds; 0 where that is no exact promise (only the MP4 family lists all)."""
    return main_stream(container).frames if "mp4" in container.format.name else 0


def _promised_end(stream):
    """Seconds at which a Matroska file says its stream ends (its tag DURATION, "00:00:02.500"), else 0."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) if match else 0.0


# ------------------------------------------------------------------------------------------------------- decoding


def decode(path, seek=None):
    """Frames of a video in presentation order, then a check that none is missing.

    `seek`: begin at the last key frame that is not after this time (in units of the stream).
    """
    decoded, time = 0, 0.0
    with open_container(path) as container:
        stream = main_stream(container)
        frames_of = _decoder(stream)
        promised, end = _promised(container), _promised_end(stream)
        if seek is not None:
            container.seek(seek, stream=stream, backward=True)
            promised, end = 0, 0.0
        try:
            for packet in container.demux(stream):
                promised -= packet.size > 0 and packet.is_discard
                for frame in frames_of(packet):
                    if frame.is_corrupt:
                        raise VideoError(f"{path}: frame {decoded}{_of(promised)} is damaged")
                    decoded, time = decoded + 1, (frame.pts or 0) * stream.time_base
                    yield frame
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path}: damaged, {decoded}{_of(promised)} frames decoded ({reason(error)})") from None
        if decoded < promised:
            raise VideoError(f"{path}: damaged, {decoded}{_of(promised)} frames decoded")
        rate = stream.average_rate or DEFAULT_RATE
        if time + 3 / rate < end:
            raise VideoError(f"{path}: cut short, {decoded} of about {round(end * rate)} frames decoded")
    if decoded == 0:
        raise VideoError(f"{path}: the video holds no frames")


def _decoder(stream):
    """A function from packets to frames; for WebM's transparency, that of a library that knows of it."""
    alpha = {key.lower(): value for key, value in stream.metadata.items()}.get("alpha_mode") == "1"
    if alpha and codec_name(stream) in TRANSPARENT_VPX:
        return av.CodecContext.create(TRANSPARENT_VPX[codec_name(stream)], "r").decode
    stream.thread_type = "AUTO"
    return stream.decode


def _of(promised):
    return f" of {promised}" if promised > 0 else ""


# ------------------------------------------------------------------------------------------------ colours, notes


def _color_of(path, frame):
    color = Color(*map(int, (frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc)))
    if frame.format.is_rgb:
        return color._replace(range=2, matrix=0)
    if color.matrix in UNREADABLE_MATRICES:
        name = UNREADABLE_MATRICES[color.matrix]
        raise VideoError(f"{path}: its colours are {name}, which cannot be converted; expected BT.601, 709 or 2020")
    if frame.format.name.startswith("yuvj"):
        color = color._replace(range=2)
    return color


def _light_of(frame):
    """HDR10's static metadata, from FFmpeg's structures AVMasteringDisplayMetadata and AVContentLightMetadata."""
    display, content = (), ()
    if data := frame.side_data.get("MASTERING_DISPLAY_METADATA"):
        numbers = np.frombuffer(bytes(data), "=i4")
        ratios = [Fraction(int(a), int(b) or 1) for a, b in numbers[:20].reshape(-1, 2)]
        if numbers[20] and numbers[21]:  # it has primaries (red, green, blue, white), and luminances (least, greatest)
            points = [ratios[i] * 50000 for i in (2, 3, 4, 5, 0, 1, 6, 7)]
            display = tuple(map(round, [*points, ratios[9] * 10000, ratios[8] * 10000]))
    if data := frame.side_data.get("CONTENT_LIGHT_LEVEL"):
        content = tuple(int(level) for level in np.frombuffer(bytes(data), "=u4")[:2])
    return Light(display, content)


def _notes_of(frame):
    """What cannot be kept of a video, from what its first frame carries: a line each."""
    notes = [f"{name} cannot be carried over" for key, name in UNKEPT_SIDE_DATA.items() if key in frame.side_data]
    if frame.interlaced_frame:
        notes.append("the video is interlaced; its fields are enlarged as whole frames, and marked progressive")
    return notes
