"""Probe a video: its size as shown, its frames and their times, its colours, and the other streams of the file."""

from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from ldm.video.clock import ClockReader, rising
from ldm.video.decoding import LostFrame, codec_name, decode, main_stream, open_container, reason, stated_frames
from ldm.video.pixels import depth_of, display_matrix, has_transparency
from ldm.video.source import (
    DAMAGED,
    DEFAULT_RATE,
    Color,
    Light,
    Shift,
    Source,
    VideoError,
    check_pixels,
    snap_rate,
)

INDEXED = ("mp4", "matroska")  # containers whose packets say exactly which frames there are, and when
BROADCAST = ("mpegts", "mpeg")
TIMED = ("avi", "matroska", "mxf")  # containers whose header states the end; that of FLV is often wrong
SHORT = 3  # frames that may be missing at the end of these: the last may have no duration
WAY_ON = "--damaged repeat takes the frames that can be read"
UNREADABLE_MATRICES = {
    8: "YCgCo",
    11: "Y'D'zD'x",
    12: "chroma-derived",
    13: "chroma-derived",
    14: "ICtCp",
    15: "IPT-C2",
}
# PyAV's name of side data that no output keeps -> its name in notes
UNKEPT_SIDE_DATA = {
    "A53_CC": "closed captions in the pictures",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "ICC_PROFILE": "the ICC profile",
    "STEREO3D": "the arrangement of two eyes' pictures",
    "SPHERICAL": "the spherical projection",
}


class Track(NamedTuple):
    """The frames of a video stream: their number, their times (None if unknown), the end, and notes on irregularities.

    `index` is that of the stream, `clock` holds the shifts of its times, `repaired` tells whether times were changed,
    `short` is a note on a file that ends early.
    """

    index: int
    frames: int
    times: tuple[int, ...] | None
    end: int | None
    notes: tuple[str, ...] = ()
    clock: tuple[Shift, ...] = ()
    repaired: bool = False
    short: tuple[str, ...] = ()


