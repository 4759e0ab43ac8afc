"""Clocks that start again and time stamps that do not rise are mended by the smallest repair."""

from fractions import Fraction

import av
import pytest

from ldm.video import probe
from ldm.video.clock import rising
from tests.video.films import UNEVEN, film, packets_of, through


@pytest.mark.parametrize(("times", "mended", "moved"), [
    ((0, 10, 20), (0, 10, 20), 0),
    ((0, 10, 10, 30), (0, 10, 20, 30), 1),  # doubled
    ((0, 7, 3, 30, 31), (0, 1, 3, 30, 31), 1),  # out of order
    ((0, 10, 900, 30, 40), (0, 10, 20, 30, 40), 1),  # far off
    ((0, None, 20, 30), (0, 10, 20, 30), 1),  # not known
    ((0, 10, 20, 20), (0, 10, 20, 30), 1),  # the last
    ((50, 10, 20, 30), (0, 10, 20, 30), 1),  # the first
    ((9, 8, 7, 6), None, 3),
    ((0, 1, 1, 2), None, 1),  # no room between
])  # fmt: skip
def test_as_few_stamps_as_possible_are_moved(times, mended, moved):
    assert rising(times) == (mended, moved)


def test_one_doubled_stamp_keeps_the_times_of_all_others(tmp_path):
    source = film(tmp_path / "in.mkv", times=UNEVEN, codec="ffv1", pix_fmt="bgr0")
    with av.open(str(source)) as old, av.open(str(tmp_path / "doubled.mkv"), "w") as new:
        target = new.add_stream_from_template(old.streams.video[0], opaque=True)
        packets = [packet for packet in old.demux(video=0) if packet.size]
        packets[6].pts = packets[6].dts = packets[5].pts
        for packet in packets:
            packet.stream = target
            new.mux(packet)
    looked, whole = probe(tmp_path / "doubled.mkv"), probe(source)
    assert looked.frames == 12 and "1 of 12 time stamps" in looked.notes[0]
    assert sum(a != b for a, b in zip(looked.times, whole.times, strict=True)) == 1


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """Two recordings of a camera, one behind the other; the second begins at the same time as the first."""
    folder = tmp_path_factory.mktemp("clock")
    parts = [film(folder / f"{k}.ts", 15, sound="aac", encoder={"bf": "0"}).read_bytes() for k in range(2)]
    (folder / "joined.ts").write_bytes(b"".join(parts))
    return folder / "joined.ts"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_clock_that_starts_again_goes_on_with_one_offset(tmp_path, joined, suffix):
    source = probe(joined)
    assert source.frames == 30 and "its clock starts again 1 times" in source.notes[0]
    steps = {b - a for a, b in zip(source.times[:14], source.times[1:15], strict=True)}
    assert steps == {3600} and set(b - a for a, b in zip(source.times[15:], source.times[16:], strict=False)) == {3600}
    through(source, tmp_path / f"out.{suffix}", cuts=(7, 20))
    times = [float(time) for time, _ in packets_of(tmp_path / f"out.{suffix}", "audio")[0]]
    assert min(b - a for a, b in zip(times, times[1:], strict=False)) > 0.015
    assert times[-1] == pytest.approx(source.seconds(30) - Fraction(1, 40), abs=0.1)


def test_pictures_and_sound_stay_together_behind_the_restart(tmp_path, joined):
    through(joined, tmp_path / "out.mp4")
    made = probe(tmp_path / "out.mp4")
    second = made.seconds(15) - made.seconds(0)
    sound = [time for time, _ in packets_of(tmp_path / "out.mp4", "audio")[0]]
    half = len(sound) // 2
    assert float(sound[half] - sound[0]) == pytest.approx(float(second), abs=0.03)


def test_a_leap_is_closed_and_a_pause_of_the_pictures_is_not(tmp_path):
    late = [number * 3600 + 90000 * 5000 for number in range(10)]
    parts = [film(tmp_path / "0.ts", 10), film(tmp_path / "1.ts", 10, times=late)]
    (tmp_path / "leap.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    source = probe(tmp_path / "leap.ts")
    assert source.frames == 20 and float(source.seconds(20)) < 1.2
    slides = [0, 3600, 90000 * 12, 90000 * 12 + 3600]  # nothing moves for 12 seconds
    source = probe(film(tmp_path / "slides.ts", 4, times=slides, sound="aac", encoder={"bf": "0"}))
    assert source.clock == () and float(source.seconds(2) - source.seconds(0)) == pytest.approx(12)
