"""Videos with everything that a file can hold, made through PyAV; and a way to send them through the room."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ldm import video
from tests.video.clips import frames_of

TICK = Fraction(1, 90000)
UNEVEN = (0, 3003, 6006, 12012, 13000, 21000, 24003, 24100, 40000, 43003, 46006, 60000)  # in ticks


def film(path, count=12, *, codec="libx264", pix_fmt="yuv420p", size=(48, 64), times=None, rate=25, **options):
    """A video; `times` in units of TICK, by default even. Further options:

    `encoder`: options of the encoder. `context`: attributes of its context. `turn`: degrees. `sound`, `words`: the
    codec of a sound or subtitle stream. `sound_delay`: seconds. `tags`: of the container. `chapters`: (start, end,
    title) in seconds. `attachment`: the bytes of one. `frames`: av.VideoFrames instead of made-up ones. `format`:
    FFmpeg's name.
    """
    times = [round(number / Fraction(rate) / TICK) for number in range(count)] if times is None else times
    with av.open(str(path), "w", format=options.get("format")) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.options = options.get("encoder", {})
        stream.codec_context.time_base = TICK
        for name, value in options.get("context", {}).items():
            setattr(stream.codec_context, name, value)
        if "turn" in options:
            stream.set_display_rotation(options["turn"])
        sound = _add_sound(container, options["sound"]) if "sound" in options else None
        words = _add_words(container, options["words"]) if "words" in options else None
        if "attachment" in options:
            container.add_attachment("letters.ttf", "font/ttf", options["attachment"])
        container.metadata.update(options.get("tags", {}))
        container.set_chapters([_chapter(number, *entry) for number, entry in enumerate(options.get("chapters", ()))])
        packets = list(_encoded(stream, options.get("frames") or _made_up(count, size, pix_fmt), times))
        seconds = float(times[-1] * TICK) + 0.1
        packets += list(_hummed(sound, seconds, options.get("sound_delay", 0))) if sound else []
        packets += list(_spoken(words)) if words else []
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def _made_up(count, size, pix_fmt):
    reformatter = VideoReformatter()
    for pixels in frames_of(count, *size):
        yield reformatter.reformat(av.VideoFrame.from_ndarray(pixels, format="rgb24"), format=pix_fmt)


def _encoded(stream, frames, times):
    for frame, time in zip(frames, times, strict=True):
        frame.pts, frame.time_base = time, TICK
        yield from stream.encode(frame)
    yield from stream.encode()


def _chapter(number, start, end, title):
    unit = Fraction(1, 1000)
    times = {"start": round(start / unit), "end": round(end / unit)}
    return {"id": number + 1, "time_base": unit, "metadata": {"title": title}, **times}


def _add_sound(container, codec):
    stream = container.add_stream(codec, rate=48000)
    stream.codec_context.layout = "stereo"
    stream.metadata["language"] = "fra"
    return stream


def _hummed(stream, seconds, delay):
    wave = (np.sin(np.arange(int(48000 * (seconds - delay))) / 20) * 8000).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 48000 * delay, Fraction(1, 48000)
    context = stream.codec_context
    resampler = av.AudioResampler(context.format, "stereo", 48000, frame_size=context.frame_size or None)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        yield from stream.encode(piece)
    yield from stream.encode()


WORDS = ((0, 100, "one"), (120, 150, "two"), (300, 150, "three"))  # start and duration in milliseconds
ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,16

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def _add_words(container, codec):
    stream = container.add_stream(codec)
    stream.codec_context.subtitle_header = ASS_HEADER
    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
    return stream


def _spoken(stream):
    for number, (start, duration, text) in enumerate(WORDS):
        data = {
            "ass": f"{number},0,Default,,0,0,0,,{text}".encode(),
            "mov_text": len(text).to_bytes(2, "big") + text.encode(),
        }.get(stream.codec_context.codec.canonical_name, text.encode())
        packet = av.Packet(data)
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts, packet.dts, packet.duration = start, start, duration
        yield packet


def packets_of(path, kind, index=0):
    """(seconds, bytes) of each packet of a stream, and the stream's codec."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[index]
        found = [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]
        return found, stream.codec_context.codec.canonical_name


def through(source, output, *, cuts=(), span=(0, None), factor=1, metadata=None, **options):
    """Send a source to `output` in parts cut at the frames `cuts`, enlarged by repetition; returns the format."""
    source = source if isinstance(source, video.Source) else video.probe(source)
    size = (source.height * factor, source.width * factor)
    chosen = video.choose_format(source, output, size=size, **options)
    start, stop = span[0], source.frames if span[1] is None else span[1]
    edges, parts = [start, *cuts, stop], []
    work = output.parent / f"{output.name}.parts"
    for begin, end in zip(edges, edges[1:], strict=False):
        frames = (frame.repeat(factor, 0).repeat(factor, 1) for frame in video.read(source, begin, end))
        parts.append(work / f"{begin:08d}")
        video.write_part(parts[-1], frames, chosen, names=source.names[begin:end])
    video.join(parts, output, source=source, format=chosen, span=span, metadata=metadata)
    return chosen
