"""Samples of every depth: what conversions keep exactly, and that they follow the definitions of H.273."""

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from ldm.video import Color, VideoError, frame_tensor
from ldm.video.pixels import encoder_frame, frame_pixels, to_samples

LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


def words(plane):
    """The codes of a plane of 16-bit words."""
    return np.frombuffer(plane, "<u2").reshape(plane.height, -1)[:, : plane.width].astype(int)


def frame_of(planes, pix_fmt, color):
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, codes in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size // 2), "<u2")
        padded[:, : plane.width] = codes
        plane.update(padded.tobytes())
    frame.color_range, frame.colorspace = color.range, color.matrix
    return frame


def codes_of(rgb, bits, color):
    """Codes of Y, Cb, Cr of RGB in [0, 1], by the letter of H.273."""
    red, blue = LUMA[color.matrix]
    y = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
    cb, cr = (rgb[..., 2] - y) / (2 * (1 - blue)), (rgb[..., 0] - y) / (2 * (1 - red))
    if color.range == 2:
        most = 2**bits - 1
        return [np.rint(y * most), *(np.rint(c * most + 2 ** (bits - 1)) for c in (cb, cr))]
    scale = 2 ** (bits - 8)
    return [np.rint((219 * y + 16) * scale), *(np.rint((224 * c + 128) * scale) for c in (cb, cr))]


@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("range_", [1, 2])
@pytest.mark.parametrize("bits", [10, 12])
def test_deep_colours_follow_the_definition_and_come_back(matrix, range_, bits):
    color = Color(range_, matrix)
    rgb = np.random.default_rng(0).random((32, 32, 3))
    rgb[0, 0], rgb[0, 1] = 0, 1
    codes = codes_of(rgb, bits, color)
    name, reformatter = f"yuv444p{bits}le", VideoReformatter()
    pixels = frame_pixels(frame_of(codes, name, color), False, color, reformatter)
    assert pixels.dtype == np.uint16
    assert np.abs(pixels - rgb * 65535).max() < 65535 / 2 ** (bits - 2)  # codes are rounded, chroma counts for more
    assert pixels[0, :2].tolist() == [[0] * 3, [65535] * 3]
    back = encoder_frame(pixels, name, color, reformatter)
    assert max(np.abs(words(plane) - want).max() for plane, want in zip(back.planes, codes, strict=True)) <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le"])
def test_every_grey_code_comes_back(pix_fmt):
    bits = 12 if "12" in pix_fmt else 10
    low, high = 16 << bits - 8, 235 << bits - 8
    ramp = np.tile(np.linspace(low, high, 512).round(), (4, 1))
    color, frame = Color(1, 9), av.VideoFrame(512, 4, pix_fmt)
    chroma = [np.full((plane.height, plane.width), 1 << bits - 1) for plane in frame.planes[1:]]
    pixels = frame_pixels(frame_of([ramp, *chroma], pix_fmt, color), False, color, VideoReformatter())
    assert (pixels[..., 0] == pixels[..., 2]).all()
    back = encoder_frame(pixels, pix_fmt, color, VideoReformatter())
    assert (words(back.planes[0]) == ramp).all()
    assert all((words(plane) == want).all() for plane, want in zip(back.planes[1:], chroma, strict=True))


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le"])
def test_chroma_lies_where_video_has_it(pix_fmt):
    """A horizontal ramp of chroma is continued by straight lines, from samples on every other pixel."""
    color, frame = Color(1, 9), av.VideoFrame(64, 8, pix_fmt)
    ramp = 400 + 4 * np.arange(frame.planes[1].width)
    chroma = [np.tile(ramp, (plane.height, 1)) for plane in frame.planes[1:]]
    pixels = frame_pixels(frame_of([np.full((8, 64), 500), *chroma], pix_fmt, color), False, color, VideoReformatter())
    steps = np.diff(pixels[3, :63, 0].astype(int))
    assert steps.min() > 0 and steps.max() - steps.min() <= 1
    back = encoder_frame(pixels, pix_fmt, color, VideoReformatter())
    assert np.abs(words(back.planes[1])[:, 1:-1] - chroma[0][:, 1:-1]).max() == 0


def test_fine_colour_stripes_become_their_mean_not_one_of_the_two():
    pixels = np.full((8, 64, 3), 30000, np.uint16)
    pixels[:, ::2, 2] = 60000
    color = Color(1, 9)
    blue, grey = (encoder_frame(pixels[:, i::2], "yuv444p10le", color, VideoReformatter()).planes[1] for i in (0, 1))
    mixed = words(encoder_frame(pixels, "yuv420p10le", color, VideoReformatter()).planes[1])
    assert np.abs(mixed[:, 1:-1] - (words(blue)[0, 0] + words(grey)[0, 0]) / 2).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_rgb_and_alpha_come_back(bits):
    codes = np.random.default_rng(1).integers(0, 2**bits, (6, 8, 4)).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(codes, format=f"gbrap{bits}le")
    pixels = frame_pixels(frame, True, Color(2, 0), VideoReformatter())
    assert np.abs(pixels - codes * (65535 / (2**bits - 1))).max() < 1
    back = encoder_frame(pixels, f"gbrap{bits}le", Color(2, 0), VideoReformatter()).to_ndarray()
    np.testing.assert_array_equal(back, codes)


def test_deep_grey_is_scaled_to_the_ends():
    ramp = np.arange(1024, dtype=np.uint16).reshape(8, 128)
    frame = av.VideoFrame.from_ndarray(ramp, format="gray10le")
    full = frame_pixels(frame, False, Color(), VideoReformatter())
    np.testing.assert_array_equal(full[..., 1], np.rint(ramp * (65535 / 1023)))
    limited = frame_pixels(frame, False, Color(range=1), VideoReformatter())
    assert (limited[0, 64, 0], limited[7, 44, 0]) == (0, 65535)


def test_arrays_and_tensors_are_the_same_frames():
    eight = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, 2)
    deep = to_samples(eight, np.uint16)
    assert (deep.min(), deep.max()) == (0, 65535)
    for array in (eight, deep):
        tensor = frame_tensor(array)
        assert (tensor.shape, tensor.dtype, float(tensor.max())) == ((3, 8, 32), torch.float32, 1.0)
        np.testing.assert_array_equal(to_samples(tensor, np.uint8), eight)
        np.testing.assert_array_equal(to_samples(tensor, np.uint16), deep)
        np.testing.assert_array_equal(to_samples(array, np.uint8), eight)
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(4, 2)
    np.testing.assert_array_equal(to_samples(frame_tensor(every), np.uint16), every)
    np.testing.assert_array_equal(to_samples(every, np.uint8), np.rint(every / 257))


def test_frames_that_are_none():
    for frame in (np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.int32), torch.zeros(2, 2, 2)):
        with pytest.raises(VideoError, match="got this as"):
            to_samples(frame, np.uint8, "this")
