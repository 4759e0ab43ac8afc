"""Copy the other streams of a source to an output: sound, subtitles, attachments, chapters and tags, cut to a span."""

import io
import logging
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

import av

from ldm.video.clock import demuxed
from ldm.video.decoding import codec_name, open_container, reason
from ldm.video.opening import open_output
from ldm.video.probing import is_chapter_track
from ldm.video.sinks import BITEXACT
from ldm.video.sound import ENCODER, add_sound, encoded_form, known_layout, resampled, sounding
from ldm.video.source import Shift, Source

TEXT_SUBTITLES = ("subrip", "ass", "webvtt", "mov_text", "text")  # codecs that can be converted to TEXT_CODECS
TEXT_CODECS = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip"}
TRIAL_PACKETS = 4  # number of packets with which a stream is tried in a container
COPY = "copy"
LOG = logging.getLogger(__name__)
# tags that describe the file itself and do not hold for a copy
TECHNICAL_TAGS = {
    "major_brand",
    "minor_version",
    "compatible_brands",
    "encoder",
    "duration",
    "vendor_id",
    "handler_name",
}


class Span(NamedTuple):
    """The section of a file that is written, in seconds of its clock (None: unbounded), and the shift to the output."""

    begin: Fraction | None
    finish: Fraction | None
    shift: Fraction

    @classmethod
    def of(cls, source: Source, start, stop) -> "Span":
        """Return the span of frames `start` to `stop`; the first is shown when the first of the source was."""
        last = source.frames is None or stop >= source.frames
        begin, shift = source.origin + source.seconds(start), source.seconds(start) - source.seconds(0)
        return cls(
            begin if start else None, None if last else source.origin + source.seconds(stop), source.origin + shift
        )


class StreamMapping(NamedTuple):
    """How a stream other than the video is written; `encoder` is `COPY`, the name of an encoder, or "" (dropped)."""

    index: int
    kind: str
    codec: str
    disposition: int
    encoder: str
    detail: str = ""


class Companion(NamedTuple):
    """A stream of the source other than the video, and the corresponding stream of the output."""

    path: object
    index: int
    clock: tuple[Shift, ...]
    target: av.stream.Stream
    kind: str
    encoder: str

    def packets(self, span: Span) -> Iterator[tuple[Fraction, av.Packet]]:
        """Yield (seconds, packet) for the output in order of time, reading the source once more."""
        with open_container(self.path) as container:
            stream = container.streams[self.index]
            packets = self._read(container, stream)
            if self.encoder == ENCODER:
                yield from _reencoded_sound(sounding(self.path, packets, span), self.target)
            elif self.encoder != COPY:
                yield from _reencoded_subtitles(packets, stream, self.target, span)
            elif self.kind == "subtitle":
                yield from _trimmed_subtitles(packets, self.target, span)
            else:
                yield from copied_packets(packets, self.target, span)

    def _read(self, container, stream):
        """Yield the packets of the stream up to the first read error."""
        try:
            yield from (packet for packet in demuxed(container, self.clock, stream) if packet.size)
        except (av.FFmpegError, OSError) as error:
            what = f"{self.kind} ({codec_name(stream)})"
            LOG.warning("%s: its %s breaks off (%s); what is before is kept", self.path, what, reason(error))


def map_streams(source: Source, container: str) -> list[StreamMapping]:
    """Return how each stream other than the video is written to a container format (FFmpeg's name).

    Each candidate is tried with the first packets of the stream.
    """
    found = []
    with open_container(source.path) as old:
        for stream in old.streams:
            if stream.index != source.track and not is_chapter_track(stream, old):
                found.append(_mapping(source, old, stream, container))
    return found


def _mapping(source, old, stream, container):
    known = stream.index, stream.type, codec_name(stream), int(stream.disposition)
    if stream.type == "attachment":
        return StreamMapping(*known, COPY if container == "matroska" else "")
    if stream.type not in ("audio", "subtitle") or stream.codec_context is None:
        return StreamMapping(*known, "")
    words = [TEXT_CODECS[container]] * (stream.type == "subtitle" and codec_name(stream) in TEXT_SUBTITLES)
    encoders = [COPY, *([ENCODER] if stream.type == "audio" else words)]
    encoder = next((encoder for encoder in encoders if _can_mux(source, old, stream, encoder, container)), "")
    return StreamMapping(*known, encoder, _form_change(stream) if encoder == ENCODER else "")


def _form_change(stream):
    """Return how re-encoded sound differs in rate and channels; "" if it does not."""
    old, new = stream.codec_context, encoded_form(stream.codec_context)
    rate = f"{old.sample_rate} Hz becomes {new.rate}" if new.rate != old.sample_rate else ""
    layout = known_layout(old.layout)
    return ", ".join(filter(None, [rate, f"{layout} becomes {new.layout}" if new.layout != layout else ""]))


def _can_mux(source, old, stream, encoder, container):
    """Whether a container with the first packets of a stream can be written and closed."""
    try:
        with open_output(io.BytesIO(), container) as trial:
            companion = _add(source, trial, stream, encoder)
            trial.start_encoding()
            for _, packet in islice(companion.packets(Span(None, None, source.origin)), TRIAL_PACKETS):
                trial.mux(packet)
    except (av.FFmpegError, OSError, ValueError):
        return False
    return True


