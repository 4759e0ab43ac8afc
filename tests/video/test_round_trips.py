"""Frames through a file and back: which come, in which order, at which rate, in which colours."""

import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch

from ldm.video import VideoError, open_writer, probe, read, read_clip, snap_rate
from tests.marks import mostly_slow
from tests.video.clips import frames_of, write


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@mostly_slow("rate", [Fraction(24000, 1001), Fraction(25, 2), Fraction(30000, 1001), 25, 50], fast=2)
def test_count_rate_size_and_order_are_kept(tmp_path, suffix, rate):
    frames = frames_of(13)
    source = probe(write(tmp_path / f"clip{suffix}", frames, rate=rate, crf=4))
    assert (source.kind, source.frames, source.width, source.height) == ("video", 13, 64, 48)
    assert source.rate == rate
    back = list(read(source))
    assert len(back) == 13
    for number, frame in enumerate(back):
        distances = [np.abs(frame.astype(int) - other).mean() for other in frames]
        assert int(np.argmin(distances)) == number


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@mostly_slow("size", [(47, 65), (1, 1), (48, 64), (2, 3)], fast=2)
def test_lossless_is_exact(tmp_path, suffix, size):
    frames = list(np.random.default_rng(1).integers(0, 256, (4, *size, 3), dtype=np.uint8))
    back = list(read(write(tmp_path / f"clip{suffix}", frames, lossless=True)))
    np.testing.assert_array_equal(back, frames)


@mostly_slow("size", [(48, 64), (47, 65), (48, 65), (720, 1280)], fast=2)
def test_colours_survive_compression(tmp_path, size):
    """Flat patches away from their borders (chroma is halved for even sizes) come back within two levels."""
    rng = np.random.default_rng(2)
    patches = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    frame = cv2.resize(patches, size[::-1], interpolation=cv2.INTER_NEAREST)
    back = next(read(write(tmp_path / "clip.mp4", [frame] * 2, crf=0)))
    rows, columns = ((np.arange(n) + 0.5) * size[axis] / n for axis, n in ((0, 3), (1, 4)))
    centres = np.ix_(rows.astype(int), columns.astype(int))
    assert np.abs(back[centres].astype(int) - frame[centres]).max() <= 2


@pytest.mark.parametrize(("size", "matrix"), [((48, 64), 6), ((720, 1280), 1)])
def test_colours_are_labelled(tmp_path, size, matrix):
    write(tmp_path / "clip.mp4", frames_of(2, *size))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_range) == (matrix, 1)
        assert codec.pix_fmt == "yuv420p"


@pytest.mark.parametrize("size", [(48, 64), (720, 1280)])
def test_other_readers_see_the_same_colours(tmp_path, size):
    """FFmpeg's own conversion, which follows the labels, agrees on a plain saturated colour."""
    frame = np.full((*size, 3), (200, 30, 60), np.uint8)
    path = write(tmp_path / "clip.mp4", [frame] * 2, crf=4)
    with av.open(str(path)) as container:
        other = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(other.astype(int) - frame).max() <= 3
    assert np.abs(next(read(path)).astype(int) - frame).max() <= 2


def test_a_range_of_frames(tmp_path):
    frames = frames_of(9)
    path = write(tmp_path / "clip.mkv", frames, lossless=True)
    np.testing.assert_array_equal(list(read(path, start=3, stop=6)), frames[3:6])
    np.testing.assert_array_equal(list(read(path, start=7)), frames[7:])
    assert list(read(path, start=9)) == []
    folder = write(tmp_path / "folder", frames)
    np.testing.assert_array_equal(list(read(folder, start=3, stop=6)), frames[3:6])
    with pytest.raises(VideoError, match="start <= stop"):
        read(path, start=4, stop=2)


def test_a_clip_is_a_tensor_in_unit_range(tmp_path):
    frames = frames_of(3, 5, 7)
    clip = read_clip(write(tmp_path / "folder", frames))
    assert clip.shape == (3, 3, 5, 7)
    assert clip.dtype == torch.float32
    assert torch.equal((clip * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(np.stack(frames)))
    with pytest.raises(VideoError, match="no frames from 3"):
        read_clip(tmp_path / "folder", start=3)


def test_tensors_are_rounded_and_clamped(tmp_path):
    levels = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 99.5001 / 255, 254.6 / 255, 1.0, 1.7])
    for number, dtype in enumerate((torch.float32, torch.float64)):
        path = tmp_path / f"{number}.png"
        with open_writer(path, size=(1, 8)) as writer:
            writer.write(levels.to(dtype).expand(3, 1, 8))
        assert next(read(path))[0, :, 0].tolist() == [0, 0, 0, 1, 100, 255, 255, 255]


def test_a_recorded_rotation_is_applied(tmp_path):
    frames = frames_of(2, 32, 48)
    path = write(tmp_path / "clip.mp4", frames, lossless=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 36  # the matrix of a version 0 track header
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    assert data[at : at + 36] == upright
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)  # a quarter, clockwise
    path.write_bytes(data)
    source = probe(path)
    assert (source.width, source.height) == (32, 48)
    np.testing.assert_array_equal(next(read(source)), np.rot90(frames[0], -1))


@pytest.mark.parametrize(("given", "expected"), [
    (23.976, Fraction(24000, 1001)), (29.97, Fraction(30000, 1001)), (59.94, Fraction(60000, 1001)), (24, Fraction(24)),
    (24.0001, Fraction(24)), (Fraction(10, 3), Fraction(10, 3)), (0.5, Fraction(1, 2)),
    (119.88, Fraction(120_000, 1001)),
])  # fmt: skip
def test_rates_are_snapped(given, expected):
    assert snap_rate(given) == expected


@pytest.mark.parametrize("rate", [0, -25])
def test_rates_must_be_positive(rate):
    with pytest.raises(VideoError, match="positive"):
        snap_rate(rate)
