"""Joined parts have the frames of a single piece and the times of the source, and are reproducible."""

from fractions import Fraction

import av
import numpy as np
import pytest

from ldm import video
from ldm.video import Source, VideoError, choose_format, join, probe, read, write_part
from tests.marks import mostly_slow
from tests.video.clips import frames_of, leftovers, save
from tests.video.films import UNEVEN, film, packets_of, through

X265 = {"x265-params": "log-level=none"}
KINDS = {  # name of the output: arguments of the source, options of the output
    "h264.mp4": ({}, {}),
    "h264.mkv": ({}, {}),
    "h264.mov": ({}, {}),
    "rgb.mp4": ({}, {"lossless": True}),
    "hevc.mp4": ({"codec": "libx265", "pix_fmt": "yuv420p10le", "encoder": X265}, {}),
    "hevc.mkv": ({"codec": "libx265", "pix_fmt": "yuv420p10le", "encoder": X265}, {}),
    "ffv1.mkv": ({"codec": "ffv1", "pix_fmt": "gbrp16le"}, {"lossless": True}),
    "prores.mov": ({"codec": "ffv1", "pix_fmt": "bgra"}, {}),
    "folder": ({"codec": "ffv1", "pix_fmt": "gbrap16le"}, {}),
}


def frames_as_int(source, *span):
    return np.stack(list(read(source, *span))).astype(int)


@pytest.mark.parametrize("name", KINDS)
def test_parts_give_the_frames_of_one_piece_reproducibly(tmp_path, name):
    made, options = KINDS[name]
    source = probe(film(tmp_path / "in.mkv", 40, **made))
    outputs = [tmp_path / folder / name for folder in ("whole", "cut", "again")]
    for output, cuts in zip(outputs, ((), (1, 2, 17), (1, 2, 17)), strict=True):
        output.parent.mkdir()
        through(source, output, cuts=cuts, **options)
    files = [sorted(output.iterdir()) if output.is_dir() else [output] for output in outputs]
    assert [file.read_bytes() for file in files[1]] == [file.read_bytes() for file in files[2]]
    whole, cut = (frames_as_int(output) for output in outputs[:2])
    assert cut.shape == whole.shape == (40, 48, 64, probe(outputs[0]).alpha + 3)
    lossy = name.startswith(("h264", "hevc"))  # each part starts a new prediction, which differs slightly
    assert np.abs(cut - whole).mean() < (0.02 * whole.max() if lossy else 1e-9)
    full = 1 if whole.max() < 256 else 257
    wanted = frames_as_int(source) * (257 if full > 1 and source.depth == 8 else 1)
    assert np.abs(cut - wanted).mean() < (6 * full if lossy else full)


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@mostly_slow("count", [3, 1, 2, 9])
def test_a_part_is_reproducible(tmp_path, codec, count):
    source = Source("video", tmp_path / "in", count, 64, 48, Fraction(25))
    chosen = choose_format(source, "o.mp4", size=(48, 64), codec=codec, depth=10 if codec == "hevc" else 8)
    made = set()
    for _ in range(6):
        write_part(tmp_path / "part", frames_of(count), chosen)
        made.add((tmp_path / "part").read_bytes())
    assert len(made) == 1


def test_the_number_of_threads_does_not_depend_on_the_machine(tmp_path):
    chosen = choose_format(Source("video", tmp_path / "in", 1, 64, 640, Fraction(25)), "o.mp4", size=(640, 64))
    write_part(tmp_path / "part", frames_of(1, 640, 64), chosen)
    assert b" threads=4 " in (tmp_path / "part").read_bytes()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("late", [0, 9000])
@mostly_slow("cuts", [(1, 5), (), (4,)])
def test_frames_keep_the_times_of_the_source(tmp_path, suffix, late, cuts):
    source = probe(film(tmp_path / "in.mp4", times=[time + late for time in UNEVEN], encoder={"bf": "3"}))
    assert source.times == tuple(time + late for time in UNEVEN)
    through(source, tmp_path / f"out.{suffix}", cuts=cuts)
    made = probe(tmp_path / f"out.{suffix}")
    slack = Fraction(1, 2000) if suffix == "mkv" else 0
    assert made.frames == source.frames == 12
    assert all(abs(made.seconds(number) - source.seconds(number)) <= slack for number in range(12))
    for number, frame in enumerate(read(made)):
        distances = [np.abs(frame.astype(int) - other).mean() for other in read(source)]
        assert int(np.argmin(distances)) == number


