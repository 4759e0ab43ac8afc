"""Frames, times and sound of any input arrive as they were, to one tick of the container: drawn at random."""

from fractions import Fraction

import av
import numpy as np

from ldm.video import probe, read
from tests.marks import mostly_slow
from tests.video.films import TICK, film, packets_of, through

RATES = (
    Fraction(24),
    Fraction(24000, 1001),
    Fraction(25),
    Fraction(30000, 1001),
    Fraction(50),
    Fraction(15),
    Fraction(12.5),
)


def drawn(rng):
    """(number of frames, times in ticks, rate): a steady rate or gaps, from a start that may be late."""
    count, rate = int(rng.integers(4, 24)), RATES[rng.integers(len(RATES))]
    steps = np.full(count, round(1 / rate / TICK))
    if rng.random() < 0.6:  # gaps and other intervals
        steps = steps * rng.choice([1, 1, 1, 2, 5], count) + rng.integers(0, 300, count)
    start = int(rng.choice([0, 0, 3003, 45000]))
    return count, [int(time) for time in start + np.cumsum(steps) - steps[0]], rate


def close(found, wanted, tick):
    """Whether times differ by no more than a tick, and half of one of the source's for its own rounding."""
    return len(found) == len(wanted) and all(abs(a - b) <= tick for a, b in zip(found, wanted, strict=True))


@mostly_slow("seed", list(range(64)), fast=8)
def test_frames_times_and_sound_arrive(tmp_path, seed):
    rng = np.random.default_rng(seed)
    count, times, rate = drawn(rng)
    suffixes = ("mp4", "mkv", "mov")
    before, after = suffixes[rng.integers(3)], suffixes[rng.integers(3)]
    made = {"encoder": {"bf": str(rng.integers(0, 4)), "g": str(rng.integers(1, 12)), "crf": "1"}, "rate": rate}
    delay = float(rng.choice([0, 0, 0.1, 0.25]))
    if times[-1] * TICK > delay + 0.2:
        made |= {"sound": "aac", "sound_delay": Fraction(delay)}
    source = probe(film(tmp_path / f"in.{before}", count, times=times, **made))
    cut = int(rng.integers(1, count))
    through(source, tmp_path / f"out.{after}", cuts=(cut,), crf=1)
    result = probe(tmp_path / f"out.{after}")
    tick = max(result.time_base, Fraction(1, 1000) if "mkv" in (before, after) else source.time_base)
    assert close([result.seconds(k) for k in range(count)], [source.seconds(k) for k in range(count)], tick)
    order = [frame[..., 1].mean() for frame in read(source)], [frame[..., 1].mean() for frame in read(result)]
    assert np.abs(np.subtract(*order)).max() < 3
    assert result.audio == source.audio
    if source.audio:
        old, new = (packets_of(path, "audio")[0] for path in (source.path, result.path))
        assert [data for _, data in new] == [data for _, data in old]
        with av.open(str(result.path)) as container:
            tick = max(tick, container.streams.audio[0].time_base)
        assert close([time for time, _ in new], [time for time, _ in old], tick)


@mostly_slow("seed", list(range(24)), fast=3)
def test_a_span_begins_when_the_source_did(tmp_path, seed):
    rng = np.random.default_rng(100 + seed)
    count, times, rate = drawn(rng)
    source = probe(film(tmp_path / "in.mkv", count, times=times, rate=rate))
    start = int(rng.integers(0, count - 1))
    stop = int(rng.integers(start + 1, count + 1))
    through(source, tmp_path / "out.mp4", span=(start, stop))
    made = probe(tmp_path / "out.mp4")
    wanted = [source.seconds(k) - source.seconds(start) + source.seconds(0) for k in range(start, stop + 1)]
    assert close([made.seconds(k) for k in range(made.frames + 1)], wanted, Fraction(1, 500))
