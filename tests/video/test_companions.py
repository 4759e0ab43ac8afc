"""Sound, subtitles, chapters, titles and attachments: they arrive as they were, cut to what is shown."""

from fractions import Fraction

import av
import pytest

from ldm.video import companions, probe
from ldm.video.companions import Span
from tests.video.films import UNEVEN, film, packets_of, through

SOUNDS = {"mp4": ["aac", "libopus", "mp3"], "mkv": ["libopus", "aac", "pcm_s16le", "flac"], "mov": ["pcm_s16le", "aac"]}
TEXTS = [("mkv", "srt"), ("mkv", "ass"), ("mp4", "mov_text"), ("mov", "mov_text")]


@pytest.mark.parametrize(("suffix", "codec"), [(suffix, codec) for suffix, all_ in SOUNDS.items() for codec in all_])
def test_sound_is_copied(tmp_path, suffix, codec):
    source, output = film(tmp_path / f"in.{suffix}", times=UNEVEN, sound=codec), tmp_path / f"out.{suffix}"
    through(source, output, cuts=(5,))
    assert packets_of(output, "audio") == packets_of(source, "audio")
    assert probe(output).audio == probe(source).audio
    with av.open(str(output)) as container:
        assert container.streams.audio[0].language == "fra"


@pytest.mark.parametrize("way", [("mp4", "aac", "mkv"), ("mkv", "aac", "mp4"), ("mkv", "libopus", "mp4")])
def test_sound_is_copied_across_containers(tmp_path, way):
    source, output = film(tmp_path / f"in.{way[0]}", sound=way[1]), tmp_path / f"out.{way[2]}"
    through(source, output)
    old, new = packets_of(source, "audio"), packets_of(output, "audio")
    assert new[1] == old[1] and [data for _, data in new[0]] == [data for _, data in old[0]]
    assert max(abs(a - b) for (a, _), (b, _) in zip(old[0], new[0], strict=True)) <= Fraction(1, 1000)
    assert probe(output).seconds(0) == 0


@pytest.mark.parametrize(("suffix", "codec"), TEXTS)
def test_subtitles_are_copied(tmp_path, suffix, codec):
    source, output = film(tmp_path / f"in.{suffix}", words=codec), tmp_path / f"out.{suffix}"
    through(source, output, cuts=(5,))
    assert packets_of(output, "subtitles") == packets_of(source, "subtitles")
    assert sum(b"two" in data for _, data in packets_of(output, "subtitles")[0]) == 1