def test_decoding_times_increase_and_precede_presentation(tmp_path):
    source = probe(film(tmp_path / "in.mp4", 60, times=[number * 3003 + number % 3 * 700 for number in range(60)]))
    through(source, tmp_path / "out.mp4", cuts=(1, 2, 31))
    with av.open(str(tmp_path / "out.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    stamps = [packet.dts for packet in packets]
    assert all(later > earlier for earlier, later in zip(stamps, stamps[1:], strict=False))
    assert all(packet.dts <= packet.pts for packet in packets)
    assert any(packet.dts < packet.pts for packet in packets)
    assert [packet.is_keyframe for packet in packets[:3]] == [True] * 3


@mostly_slow("rate", [Fraction(24000, 1001), Fraction(25, 2), Fraction(30000, 1001), 25], fast=2)
@pytest.mark.parametrize("way", [("mkv", "mp4"), ("mkv", "mkv"), ("mp4", "mkv"), ("mp4", "mov")])
def test_constant_rates_stay_exact(tmp_path, rate, way):
    through(film(tmp_path / f"in.{way[0]}", 31, rate=rate), tmp_path / f"out.{way[1]}", cuts=(7,))
    assert probe(tmp_path / f"out.{way[1]}").rate == rate
    lossless = tmp_path / "lossless.mkv"
    through(tmp_path / f"in.{way[0]}", lossless, cuts=(7,), codec="ffv1")
    assert probe(lossless).rate == rate


@pytest.mark.parametrize("span", [(0, 5), (3, 9), (7, None), (11, None)])
def test_a_span_starts_at_the_time_of_the_source(tmp_path, span):
    source = probe(film(tmp_path / "in.mp4", times=[time + 9000 for time in UNEVEN]))
    through(source, tmp_path / "out.mp4", span=span)
    made, wanted = probe(tmp_path / "out.mp4"), source.times[slice(*span)]
    assert [made.seconds(number) for number in range(made.frames)] == [
        Fraction(time - wanted[0] + 9000, 90000) for time in wanted
    ]


@mostly_slow("count", [1, 2, 3])
@mostly_slow("size", [(47, 65), (48, 64), (33, 17)])
@pytest.mark.parametrize("name", ["o.mp4", "o.mkv", "o.mov", "p.mov", "f.mkv", "folder"])
def test_short_and_odd_videos(tmp_path, count, size, name):
    deep = {} if name[0] == "o" else {"pix_fmt": "yuv444p16le"}
    source = probe(film(tmp_path / "in.mkv", count, codec="ffv1", size=size, **{"pix_fmt": "yuv444p", **deep}))
    codec = {"p.mov": "prores", "f.mkv": "ffv1"}.get(name)
    through(source, tmp_path / name, factor=2, codec=codec)
    made = probe(tmp_path / name)
    assert (made.frames, made.height, made.width) == (count, 2 * size[0], 2 * size[1])
    assert len(list(read(made))) == count


def test_names_of_images_are_kept_across_parts(tmp_path):
    names = ("a9.png", "a10.png", "b.png")
    for name, frame in zip(names, frames_of(3), strict=True):
        save(tmp_path / "in" / name, frame)
    through(tmp_path / "in", tmp_path / "out", cuts=(2,))
    assert probe(tmp_path / "out").names == names
    np.testing.assert_array_equal(list(read(tmp_path / "out")), list(read(tmp_path / "in")))
    through(tmp_path / "in" / "b.png", tmp_path / "one.png", factor=2)
    assert probe(tmp_path / "one.png").width == 128
    through(film(tmp_path / "in.mp4", 3), tmp_path / "counted", cuts=(1,))
    assert probe(tmp_path / "counted").names == ("00000000.png", "00000001.png", "00000002.png")


def parts_of(tmp_path, source, chosen, edges):
    parts = [tmp_path / "parts" / str(begin) for begin in edges[:-1]]
    for part, begin, end in zip(parts, edges, edges[1:], strict=False):
        assert write_part(part, read(source, begin, end), chosen) == end - begin
    return parts


def test_incomplete_parts_are_refused(tmp_path):
    source, output = probe(film(tmp_path / "in.mp4")), tmp_path / "out" / "o.mp4"
    chosen = choose_format(source, output, size=(48, 64))
    parts = parts_of(tmp_path, source, chosen, (0, 4, 12))
    foreign = tmp_path / "parts" / "foreign"
    write_part(foreign, read(source, 4, 12), choose_format(source, output, size=(48, 64), lossless=True))
    broken = tmp_path / "parts" / "broken"
    broken.write_bytes(parts[1].read_bytes()[:2000])
    small = tmp_path / "parts" / "small"
    write_part(small, frames_of(8, 32, 32), choose_format(source, output, size=(32, 32)))
    for given, message in (
        (parts[:1], "hold 4 frames, expected 12"), ([*parts, parts[0]], "hold 16 frames"), ([], "no parts"),
        ([parts[0], tmp_path / "none"], "no part .*none"), ([parts[0], foreign], "foreign: was encoded in another way"),
        ([parts[0], broken], "broken: cannot be read"), ([parts[0], small], "32x32, expected 64x48"),
    ):  # fmt: skip
        with pytest.raises(VideoError, match=message) as caught:
            join(given, output, source=source, format=chosen)
        assert "\n" not in str(caught.value)
        assert not output.parent.exists()
    with pytest.raises(VideoError, match="the input"):
        join(parts, source.path, source=source, format=chosen)
    join(parts, output, source=source, format=chosen)
    assert probe(output).frames == 12 and leftovers(tmp_path) == []


def test_a_part_is_written_atomically(tmp_path):
    source = probe(film(tmp_path / "in.mp4"))
    for name in ("o.mp4", "folder"):
        chosen = choose_format(source, tmp_path / name, size=(48, 64))

        def failing():
            yield from read(source, 0, 3)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_part(tmp_path / "parts" / "0", failing(), chosen)
        assert not (tmp_path / "parts").exists()
        with pytest.raises(VideoError, match="no frame was written"):
            write_part(tmp_path / "parts" / "0", [], chosen)


def test_a_failed_join_keeps_the_existing_file(tmp_path, monkeypatch):
    source = probe(film(tmp_path / "in.mp4", sound="aac"))
    through(source, tmp_path / "o.mp4")
    before = (tmp_path / "o.mp4").read_bytes()
    monkeypatch.setattr(video.joining, "add_titles", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        through(source, tmp_path / "o.mp4")
    assert (tmp_path / "o.mp4").read_bytes() == before and leftovers(tmp_path) == []


def test_hevc_has_the_tag_of_apple_players(tmp_path):
    source = film(tmp_path / "in.mp4", 3)
    for name in ("o.mp4", "o.mov"):
        through(source, tmp_path / name, codec="hevc", cuts=(1,))
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.video[0].codec_context.codec_tag == "hvc1"
        assert packets_of(tmp_path / name, "video")[1] == "hevc"
