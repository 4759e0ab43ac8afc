"""What goes along with the pictures of a source: sound, subtitles, attachments, chapters, titles; cut to a span."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av

from ldm.video.formats import encoder_of, fits
from ldm.video.probing import codec_name, open_container
from ldm.video.sinks import BITEXACT
from ldm.video.source import Source, VideoError

MOST_AAC_RATE = 48000
# what containers say of themselves, or of the file they were written to
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
    """The stretch of a file that is written, in seconds of its own clock, and by how much it moves forward.

    None: no bound.
    """

    begin: Fraction | None
    finish: Fraction | None
    shift: Fraction

    @classmethod
    def of(cls, source: Source, start, stop) -> "Span":
        """Of frames `start` to `stop`: the first of them comes when the first of the source did."""
        last = source.frames is None or stop >= source.frames
        begin, shift = source.origin + source.seconds(start), source.seconds(start) - source.seconds(0)
        return cls(
            begin if start else None, None if last else source.origin + source.seconds(stop), source.origin + shift
        )


class Companion(NamedTuple):
    """A stream of the source beside its pictures, and the one it becomes in the output."""

    path: object
    index: int
    target: av.stream.Stream
    kind: str
    encoder: str | None

    def packets(self, span: Span) -> Iterator[tuple[Fraction, av.Packet]]:
        """(seconds, packet) for the output, in order of time; read anew from the source.

        Raises:
            VideoError: the source is damaged in this stream.
        """
        with open_container(self.path) as container:
            stream = container.streams[self.index]
            try:
                if self.encoder == "aac":
                    yield from _sound(stream, self.target, span)
                elif self.encoder:
                    yield from _words(stream, self.target, span)
                else:
                    yield from (_cut if self.kind == "subtitle" else _kept)(container.demux(stream), self.target, span)
            except av.FFmpegError as error:
                name = codec_name(stream)
                raise VideoError(f"{self.path}: its {self.kind} ({name}) is damaged ({error.strerror})") from None


def add_companions(output, source: Source, container) -> list[Companion]:
    """Add to an output container every stream of the source that fits, or can be encoded into one that does.

    `output` is the opened container, `container` FFmpeg's name of it. What is left out `losses` has named. Attachments
    travel in the header and are not among the returned.
    """
    if source.kind != "video":
        return []
    found = []
    with open_container(source.path) as old:
        for stream in old.streams:
            whole = fits(stream, container)
            encoder = None if whole else encoder_of(stream, container)
            if encoder == "aac":
                target = _add_sound(output, stream)
            elif encoder:
                target = _add_words(output, stream, encoder)
            elif whole:
                target = output.add_stream_from_template(stream)
            else:
                continue
            target.metadata.update(_tags(stream.metadata))
            target.disposition = int(stream.disposition)
            if stream.type != "attachment":
                found.append(Companion(source.path, stream.index, target, stream.type, encoder))
    return found


def add_titles(output, source: Source, span: Span, metadata):
    """Give an output the tags and chapters of the source, and the tags in `metadata`."""
    if source.kind == "video":
        with open_container(source.path) as old:
            output.metadata.update(_tags(old.metadata))
            output.set_chapters([moved for chapter in old.chapters() if (moved := _moved(chapter, span))])
    output.metadata.update(metadata)


def _tags(metadata):
    return {key: value for key, value in metadata.items() if key.lower() not in TECHNICAL_TAGS and key[:1] != "_"}


def _moved(chapter, span):
    """A chapter in the time of the output, cut to the span; None if nothing is left."""
    unit = chapter["time_base"]
    start, end = max(chapter["start"] * unit, span.begin or 0), chapter["end"] * unit
    end = end if span.finish is None else min(end, span.finish)
    if end <= start:
        return None
    times = {"start": round((start - span.shift) / unit), "end": round((end - span.shift) / unit)}
    return chapter | times


# ---------------------------------------------------------------------------------------------------- as they are


def _kept(packets, target, span):
    """Packets that begin within the span."""
    last = None
    for packet in packets:
        begins = packet.dts if packet.pts is None else packet.pts
        if packet.size == 0 or begins is None:
            continue
        time = begins * packet.time_base
        if span.finish is not None and time >= span.finish:
            return
        if span.begin is None or time >= span.begin:
            placed = _placed(packet, target, span, last)
            last = packet.dts  # now, for the muxer changes its unit
            yield placed


def _placed(packet, target, span, last=None):
    """(seconds, packet) in the output; a damaged clock that stands still, or goes back, is moved on by one tick."""
    shift = round(span.shift / packet.time_base)
    packet.dts = (packet.pts if packet.dts is None else packet.dts) - shift
    packet.pts = packet.dts if packet.pts is None else packet.pts - shift
    if last is not None and packet.dts <= last:
        packet.dts, packet.pts = last + 1, max(packet.pts, last + 1)
    packet.stream = target
    return packet.dts * packet.time_base, packet


def _cut(packets, target, span):
    """Subtitles that are shown within the span, shown for no longer than it lasts."""
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
        yield _placed(packet, target, span)


# ---------------------------------------------------------------------------------------------------- encoded anew


def _add_sound(output, stream):
    old = stream.codec_context
    target = output.add_stream("aac", rate=min(old.sample_rate, MOST_AAC_RATE))
    target.codec_context.layout = old.layout.name
    target.codec_context.flags |= BITEXACT
    target.codec_context.time_base = Fraction(1, target.codec_context.sample_rate)
    return target


def _sound(stream, target, span):
    """Sound decoded and encoded anew; whole frames of it that begin within the span."""
    encoder = target.codec_context
    options = {"format": encoder.format.name, "layout": encoder.layout.name, "rate": encoder.sample_rate}
    resampler = av.AudioResampler(**options, frame_size=encoder.frame_size)
    for frame in chain(_sounding(stream, span), [None]):
        for piece in resampler.resample(frame):
            yield from ((packet.dts * packet.time_base, packet) for packet in target.encode(piece))
    yield from ((packet.dts * packet.time_base, packet) for packet in target.encode(None))


def _sounding(stream, span):
    """Frames of sound that begin within the span, at their times in the output."""
    heard = Fraction(0)  # until when; frames without a time follow the one before
    for packet in stream.container.demux(stream):
        for frame in packet.decode():
            time = heard if frame.pts is None else frame.pts * frame.time_base
            heard = time + Fraction(frame.samples, frame.sample_rate)
            if span.finish is not None and time >= span.finish:
                return
            if span.begin is None or time >= span.begin:
                frame.time_base = Fraction(1, frame.sample_rate)
                frame.pts = round((time - span.shift) * frame.sample_rate)
                yield frame


def _add_words(output, stream, encoder):
    target = output.add_stream(encoder)
    if not stream.codec_context.is_open:  # opening makes the header that the encoder needs
        stream.codec_context.open()
    target.codec_context.subtitle_header = stream.codec_context.subtitle_header
    target.time_base = target.codec_context.time_base = stream.time_base
    return target


def _words(stream, target, span):
    """Subtitles of one kind as another."""
    for time, packet in _cut(stream.container.demux(stream), target, span):
        shown = stream.codec_context.decode2(packet)
        if shown is not None:
            words = target.codec_context.encode_subtitle(shown)
            words.pts, words.dts, words.duration = packet.pts, packet.dts, packet.duration
            words.time_base, words.stream = packet.time_base, target
            yield time, words