@pytest.mark.parametrize("way", [("mkv", "srt", "mp4"), ("mkv", "ass", "mov"), ("mp4", "mov_text", "mkv")])
@pytest.mark.parametrize("span", [(0, None), (4, 9)])
def test_words_become_what_the_container_holds(tmp_path, way, span):
    source, output = film(tmp_path / f"in.{way[0]}", words=way[1]), tmp_path / f"out.{way[2]}"
    through(source, output, span=span)
    assert probe(output).subtitles == ("subrip" if way[2] == "mkv" else "mov_text",)
    shown = [(float(time), data) for time, data in packets_of(output, "subtitles")[0] if data != bytes(2)]
    expected = [(0, b"one"), (0.12, b"two"), (0.3, b"three")] if span[0] == 0 else [(0, b"two"), (0.14, b"three")]
    assert [time for time, _ in shown] == pytest.approx([time for time, _ in expected], abs=0.001)
    assert all(word in data for (_, data), (_, word) in zip(shown, expected, strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_span_takes_its_stretch_of_everything(tmp_path, suffix):
    words = {"mp4": "mov_text", "mkv": "srt"}[suffix]
    chapters = [(0, 0.1, "before"), (0.1, 0.2, "across"), (0.2, 0.48, "rest")]
    source = film(tmp_path / f"in.{suffix}", sound="aac", words=words, chapters=chapters)
    through(source, tmp_path / f"out.{suffix}", span=(4, 9))  # from 0.16 s to 0.36 s
    times = [float(time) for time, _ in packets_of(tmp_path / f"out.{suffix}", "audio")[0]]
    assert 0 <= times[0] < 0.022 and 0.17 < times[-1] < 0.2
    old, new = (dict(packets_of(path, "audio")[0]) for path in (source, tmp_path / f"out.{suffix}"))
    assert set(new.values()) <= set(old.values())
    shown = [(round(float(time), 2), data) for time, data in packets_of(tmp_path / f"out.{suffix}", "subtitles")[0]]
    assert [(time, data[-3:]) for time, data in shown if len(data) > 2] == [(0.0, b"two"), (0.14, b"ree")]
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        found = [(c["metadata"]["title"], float(c["start"] * c["time_base"])) for c in container.chapters()]
        ends = [float(c["end"] * c["time_base"]) for c in container.chapters()]
    assert [title for title, _ in found] == ["across", "rest"]
    assert [start for _, start in found] + ends == pytest.approx([0, 0.04, 0.04, 0.2], abs=0.002)


def test_sound_that_does_not_fit_becomes_aac(tmp_path):
    source = film(tmp_path / "in.mkv", 50, sound="libopus", times=[number * 3600 for number in range(50)])
    through(source, tmp_path / "out.mov", cuts=(20,))
    made = probe(tmp_path / "out.mov")
    assert made.audio == ("aac",)
    through(source, tmp_path / "part.mov", span=(25, 50))
    for name, seconds in (("out.mov", 2.0), ("part.mov", 1.0)):
        with av.open(str(tmp_path / name)) as container:
            stream = container.streams.audio[0]
            samples = sum(frame.samples for frame in container.decode(stream))
            assert (stream.sample_rate, stream.layout.name) == (48000, "stereo")
        assert samples / 48000 == pytest.approx(seconds + 0.06, abs=0.08)
        assert abs(packets_of(tmp_path / name, "audio")[0][0][0]) < 0.03
    again = tmp_path / "again.mov"
    through(source, again, cuts=(20,))
    assert again.read_bytes() == (tmp_path / "out.mov").read_bytes()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_titles_and_chapters_are_kept_and_tags_added(tmp_path, suffix):
    chapters = [(0, 0.2, "one"), (0.2, 0.48, "two")]
    source = film(tmp_path / f"in.{suffix}", tags={"title": "Ünïcode", "artist": "A"}, chapters=chapters)
    for name, metadata in (("plain", None), ("tagged", {"ldm_seed": "7", "comment": "x=y z"})):
        output = tmp_path / f"{name}.{suffix}"
        through(source, output, metadata=metadata)
        with av.open(str(output)) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
            found = [(c["metadata"]["title"], float(c["start"] * c["time_base"])) for c in container.chapters()]
        assert (tags["title"], tags["artist"]) == ("Ünïcode", "A")
        assert not metadata or {key: tags[key] for key in metadata} == metadata
        assert found == [("one", 0), ("two", pytest.approx(0.2))]
        assert probe(output).others == ()


def test_attachments_stay_in_matroska(tmp_path):
    source = film(tmp_path / "in.mkv", attachment=b"letters" * 100, words="ass")
    assert probe(source).others == ("attachment letters.ttf",)
    through(source, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        (kept,) = container.streams.attachments
        assert (kept.name, kept.mimetype, kept.data) == ("letters.ttf", "font/ttf", b"letters" * 100)


def test_every_sound_and_subtitle_arrives_in_order(tmp_path):
    source = film(tmp_path / "one.mkv", sound="flac", words="srt")
    with av.open(str(source)) as old, av.open(str(tmp_path / "two.mkv"), "w") as new:
        pairs = [(s, new.add_stream_from_template(s)) for s in (old.streams[i] for i in (0, 2, 1, 1, 2))]
        for stream, target in pairs:
            with av.open(str(source)) as again:
                for packet in again.demux(again.streams[stream.index]):
                    if packet.size:
                        packet.stream = target
                        new.mux(packet)
    assert probe(tmp_path / "two.mkv").subtitles == ("subrip",) * 2
    through(tmp_path / "two.mkv", tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [stream.type for stream in container.streams] == ["video", "subtitle", "audio", "audio", "subtitle"]
    for kind in ("audio", "subtitles"):
        assert packets_of(tmp_path / "out.mkv", kind, 1) == packets_of(source, kind)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_broadcasts_begin_at_zero_with_their_sound(tmp_path, suffix):
    """The clock of a transport stream may begin anywhere; its sound stays in step, and is told apart from ADTS."""
    late = [time + 900_000 for time in UNEVEN]
    source = film(tmp_path / "in.ts", times=late, sound="aac", sound_delay=10)
    looked = probe(source)
    assert (looked.seconds(0), looked.audio) == (pytest.approx(0.021, abs=0.001), ("aac",))
    through(source, tmp_path / f"out.{suffix}")
    made = probe(tmp_path / f"out.{suffix}")
    assert float(made.seconds(0)) == pytest.approx(0.021, abs=0.002)
    old, new = packets_of(source, "audio")[0], packets_of(tmp_path / f"out.{suffix}", "audio")[0]
    assert len(old) == len(new)
    starts = {path: packets_of(path, "audio")[0][0][0] for path in (source, tmp_path / f"out.{suffix}")}
    pictures = {source: Fraction(10), tmp_path / f"out.{suffix}": made.seconds(0)}
    assert len({round(float(starts[path] - pictures[path]), 2) for path in starts}) == 1
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) > 30_000


def test_a_clock_that_goes_back_is_moved_on(tmp_path):
    packets = []
    for time in (0, 1024, 1000, 3072):
        packet = av.Packet(b"sound")
        packet.pts = packet.dts = time
        packet.time_base = Fraction(1, 48000)
        packets.append(packet)
    with av.open(str(tmp_path / "out.mkv"), "w") as container:
        target = container.add_stream("flac", rate=48000)
        found = [packet.dts for _, packet in companions.copied_packets(packets, target, Span(None, None, Fraction(0)))]
    assert found == [0, 1024, 1025, 3072]
