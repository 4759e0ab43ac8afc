"""What cannot be written is found before the work; what is damaged has a way on; sound stays in step."""

import logging
from fractions import Fraction

import av
import numpy as np
import pytest

from ldm.video import VideoError, choose_format, dry_run_output, list_omissions, probe, read
from tests.video.films import film, packets_of, through

TELEVISION = {"context": {"time_base": Fraction(1, 25)}}
SOUNDS = {  # name: (container of the input, codec, rate, layout)
    "pcm in AVI": ("avi", "pcm_s16le", 44100, "stereo"),
    "wma": ("wmv", "wmav2", 44100, "stereo"),
    "adpcm": ("avi", "adpcm_ms", 22050, "mono"),
    "mu-law": ("avi", "pcm_mulaw", 8000, "mono"),
    "odd rate": ("avi", "pcm_u8", 22254, "mono"),
    "low rate": ("avi", "pcm_s16le", 6000, "mono"),
    "four channels": ("avi", "pcm_s16le", 48000, "quad"),
    "six channels": ("mkv", "flac", 48000, "5.1"),
}


def sounding_film(path, codec, rate, layout, *, seconds=0.6, mute=()):
    """A film whose packets of sound of the numbers `mute` are damaged."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        sound = container.add_stream(codec, rate=rate)
        sound.codec_context.layout = layout
        sound.codec_context.bit_rate = 128_000
        for number in range(round(25 * seconds)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * number % 255, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        wave = (np.sin(np.arange(int(rate * seconds)) / 9) * 9000).astype(np.int16)
        channels = av.AudioLayout(layout).nb_channels
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, channels)[None], format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        context = sound.codec_context
        resampler = av.AudioResampler(context.format, layout, rate, frame_size=context.frame_size or 1024)
        pieces = [*resampler.resample(frame), *resampler.resample(None)]
        packets = [packet for piece in pieces for packet in sound.encode(piece)] + list(sound.encode())
        for number, packet in enumerate(packets):
            if number in mute:
                damaged = av.Packet(b"\xff" * 40)
                damaged.pts, damaged.dts, damaged.duration = packet.pts, packet.dts, packet.duration
                damaged.time_base, damaged.stream = packet.time_base, sound
                packet = damaged
            container.mux(packet)
    return path


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_every_sound_arrives_copied_or_encoded_again(tmp_path, name, suffix):
    container, *sound = SOUNDS[name]
    source = probe(sounding_film(tmp_path / f"in.{container}", *sound))
    output = tmp_path / f"out.{suffix}"
    chosen = choose_format(source, output, size=(48, 64))
    dry_run_output(source, chosen, output)
    told = [line for line in list_omissions(source, chosen) if line.startswith("audio")]
    through(source, output)
    made = probe(output)
    assert (made.audio == source.audio) != bool(told) and made.frames == source.frames
    with av.open(str(output)) as container:
        heard = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert heard == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize("codec", ["flac", "libvorbis"])
def test_damaged_sound_that_is_encoded_again_is_silent_there(tmp_path, codec, caplog):
    caplog.set_level(logging.WARNING)
    if codec not in av.codecs_available:
        pytest.skip("this PyAV has no such encoder")
    source = sounding_film(tmp_path / "in.mkv", codec, 48000, "stereo", seconds=1, mute=(4,))
    through(source, tmp_path / "out.mov")
    with av.open(str(tmp_path / "out.mov")) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0)) / 48000
    assert heard == pytest.approx(1, abs=0.1)


def test_a_size_that_the_encoder_refuses_is_found_before(tmp_path):
    source = probe(film(tmp_path / "in.mkv", 2))
    chosen = choose_format(source, tmp_path / "o.mp4", size=(64, 20000))
    with pytest.raises(VideoError, match="o.mp4: cannot be written; .*h264 of 20000x64"):
        dry_run_output(source, chosen, tmp_path / "o.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_last_frame_that_is_shown_for_long_stays_so(tmp_path, suffix):
    source = film(tmp_path / "in.mp4", 6, encoder={"bf": "0"})
    with av.open(str(source)) as old, av.open(str(tmp_path / "long.mkv"), "w") as new:
        target = new.add_stream_from_template(old.streams.video[0], opaque=True)
        packets = [packet for packet in old.demux(video=0) if packet.size]
        packets[-1].duration *= 50
        for packet in packets:
            packet.stream = target
            new.mux(packet)
    looked = probe(tmp_path / "long.mkv")
    assert (looked.frames, float(looked.seconds(6))) == (6, 2.2)
    through(looked, tmp_path / f"out.{suffix}")
    assert float(probe(tmp_path / f"out.{suffix}").seconds(6)) == pytest.approx(2.2, abs=0.002)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A film of 25 frames whose frame 12 cannot be decoded."""
    path = film(tmp_path_factory.mktemp("damaged") / "in.mp4", 25, encoder={"bf": "0", "g": "5"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][12]
        begin, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[begin + 4 : begin + size] = b"\xff" * (size - 4)
    path.write_bytes(data)
    return path


def test_a_damaged_frame_stops_with_a_way_on(damaged):
    source = probe(damaged)
    with pytest.raises(VideoError, match=r"damaged; --damaged repeat.*--max_frames \d+"):
        list(read(source))
    assert len(list(read(source, 0, 8))) == 8


@pytest.mark.parametrize("start", [0, 5, 12, 13, 20])
def test_a_damaged_frame_is_replaced_by_the_one_before(damaged, start):
    source = probe(damaged, damaged="repeat")
    whole = list(read(source))
    assert len(whole) == source.frames == 25
    np.testing.assert_array_equal(whole[12], whole[11])
    np.testing.assert_array_equal(list(read(source, start)), whole[start:])


def test_a_stream_that_lost_packets_keeps_its_times(tmp_path):
    path = film(tmp_path / "in.ts", 40, codec="mpeg2video", encoder={"g": "10"}, sound="mp2", **TELEVISION)
    data = bytearray(path.read_bytes())
    at = len(data) // 2 // 188 * 188
    path.write_bytes(data[:at] + data[at + 188 * 3 :])
    source = probe(path, damaged="repeat")
    assert 36 <= source.frames <= 40 and len(list(read(source))) == source.frames
    through(source, tmp_path / "out.mp4", cuts=(10,))
    assert probe(tmp_path / "out.mp4").frames == source.frames
    assert packets_of(tmp_path / "out.mp4", "audio")[0]


def test_a_thumbnail_before_the_film_is_not_the_film(tmp_path):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        streams = [container.add_stream(codec, rate=25) for codec in ("mjpeg", "libx264")]
        for stream, pix_fmt, size in zip(streams, ("yuvj420p", "yuv420p"), (16, 48), strict=True):
            stream.width = stream.height = size
            stream.pix_fmt = pix_fmt
        for stream, count in zip(streams, (1, 12), strict=True):
            for number in range(count):
                pixels = np.full((stream.height, stream.width, 3), 20 * number, np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    source = probe(tmp_path / "in.mp4")
    assert (source.frames, source.width) == (12, 48) and len(list(read(source))) == 12
    through(source, tmp_path / "out.mkv")
    assert probe(tmp_path / "out.mkv").frames == 12
