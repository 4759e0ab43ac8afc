"""The sharpness on the truth's edges: blur lowers it, contrast scales it, noise in flat places does not raise it."""

import cv2
import numpy as np
import pytest

from ldm.metrics.sharpness import edge_sharpness, gradient


def bars(contrast=100, h=48, w=64):
    """Vertical bars of two greys, (h, w, 3) uint8."""
    wave = np.where(np.arange(w) // 16 % 2, 128 + contrast // 2, 128 - contrast // 2)
    return np.ascontiguousarray(np.broadcast_to(wave[None, :, None], (h, w, 3))).astype(np.uint8)


def test_the_gradient_of_a_slope():
    slope = np.add.outer(3 * np.arange(8.0), 4 * np.arange(9.0)).astype(np.float32)
    np.testing.assert_allclose(gradient(slope)[1:-1, 1:-1], 5, rtol=1e-6)


def test_it_is_relative_to_the_truth():
    truth = bars()
    assert edge_sharpness(truth, truth) == pytest.approx(1)
    assert edge_sharpness(bars(50), truth) == pytest.approx(0.5, rel=1e-6)
    assert edge_sharpness(bars(200), truth) == pytest.approx(2, rel=1e-6)
    assert edge_sharpness(cv2.GaussianBlur(truth, (0, 0), 2), truth) == pytest.approx(
        2 / (2 * (2 * np.pi) ** 0.5), rel=0.05
    )


def test_noise_in_flat_places_is_not_sharpness():
    truth = bars()
    soft = cv2.GaussianBlur(truth, (0, 0), 1.5)
    noise = np.random.default_rng(0).normal(0, 6, truth.shape[:2])[..., None]
    noisy = np.clip(soft + noise, 0, 255).round().astype(np.uint8)
    plain = [gradient(x[..., 1].astype(np.float32)).mean() for x in (soft, noisy)]
    assert plain[1] > 1.4 * plain[0]
    assert edge_sharpness(noisy, truth) < 1.05 * edge_sharpness(soft, truth)


def test_a_flat_truth_has_no_edges():
    flat = np.full((16, 16, 3), 90, np.uint8)
    assert np.isnan(edge_sharpness(flat, flat))


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match="64x48 and 32x48"):
        edge_sharpness(bars(), bars(w=32))
