"""Join parts to an output: copy their packets, with the times and the other streams of the source."""

import heapq
import os
import shutil
from math import lcm
from pathlib import Path
from typing import NamedTuple

import av

from ldm.video.companions import Span, add_companions, add_titles
from ldm.video.formats import MOST_TICKS, Format, ticks
from ldm.video.opening import open_media, open_output
from ldm.video.replacing import Replacement
from ldm.video.sinks import CONTAINER_OPTIONS, add_video, counted_name
from ldm.video.source import Source, VideoError
from ldm.video.writing import refuse_input

# Microseconds that the muxer may buffer for a stream without packets; packets arrive in order of time
INTERLEAVING = "100000"


class _Head(NamedTuple):
    """The header of a part: number of frames, extradata of the decoder, and frames by which decoding runs ahead."""

    frames: int
    extradata: bytes
    lead: int


def join(parts, output, *, source: Source, format: Format, span=(0, None), metadata=None, overwrite=False):
    """Join parts to `output`, atomically.

    Videos: frame `i` of all parts is shown when frame `span[0] + i` of the source was, relative to its first frame;
    sound, subtitles, attachments, chapters and tags of the span are copied. Folders and images: the PNGs of the parts,
    under their names, or numbered if the source has none. Equal parts give equal bytes.

    Args:
        parts: files or folders of successive frames from `write_part`, in order. They are kept.
        span: the frames (start, stop) of the source in the parts; stop None: up to its end.
        metadata: tags to write beside those of the source.
        overwrite: replace a folder that already holds PNGs. Single files are always replaced.

    Raises:
        VideoError: missing or incompatible parts, or another number of frames than the span has; the input as output;
            a folder in use; an output that cannot be written.
    """
    parts, output = [Path(part) for part in parts], Path(output)
    refuse_input(output, source)
    missing = next((part for part in parts if not part.exists()), None)
    if missing or not parts:
        raise VideoError(f"{output}: got {f'no part {missing}' if missing else 'no parts'}, expected all of them")
    replacement = Replacement(output, overwrite=overwrite)
    try:
        replacement.prepare()
        if format.is_video:
            join_videos(parts, replacement.partial, source, format, span, metadata=metadata or {})
        else:
            _join_images(parts, replacement.partial, source, format.container, span)
        replacement.publish()
    except (OSError, av.FFmpegError) as error:
        raise VideoError(f"{output}: cannot be written ({error.strerror or error})") from None
    finally:
        replacement.discard()


def _expected(source, span):
    """Return the number of frames of a span; None if unknown."""
    start, stop = span
    stop = source.frames if stop is None or (source.frames is not None and stop > source.frames) else stop
    return None if stop is None else stop - start


def _check_count(parts, frames, expected):
    if expected is not None and frames != expected:
        raise VideoError(f"{parts[0].parent}: the parts hold {frames} frames, expected {expected}")


# --------------------------------------------------------------------------------------------------------- images


def _join_images(parts, partial, source, container, span):
    files = [file for part in parts for file in (sorted(part.iterdir()) if part.is_dir() else [part])]
    _check_count(parts, len(files), _expected(source, span))
    if container == "image":
        shutil.copyfile(files[0], partial)
        return
    partial.mkdir()
    for number, file in enumerate(files):
        target = partial / (file.name if source.names else counted_name(number))
        if target.exists():
            raise VideoError(f"{file}: two parts hold an image of this name; expected each once")
        _link(file, target)


