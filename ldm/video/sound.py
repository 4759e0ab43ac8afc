"""Re-encode sound: fill gaps, which would shift it, and convert it to rates and layouts that the encoder supports."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from ldm.video.source import VideoError

ENCODER = "aac"
MOST_RATE = 48000
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}  # FFmpeg's by default
TOLERANCE = Fraction(1, 100)  # seconds; what files round times by is less
LOG = logging.getLogger(__name__)


class SoundForm(NamedTuple):
    """Samples per second and layout of channels."""

    rate: int
    layout: str


def encoded_form(context) -> SoundForm | None:
    """Return the nearest rate and layout that the encoder supports, from a decoder's context; None if none."""
    if not context.sample_rate or not context.layout.nb_channels:
        return None
    rates = sorted(av.codec.Codec(ENCODER, "w").audio_rates)
    rate = next((rate for rate in rates if rate >= min(context.sample_rate, MOST_RATE)), MOST_RATE)
    own = known_layout(context.layout)
    candidates = [own, *(["5.1"] if context.layout.nb_channels > 5 else []), "stereo", "mono"]
    return next((SoundForm(rate, layout) for layout in candidates if _encodes(rate, layout)), None)


def known_layout(layout) -> str:
    """Return the name of a layout; if its order is unknown, that of the usual one for its number of channels."""
    if "channels" not in layout.name:
        return layout.name
    return LAYOUTS.get(layout.nb_channels, LAYOUTS[8] if layout.nb_channels > 8 else "mono")


def _encodes(rate, layout):
    """Whether the encoder opens for this form."""
    context = av.CodecContext.create(ENCODER, "w")
    context.sample_rate, context.layout, context.format = rate, layout, context.codec.audio_formats[0].name
    try:
        context.open()
    except (av.FFmpegError, ValueError):
        return False
    return True


def resampled(frames, encoder) -> Iterator[av.AudioFrame]:
    """Yield frames of sound with the form and size that an encoder needs; the form of the input may change."""
    options = {"format": encoder.format.name, "layout": encoder.layout.name, "rate": encoder.sample_rate}
    resampler, form = None, None
    for frame in frames:
        now = frame.format.name, frame.layout.name, frame.sample_rate
        if now != form:
            yield from resampler.resample(None) if resampler else ()
            resampler, form = av.AudioResampler(**options, frame_size=encoder.frame_size), now
        yield from resampler.resample(frame)
    yield from resampler.resample(None) if resampler else ()


def sounding(path, packets, span) -> Iterator[av.AudioFrame]:
    """Yield the frames of sound that begin within a span, consecutive, at their times in the output.

    Gaps, such as those of damaged packets, are filled with silence; overlaps are cut off.
    """
    timeline, damaged = _SoundTimeline(), []
    for frame in _decoded(packets, damaged):
        time = timeline.end if frame.pts is None else frame.pts * frame.time_base - span.shift
        if span.finish is not None and time + span.shift >= span.finish:
            break
        if span.begin is None or time + span.shift >= span.begin:
            yield from timeline.add(frame, time)
    if damaged:
        LOG.warning("%s: %d damaged packets of its sound are silent now", path, len(damaged))


def _decoded(packets, damaged):
    """Yield the frames of packets; packets that cannot be decoded are appended to the list `damaged`."""
    for packet in packets:
        try:
            frames = packet.decode()
        except (av.FFmpegError, OSError):
            damaged.append(packet)
            continue
        yield from frames


class _SoundTimeline:
    """Makes frames of sound consecutive: fills gaps with silence and cuts off overlaps."""

    def __init__(self):
        self.rate, self.samples, self.end = None, 0, Fraction(0)  # of the output; `samples` at `rate` since its start

    def add(self, frame, time):
        """Yield the frames to write for a frame at `time` in the output."""
        if self.rate is None:
            self.end = time
        if frame.sample_rate != self.rate:
            self.rate, self.samples = frame.sample_rate, round(self.end * frame.sample_rate)
        samples = _samples_of(frame)
        gap = round((time - self.end) * self.rate)
        while gap > TOLERANCE * self.rate:
            count = min(gap, self.rate)
            yield self._placed(np.full((count, samples.shape[1]), _zero(samples.dtype), samples.dtype), frame)
            gap -= count
        if -gap > TOLERANCE * self.rate:
            samples = samples[-gap:]
        if len(samples):
            yield self._placed(samples, frame)

    def _placed(self, samples, like):
        """Return samples as a frame with the form of another, after the frames so far."""
        layout, packed = known_layout(like.layout), not like.format.is_planar
        samples = samples[:, : av.AudioLayout(layout).nb_channels]
        data = samples.reshape(1, -1) if packed else samples.T
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=like.format.name, layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), self.samples
        self.samples += len(samples)
        self.end = Fraction(self.samples, self.rate)
        return frame


def _samples_of(frame):
    """Return the samples of a frame as (count, channels)."""
    data = frame.to_ndarray()
    return data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels)


def _zero(dtype):
    """Return the sample value of silence."""
    return 128 if dtype == np.uint8 else 0


def add_sound(output, context) -> av.AudioStream:
    """Add an encoder for a sound to an output container. Raises VideoError if it cannot be encoded."""
    form = encoded_form(context)
    if form is None:
        raise VideoError("the sound has no rate or no channels, expected one that can be played")
    target = output.add_stream(ENCODER, rate=form.rate)
    target.codec_context.layout = form.layout
    target.codec_context.time_base = Fraction(1, form.rate)
    return target