def _add(source, output, stream, encoder):
    """Add the stream that corresponds to one of the source to an output container."""
    if encoder == ENCODER:
        target = add_sound(output, stream.codec_context)
        target.codec_context.flags |= BITEXACT
    elif encoder == COPY:
        target = output.add_stream_from_template(stream)
    else:
        target = _add_subtitles(output, stream, encoder)
    return Companion(source.path, stream.index, source.clock, target, stream.type, encoder)


def add_companions(output, source: Source, container) -> list[Companion]:
    """Add every stream of the source that the output container can hold, re-encoded if necessary.

    Returns the streams whose packets must be written. Attachments are part of the header and are not returned; streams
    that the container cannot hold are reported by `list_omissions`.

    Args:
        output: the opened output container.
        container: FFmpeg's name of its format.
    """
    if source.kind != "video":
        return []
    found = []
    with open_container(source.path) as old:
        for mapping in map_streams(source, container):
            if not mapping.encoder:
                continue
            stream = old.streams[mapping.index]
            companion = _add(source, output, stream, mapping.encoder)
            companion.target.metadata.update(_tags(stream.metadata))
            companion.target.disposition = mapping.disposition
            if mapping.kind != "attachment":
                found.append(companion)
    return found


def add_titles(output, source: Source, span: Span, metadata):
    """Add the tags and chapters of the source, and the tags in `metadata`, to an output."""
    if source.kind == "video":
        with open_container(source.path) as old:
            output.metadata.update(_tags(old.metadata))
            output.set_chapters([moved for chapter in old.chapters() if (moved := _moved_chapter(chapter, span))])
    output.metadata.update(metadata)


def _tags(metadata):
    return {key: value for key, value in metadata.items() if key.lower() not in TECHNICAL_TAGS and key[:1] != "_"}


def _moved_chapter(chapter, span):
    """Return a chapter with times of the output, cut to the span; None if it is outside."""
    unit = chapter["time_base"]
    start, end = max(chapter["start"] * unit, span.begin or 0), chapter["end"] * unit
    end = end if span.finish is None else min(end, span.finish)
    if end <= start:
        return None
    times = {"start": round((start - span.shift) / unit), "end": round((end - span.shift) / unit)}
    return chapter | times


# ----------------------------------------------------------------------------------------------- copied packets


def copied_packets(packets, target, span):
    """Yield (seconds, packet) of the packets that begin within the span; decoding times increase strictly."""
    last = None
    for packet in packets:
        begins = packet.dts if packet.pts is None else packet.pts
        if begins is None:
            continue
        time = begins * packet.time_base
        if span.finish is not None and time >= span.finish:
            return
        if span.begin is None or time >= span.begin:
            placed = _retimed(packet, target, span, last)
            last = packet.dts  # read before the muxer changes its unit
            yield placed


def _retimed(packet, target, span, last=None):
    """Return (seconds, packet) in the unit of the output; a time not after `last` becomes the tick after it."""
    old, unit = packet.time_base, target.time_base or packet.time_base
    dts, pts = packet.pts if packet.dts is None else packet.dts, packet.dts if packet.pts is None else packet.pts
    dts, pts = (round((time * old - span.shift) / unit) for time in (dts, pts))
    if last is not None and dts <= last:
        dts, pts = last + 1, max(pts, last + 1)
    packet.duration = round((packet.duration or 0) * old / unit)
    packet.dts, packet.pts, packet.time_base, packet.stream = dts, max(dts, pts), unit, target
    return dts * unit, packet


def _trimmed_subtitles(packets, target, span):
    """Yield (seconds, packet) of the subtitles that overlap the span, trimmed to it."""
    for packet in packets:
        if packet.pts is None or bytes(packet) in (b"", b"\0\0"):  # nothing, as MP4 says between two of its subtitles
            continue
        unit, end = packet.time_base, packet.pts + (packet.duration or 0)
        low = 0 if span.begin is None else round(span.begin / unit)
        if span.finish is not None and packet.pts * unit >= span.finish:
            return
        if span.begin is not None and end <= low:
            continue
        if span.begin is not None and packet.pts < low:
            packet.pts = packet.dts = low
        if packet.duration:
            high = end if span.finish is None else min(end, round(span.finish / unit))
            packet.duration = high - packet.pts
        yield _retimed(packet, target, span)


# --------------------------------------------------------------------------------------------- re-encoded streams


def _reencoded_sound(frames, target):
    """Yield packets of re-encoded sound; only whole frames that begin within the span."""
    for piece in resampled(frames, target.codec_context):
        yield from ((packet.dts * packet.time_base, packet) for packet in target.encode(piece))
    yield from ((packet.dts * packet.time_base, packet) for packet in target.encode(None))


def _add_subtitles(output, stream, encoder):
    target = output.add_stream(encoder)
    if not stream.codec_context.is_open:  # opening makes the header that the encoder needs
        stream.codec_context.open()
    target.codec_context.subtitle_header = stream.codec_context.subtitle_header
    target.time_base = target.codec_context.time_base = stream.time_base
    return target


def _reencoded_subtitles(packets, stream, target, span):
    """Yield subtitles converted to another codec."""
    for time, packet in _trimmed_subtitles(packets, target, span):
        try:
            shown = stream.codec_context.decode2(packet)
        except av.FFmpegError:
            LOG.warning("a damaged subtitle at %.1f s is left out", float(time))
            continue
        if shown is not None:
            words = target.codec_context.encode_subtitle(shown)
            words.pts, words.dts, words.duration = packet.pts, packet.dts, packet.duration
            words.time_base, words.stream = packet.time_base, target
            yield time, words