def _link(file, target):
    """Create a hard link, or a copy if the file system does not support links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


# --------------------------------------------------------------------------------------------------------- videos


def join_videos(parts, partial, source, format, span, *, metadata, duration=None):
    """Write the file `partial`; `duration` is the maximum length of sound and subtitles in seconds."""
    heads = [_head(part, format) for part in parts]
    frames, start = sum(head.frames for head in heads), span[0]
    _check_count(parts, frames, _expected(source, span))
    odd = next((part for part, head in zip(parts, heads, strict=True) if head.extradata != heads[0].extradata), None)
    if odd is not None:
        raise VideoError(f"{odd}: was encoded in another way than {parts[0].name}; encode both again")
    times = ticks(source, format, start, start + frames)
    window = Span.of(source, start, start + frames)
    if duration is not None:
        window = window._replace(finish=window.shift + duration)
    partial.touch()
    with (
        open_output(partial, format.container, _options(source, format, metadata)) as file,
        open_media(parts[0]) as first,
    ):
        stream = _add_copy(file, first.streams.video[0], format)
        companions = add_companions(file, source, format.container)
        add_titles(file, source, window, metadata)
        file.start_encoding()
        pictures = _pictures(parts, stream, format, times, max(head.lead for head in heads))
        tracks = [pictures, *(companion.packets(window) for companion in companions)]
        for _, packet in heapq.merge(*tracks, key=lambda timed: timed[0]):
            file.mux(packet)


def _head(part, format):
    """Return the header of a part. Raises VideoError if it is unreadable or of another format."""
    try:
        with open_media(part) as container:
            stream = container.streams.video[0]
            packet = next(packet for packet in container.demux(stream) if packet.size)
            lead = round((packet.pts - packet.dts) * packet.time_base * format.rate)
            height, width, extradata = stream.height, stream.width, bytes(stream.codec_context.extradata or b"")
            frames = stream.frames
    except (av.FFmpegError, OSError, IndexError, StopIteration, ValueError):
        raise VideoError(f"{part}: cannot be read as a part; remove it and encode it again") from None
    if (height, width) != format.size:
        want = "{1}x{0}".format(*format.size)
        raise VideoError(f"{part}: holds frames of {width}x{height}, expected {want}")
    return _Head(frames, extradata, lead)


def _options(source, format, metadata):
    options = {**CONTAINER_OPTIONS, "max_interleave_delta": INTERLEAVING}
    options["avoid_negative_ts"] = "disabled"
    if format.container == "matroska":
        return options
    fine = lcm(format.time_base.denominator, 48000)  # for the delays of sound against pictures, in edit lists
    options["movie_timescale"] = str(fine if fine <= MOST_TICKS else format.time_base.denominator)
    return options | ({"movflags": "use_metadata_tags"} if metadata else {})


def _add_copy(file, stream, format):
    """Add a stream for encoded packets, with the parameters of `stream`."""
    if format.container == "matroska":  # states the rate of frames, which it learns from encoders only
        copy = add_video(file, format)
        copy.codec_context.open()
        copy.codec_context.extradata = stream.codec_context.extradata
    else:
        copy = file.add_stream_from_template(stream, opaque=True)
        copy.codec_context.sample_aspect_ratio = format.sample_aspect
        if format.codec == "hevc":
            copy.codec_context.codec_tag = "hvc1"
    copy.time_base = format.time_base
    return copy


def _pictures(parts, stream, format, times, lead):
    """Yield (seconds, packet) of all parts in decoding order, at their `times` (in units of the format).

    Frame `k` in decoding order is decoded when frame `k - lead` is shown, so that every frame is decoded before it is
    shown: decoding runs at most `lead` frames ahead.
    """
    step, base, order = max(times[1] - times[0], 1), 0, 0
    for part in parts:
        count = 0
        with open_media(part) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.size == 0:
                    continue
                number = base + round(packet.pts * packet.time_base * format.rate)
                packet.dts = times[order - lead] if order >= lead else times[0] - (lead - order) * step
                packet.pts, packet.duration = times[number], times[number + 1] - times[number]
                assert packet.dts <= packet.pts, f"{part}: packet {count} is decoded after it is shown"
                if order == len(times) - 2 and 2 * (times[-1] - times[-2]) > 3 * step:
                    packet.duration = times[-1] - packet.pts  # MP4 ends with the last frame decoded, not the last shown
                packet.time_base, packet.stream = format.time_base, stream
                yield packet.dts * format.time_base, packet
                order, count = order + 1, count + 1
        base += count
