"""Broken, missing and foreign files are refused in one line, and libraries print nothing."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from ldm.video import VideoError, probe, read, read_clip, sequences
from tests.video.clips import frames_of, save, write
from tests.video.films import film


def assert_refused(path, message, capfd):
    """Check that probing and reading raise one line with the file name, and that nothing is printed."""
    for attempt in (lambda: probe(path), lambda: read_clip(path), lambda: sequences(path)):
        with pytest.raises(VideoError, match=message) as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_empty_and_foreign_files(tmp_path, capfd):
    assert_refused(tmp_path / "missing.mp4", "no such file", capfd)
    for name in ("empty.mp4", "empty.png"):
        (tmp_path / name).touch()
        assert_refused(tmp_path / name, "empty", capfd)
    (tmp_path / "text.mp4").write_text("these are only words\n" * 50)
    assert_refused(tmp_path / "text.mp4", "not a readable video", capfd)
    (tmp_path / "text.png").write_text("these are only words\n" * 50)
    assert_refused(tmp_path / "text.png", "not a readable image", capfd)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_truncated_video_is_refused(tmp_path, suffix, share, capfd):
    noise = list(np.random.default_rng(3).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8))
    data = write(tmp_path / f"whole{suffix}", noise, crf=30).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match="cut short|damaged") as caught:
        read_clip(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clip.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "context": {"time_base": Fraction(1, 25)}}),
        ("clip.mkv", {}),
        ("clip.mxf", {"codec": "mpeg2video", "encoder": {"g": "1"}, "context": {"time_base": Fraction(1, 25)}}),
    ],
)
def test_an_early_end_is_found_from_the_duration_in_the_header(tmp_path, name, kind, capfd):
    path = film(tmp_path / name, 25, **kind)
    data = path.read_bytes().replace(b"DURATION", b"duratiom")  # a tag that FFmpeg writes and other programs do not
    path.write_bytes(data)
    assert (probe(path).frames, probe(path).notes) == (25, ())
    path.write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(VideoError, match="cut short.* its header states 1.00 s"):
        probe(path)
    taken = probe(path, damaged="repeat")
    assert taken.frames < 22 and "may be cut short" in str(taken.notes)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("turn", [(0, 0, 0, 0), (46341, 46341, -46341, 46341), (64540, 11380, -11380, 64540)])
def test_a_turn_by_another_angle_is_refused(tmp_path, turn):
    path = write(tmp_path / "clip.mp4", frames_of(2))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 36  # the matrix of a version 0 track header
    data[at : at + 36] = struct.pack(">9i", turn[0], turn[1], 0, turn[2], turn[3], 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="clip.mp4: got a display matrix.* multiple of 90"):
        probe(path)


def with_index_first(path):
    """Rewrite an MP4 with its index first, so that a truncated file can still be opened."""
    front = path.with_name("front.mp4")
    with av.open(str(path)) as old, av.open(str(front), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return front


def test_missing_frames_are_counted(tmp_path, capfd):
    noise = list(np.random.default_rng(4).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8))
    front = with_index_first(write(tmp_path / "clip.mp4", noise))
    assert probe(front).frames == 20
    data = front.read_bytes()
    front.write_bytes(data[: len(data) // 2])
    assert_refused(front, r"\d+ of 20 frames", capfd)


def test_damaged_packets_are_detected(tmp_path, capfd):
    noise = list(np.random.default_rng(5).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8))
    path = write(tmp_path / "clip.mp4", noise)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        read_clip(path)
    assert capfd.readouterr() == ("", "")


def test_a_video_without_frames_or_without_pictures(tmp_path, capfd):
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        container.start_encoding()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    capfd.readouterr()  # messages of the encoders
    assert_refused(tmp_path / "none.mp4", "no frames|no video stream|not a readable", capfd)
    assert_refused(tmp_path / "sound.mp4", "no video stream", capfd)


def test_folders_without_a_sequence(tmp_path, capfd):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").touch()
    assert_refused(tmp_path / "none", "no images", capfd)
    save(tmp_path / "mixed" / "a1.png", np.zeros((4, 6, 3), np.uint8))
    save(tmp_path / "mixed" / "a2.png", np.zeros((4, 6, 3), np.uint8))
    save(tmp_path / "mixed" / "a3.jpg", np.zeros((5, 6, 3), np.uint8))
    assert_refused(tmp_path / "mixed", r"a1\.png is 6x4 but a3\.jpg is 6x5", capfd)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_a_truncated_image_is_refused(tmp_path, suffix, capfd):
    image = np.random.default_rng(6).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = save(tmp_path / f"a{suffix}", image)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match="not a readable image"):
        read_clip(path)


def test_images_that_change_size_between_probing_and_reading(tmp_path):
    for number in (1, 2):
        save(tmp_path / f"{number}.png", np.zeros((4, 6, 3), np.uint8))
    source = probe(tmp_path)
    save(tmp_path / "2.png", np.zeros((4, 7, 3), np.uint8))
    with pytest.raises(VideoError, match=r"1\.png is 6x4 but 2\.png is 7x4"):
        list(read(source))