def probe_video(path, damaged="stop") -> Source:
    """Return the description of a video file, from its packets, or by decoding it if those do not determine its frames.

    `damaged`: one of `DAMAGED`; with "repeat", frames that cannot be decoded are counted, too.

    Raises:
        VideoError: no readable video; no frames; one that is cut short or in colours that cannot be converted.
    """
    if damaged not in DAMAGED:
        raise VideoError(f"got damaged={damaged}, expected {' or '.join(DAMAGED)}")
    with open_container(path) as container:
        track = _track_of_packets(path, container, damaged)
        stream = container.streams[track.index]
        if stream.codec_context is None:
            raise VideoError(f"{path}: its pictures are in a codec that is not known here")
        check_pixels(path, stream.codec_context.width, stream.codec_context.height)
        rate = snap_rate(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        tick, aspect, origin = stream.time_base, stream.sample_aspect_ratio, _origin(container)
        codec, counts_frames = codec_name(stream), container.format.name == "avi"  # which knows no other times
        indexed = any(name in container.format.name for name in INDEXED) and codec != "vp8"  # which has hidden frames
        held = _held_beside(container, stream)
    first = _first_frame(path, track, damaged)
    alpha = has_transparency(first.format)
    indexed = indexed and track.times is not None and (first.pts == track.times[0] or damaged == "repeat")
    if not indexed or codec == "gif":  # whose frames are transparent only if a pixel of them is
        track, transparent = _track_of_frames(path, track, codec == "gif", damaged)
        alpha = transparent if codec == "gif" else alpha
    turned = _is_turned(path, first)
    size = (first.height, first.width) if turned else (first.width, first.height)
    aspect = aspect or Fraction(1)
    aspect = 1 / aspect if turned else aspect
    notes = [*_notes_of(first), *track.notes] if not counts_frames or track.times else _notes_of(first)
    frames, times, end = _counted_from(origin, track, tick)
    return Source(
        "video", path, frames, *size, _plausible(rate, times, tick),
        depth=depth_of(first.format), alpha=alpha, color=_color_of(path, first), light=_light_of(first),
        sample_aspect=aspect,
        times=times, end=end, time_base=tick if times else None, origin=origin,
        notes=(*notes, *track.short), seekable=indexed and not track.clock and not track.repaired,
        track=track.index, clock=track.clock, damaged=damaged, **held,
    )  # fmt: skip


def _first_frame(path, track, damaged):
    """Return the first frame that can be decoded. Raises VideoError if there is none."""
    frames = decode(path, track.index, track.clock, damaged=damaged)
    first = next((frame for frame in frames if not isinstance(frame, LostFrame)), None)
    if first is None:
        raise VideoError(f"{path}: no frame can be decoded")
    return first


def _is_turned(path, first):
    """Whether width and height are swapped when the frames are shown; raises VideoError for other angles."""
    try:
        return display_matrix(first)[0] == 0
    except VideoError as error:
        raise VideoError(f"{path}: {error}") from None


def _origin(container):
    """Return the time in seconds at which the clock of a broadcast starts; 0 for other files."""
    broadcast = any(name in container.format.name for name in BROADCAST) and container.start_time is not None
    return Fraction(container.start_time, av.time_base) if broadcast else Fraction(0)


def _counted_from(origin, track, tick):
    """Return (number of frames, times, end) of a track, with times counted from `origin` in units of `tick`."""
    if track.times is None:
        return track.frames, None, None
    begin = round(origin / tick)
    return track.frames, tuple(time - begin for time in track.times), track.end - begin


def _plausible(rate, times, tick):
    """Return the rate that a file states, or the mean rate of its times if they differ by a factor of 2 or more."""
    if times is None or len(times) < 2:
        return rate
    mean = (len(times) - 1) / ((times[-1] - times[0]) * tick)
    return rate if 0.5 < rate / mean < 2 else snap_rate(mean)


def _held_beside(container, main):
    """Return the streams of a file other than the main one, as fields of a Source."""
    audio = tuple(codec_name(stream) for stream in container.streams.audio)
    subtitles = tuple(codec_name(stream) for stream in container.streams.subtitles)
    known = {main.index, *(stream.index for stream in (*container.streams.audio, *container.streams.subtitles))}
    others = [s for s in container.streams if s.index not in known and not is_chapter_track(s, container)]
    return {"audio": audio, "subtitles": subtitles, "others": tuple(f"{s.type} {codec_name(s)}" for s in others)}


def is_chapter_track(stream, container) -> bool:
    """Whether a stream holds only the titles of chapters, as in MP4; muxers create this stream themselves."""
    return stream.type == "data" and codec_name(stream) in ("bin_data", "text") and bool(container.chapters())


# ------------------------------------------------------------------------------------------------------- counting


def _track_of_packets(path, container, damaged):
    """Return the main stream with the frames that its packets state."""
    videos = {stream.index: [] for stream in container.streams.video}
    clock, discarded = ClockReader(container), dict.fromkeys(videos, 0)
    try:
        for packet in container.demux():
            if packet.size == 0:
                continue
            clock.take(packet)
            if packet.stream_index in videos:
                discarded[packet.stream_index] += packet.is_discard
                held = videos[packet.stream_index]
                held.append(None if packet.is_discard else (packet.pts, packet.duration or 0))
    except (av.FFmpegError, OSError) as error:
        if damaged == "stop":
            count = max(map(len, videos.values()))
            raise VideoError(f"{path}: damaged after {count} frames ({reason(error)}); {WAY_ON}") from None
    stream = main_stream(container, {index: len(held) for index, held in videos.items()})
    packets, promised = videos[stream.index], stated_frames(container, stream) - discarded[stream.index]
    stamps, notes = _moved(packets, stream.index, clock.shifts()), []
    if not stamps:
        raise VideoError(f"{path}: the video holds no frames")
    if None not in (times := [time for time, _ in stamps]):
        times = sorted(times)
    end = max((time + duration for time, duration in stamps if time is not None), default=None)
    if len(stamps) < promised and not _reaches_end(stream, end):
        if damaged == "stop":
            raise VideoError(f"{path}: cut short, {len(stamps)} of {promised} frames are there; {WAY_ON}")
        notes.append(f"the file is cut short: {len(stamps)} of {promised} frames are there, and taken")
    short = () if clock.shifts() else _short(path, container, stream, len(stamps), clock.end(), damaged)
    return _track(Track(stream.index, len(stamps), times, end, tuple(notes), clock.shifts(), short=short))


def _reaches_end(stream, end):
    """Whether the frames reach the end that the stream states; an edit list may leave out frames that are counted."""
    return None not in (end, stream.duration) and end >= (stream.start_time or 0) + stream.duration


def _short(path, container, stream, count, end, damaged):
    """A note, if the `count` frames of a file end earlier, at `end` seconds, than its header states.

    Raises VideoError instead where the header is exact, unless `damaged` is "repeat".
    """
    name, rate = container.format.name, stream.average_rate or DEFAULT_RATE
    if not any(timed in name for timed in (*TIMED, "flv")):
        return ()
    stated = stream.frames / rate if name == "avi" else Fraction(container.duration or 0, av.time_base)
    if stated - end <= SHORT * max(1 / rate, end / count):
        return ()
    what = f"it ends at {float(end):.2f} s, and its header states {float(stated):.2f} s"
    if damaged == "stop" and name != "flv":
        raise VideoError(f"{path}: cut short, {what}; {WAY_ON}")
    return (f"the file may be cut short: {what}",)


def _moved(packets, index, clock):
    """Return (time, duration) of the packets that are shown, with the shifts of `clock` applied."""
    shifts = [shift for shift in clock if shift.stream == index]
    moved = []
    for number, packet in enumerate(packets):
        if packet is None:
            continue
        ticks = next((shift.ticks for shift in reversed(shifts) if shift.packet <= number), 0)
        moved.append((None if packet[0] is None else packet[0] + ticks, packet[1]))
    return moved


def _track_of_frames(path, track, alpha, damaged):
    """Return (the track of the decoded frames, whether a pixel is transparent); pixels are tested only if `alpha`."""
    times, end, transparent, lost = [], None, False, 0
    for frame in decode(path, track.index, track.clock, damaged=damaged):
        times.append(frame.pts)
        if isinstance(frame, LostFrame):
            lost += 1
            continue
        end = None if frame.pts is None else frame.pts + (frame.duration or 0)
        transparent = transparent or (alpha and _is_see_through(frame))
    notes = (f"{lost} damaged frames are replaced by the frame before each",) if lost else ()
    return _track(track._replace(frames=len(times), times=times, end=end, notes=notes)), transparent


def _is_see_through(frame):
    """Whether a frame has a pixel with alpha below 255 of 255."""
    return frame.reformat(format="rgba").to_ndarray()[..., 3].min() < 255


def _track(track):
    """Return a track with strictly increasing times, or None for them if they cannot be repaired."""
    notes = track.notes
    if track.clock:
        count = len({shift.packet for shift in track.clock if shift.stream == track.index})
        notes += (f"its clock starts again {count} times; what follows is shown after what came before",)
    if all(time is None for time in track.times):
        return track._replace(times=None, end=None, notes=notes)
    times, moved = rising(track.times)
    if times is None:
        notes += ("the time stamps do not rise; the frames are spaced evenly instead",)
        return track._replace(times=None, end=None, notes=notes)
    if moved:
        notes += (f"{moved} of {len(times)} time stamps do not rise; they are moved between their neighbours",)
    usual = max((times[-1] - times[0]) // max(len(times) - 1, 1), 1)
    end = track.end if track.end is not None and track.end > times[-1] else times[-1] + usual
    return track._replace(times=times, end=end, notes=notes, repaired=moved > 0)


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
    """Return HDR10 static metadata from FFmpeg's AVMasteringDisplayMetadata and AVContentLightMetadata."""
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
    """Return one line for each property of the first frame that no output keeps."""
    notes = [f"{name} cannot be carried over" for key, name in UNKEPT_SIDE_DATA.items() if key in frame.side_data]
    if frame.interlaced_frame:
        notes.append("the video is interlaced; its fields are enlarged as whole frames, and marked progressive")
    return notes
