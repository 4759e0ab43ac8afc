"""Video compression: sizes, colours, bit rates and reproducibility."""

import numpy as np
import pytest

from basicsr_deg import codec
from basicsr_deg.codec import VideoCodec

MANY = 4_000_000  # bits per second: almost lossless


def clip(count=4, height=36, width=46, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([np.sin((x + 2 * t) / 6), np.cos(y / 5), np.sin((x + y) / 9)], -1) for t in range(count)]
    return np.uint8(np.clip(127 + 80 * np.stack(frames) + rng.normal(0, 12, (count, height, width, 3)), 0, 255))


def code(frames, name="libx264", bits=MANY, **options):
    return np.stack(list(VideoCodec({name: 1.0}, [bits, bits], **options).coded(frames, name, bits)))


@pytest.mark.parametrize("name", ["libx264", "h264", "mpeg4"])
@pytest.mark.parametrize("size", [(36, 46), (37, 45), (35, 46), (5, 3), (1, 1)])
def test_the_size_is_kept(name, size):
    frames = clip(3, *size)
    out = code(frames, name)
    assert out.shape == frames.shape and out.dtype == np.float32 and (out == np.rint(out)).all()


@pytest.mark.parametrize("name", ["libx264", "mpeg4"])
def test_a_lower_bit_rate_loses_more(name):
    frames = clip(12, 64, 96)  # the rate control of mpeg4 needs some frames
    loss = [np.abs(code(frames, name, bits) - frames).mean() for bits in (3_000, 400_000)]
    assert loss[0] > 1.1 * loss[1]


def test_frames_keep_their_order():
    frames = np.stack([np.full((32, 32, 3), 20 * t + 10, np.uint8) for t in range(12)])
    np.testing.assert_allclose(code(frames).mean(axis=(1, 2, 3)), 20 * np.arange(12) + 10, atol=3)


def test_released_exchanges_red_and_blue_for_the_codec():
    frames = clip()
    np.testing.assert_array_equal(code(frames, channels="released"), code(frames[..., ::-1])[..., ::-1])
    fine = np.zeros((2, 32, 32, 3), np.uint8) + 60
    fine[:, :, ::2, 0] = 200  # fine red lines: only their luma is kept, to which red contributes more than blue
    loss = {channels: np.abs(code(fine, channels=channels) - fine).mean() for channels in ("rgb", "released")}
    assert abs(loss["rgb"] - loss["released"]) > 1
    flat = np.zeros((2, 32, 32, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    for channels in loss:
        assert np.abs(code(flat, channels=channels) - flat).mean() < 4


@pytest.mark.parametrize("size", [(24, 24), (35, 62), (58, 85)])
def test_results_do_not_depend_on_earlier_clips(size):
    frames, rng = clip(6, *size), np.random.default_rng(0)
    first = code(frames, bits=10_000)
    for k in range(4):
        code(rng.integers(0, 256, (2, 40 + 9 * k, 150, 3), dtype=np.uint8), "mpeg4" if k % 2 else "libx264", 100_000)
        np.testing.assert_array_equal(code(frames, bits=10_000), first)


def test_frames_are_resized_to_the_first_one():
    frames = [np.full((30 + 2 * k, 41 - k, 3), 100.0 + k, np.float32) for k in range(3)]
    assert code(frames).shape == (3, 30, 41, 3)


def test_codec_and_bit_rate_are_drawn_per_clip():
    op = VideoCodec({"mpeg4": 1, "libx264": 1}, [1000, 1003])
    found = []
    for seed in range(40):
        notes = {}
        list(op(clip(1, 16, 16), np.random.default_rng(seed), notes=notes))
        found.append((notes["codec"], notes["bitrate"]))
    assert {name for name, _ in found} == {"mpeg4", "libx264"} and {bits for _, bits in found} == {
        1000,
        1001,
        1002,
        1003,
    }


def test_no_frames_give_no_frames():
    assert list(VideoCodec({"mpeg4": 1}, [1000, 1000]).coded([], "mpeg4", 1000)) == []


def test_a_missing_encoder_is_one_line(monkeypatch):
    monkeypatch.setitem(codec.ENCODERS, "libx264", "libx264_that_is_not_there")
    with pytest.raises(ValueError, match="no encoder libx264_that_is_not_there, expected one of h264, mpeg4"):
        code(clip(1))


def test_an_encoder_error_is_one_line():
    with pytest.raises(ValueError, match="mpeg4 at .* of 9000x2 failed"):
        code(np.zeros((1, 2, 9000, 3), np.uint8), "mpeg4")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"codecs": {"vp9": 1}}, "codecs: got 'vp9'"),
        ({"bitrate": [0, 10]}, "at least 1 bit"),
        ({"bitrate": [10]}, "bitrate.range: got"),
        ({"channels": "bgr"}, "expected rgb or released"),
        ({"rate": 0}, "at least 1 frame"),
    ],
)
def test_wrong_settings_are_refused(change, why):
    with pytest.raises(ValueError, match=why):
        VideoCodec(**({"codecs": {"mpeg4": 1}, "bitrate": [1000, 2000]} | change))
