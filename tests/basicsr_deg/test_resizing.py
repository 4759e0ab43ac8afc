"""Resizing compared with closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from basicsr_deg.resize import AntialiasedBicubic, Fit, Resize, Subsample, cubic_weights

EQUALLY = {"bilinear": 1.0, "area": 1.0, "bicubic": 1.0}


def noise(count=1, height=24, width=33):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("mode", "low", "high"), [("up", 1, 1.5), ("down", 0.3, 1), ("keep", 0.9, 1.1)])
def test_sides_are_even_and_follow_the_walk(mode, low, high):
    clip = noise(5, 40, 62)
    for seed in range(20):
        notes = {}
        out = list(Resize({mode: 1}, [0.3, 1.5], EQUALLY, step=0.02)(clip, np.random.default_rng(seed), notes=notes))
        assert low <= notes["scale"][0] <= high and notes["mode"] == mode
        expected = [(2 * int(20 * s), 2 * int(31 * s)) for s in notes["scale"]]
        assert [frame.shape[:2] for frame in out] == expected
        assert np.abs(np.diff(notes["scale"])).max() <= 0.02


def test_a_side_has_at_least_two_pixels():
    out = next(Resize({"down": 1}, [0.15, 1.0], EQUALLY)(noise(1, 3, 3), np.random.default_rng(0)))
    assert out.shape == (2, 2, 3)


def test_fit_gives_the_requested_size():
    frames = [noise(height=20 + k)[0] for k in range(3)]
    out = list(Fit(EQUALLY)(frames, np.random.default_rng(0), size=(7, 9)))
    assert {frame.shape for frame in out} == {(7, 9, 3)} and out[0].dtype == np.float32


def test_area_interpolation_is_the_mean():
    frame = noise(height=24, width=32)[0].astype(np.float32)
    out = next(Fit({"area": 1})([frame], np.random.default_rng(0), size=(6, 8)))
    np.testing.assert_allclose(out, frame.reshape(6, 4, 8, 4, 3).mean(axis=(1, 3)), atol=1e-3)


def test_antialiased_bicubic_equals_torch_inside_the_borders():
    frame = noise(height=48, width=64)[0]
    out = next(AntialiasedBicubic()([frame], None, size=(12, 16)))
    image = torch.from_numpy(frame).double().permute(2, 0, 1)[None]
    other = F.interpolate(image, size=(12, 16), mode="bicubic", antialias=True, align_corners=False)
    np.testing.assert_allclose(out[2:-2, 2:-2], other[0].permute(1, 2, 0).numpy()[2:-2, 2:-2], atol=1e-3)


@pytest.mark.parametrize(("old", "new"), [(40, 10), (41, 10), (10, 40), (9, 9), (5, 1), (1, 1)])
def test_cubic_weights_keep_constants_and_mirror(old, new):
    weights = cubic_weights(old, new)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)
    if old == new:
        np.testing.assert_allclose(weights, np.eye(old), atol=1e-12)


def test_cubic_weights_reproduce_a_ramp():
    slope = np.arange(64.0)
    out = cubic_weights(64, 16) @ slope
    np.testing.assert_allclose(out[3:-3], (np.arange(16) * 4 + 1.5)[3:-3], atol=1e-9)


def test_subsample_takes_every_nth_pixel_or_raises():
    frame = noise(height=24, width=32)[0]
    np.testing.assert_array_equal(next(Subsample()([frame], None, size=(6, 8))), frame[::4, ::4])
    with pytest.raises(ValueError, match="expected a multiple of 7x6"):
        next(Subsample()([frame], None, size=(6, 7)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"scale": [0, 1]}, "0 < low <= 1 <= high"),
        ({"scale": [1.1, 1.5]}, "0 < low <= 1 <= high"),
        ({"scale": 2}, "scale.range: got 2"),
        ({"modes": {"bigger": 1}}, "modes: got 'bigger'"),
        ({"interpolations": {"cubic": 1}}, "interpolations: got 'cubic'"),
        ({"step": -1}, "step >= 0"),
    ],
)
def test_wrong_settings_are_refused(change, why):
    with pytest.raises(ValueError, match=why):
        Resize(**({"modes": {"up": 1}, "scale": [0.5, 2], "interpolations": EQUALLY} | change))
