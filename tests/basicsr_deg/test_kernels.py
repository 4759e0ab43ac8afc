"""Blur kernels compared with closed forms."""

import cv2
import numpy as np
import pytest
from scipy.special import j1

from basicsr_deg import kernels


def test_bessel_function_equals_scipy():
    x = np.concatenate([np.linspace(-60, 60, 1001), [0.0, 1e-9, 300.0]])
    np.testing.assert_allclose(kernels.bessel_j1(x), j1(x), atol=1e-13)


def test_an_isotropic_gaussian_is_separable():
    line = cv2.getGaussianKernel(15, 2.3)
    np.testing.assert_allclose(kernels.gaussian(kernels.distance(15, 2.3)), line @ line.T, atol=1e-7)


def test_rotation_has_x_to_the_right_and_y_down():
    lying = kernels.gaussian(kernels.distance(15, 3.0, 1.0))
    assert lying[7, 11] > 5 * lying[11, 7]
    np.testing.assert_allclose(kernels.gaussian(kernels.distance(15, 3.0, 1.0, np.pi / 2)), lying.T, atol=1e-6)
    falling = kernels.gaussian(kernels.distance(15, 3.0, 1.0, np.pi / 4))
    assert falling[10, 10] > 5 * falling[10, 4]


def test_families_coincide_in_their_limits():
    q = kernels.distance(9, 1.4, 0.8, 0.3)
    np.testing.assert_allclose(kernels.generalized_gaussian(q, 1.0), kernels.gaussian(q))
    flat = kernels.plateau(q, 60.0)  # for a large exponent the kernel is 1 inside the ellipse and 0 outside
    np.testing.assert_allclose(flat[q < 0.9], flat.max(), rtol=1e-2)
    assert flat[q > 1.2].max() < 1e-4 * flat.max()


def test_sinc_passes_frequencies_below_omega():
    response = np.abs(np.fft.fft2(kernels.sinc(301, 1.2)))
    radius = np.hypot(*np.meshgrid(*[2 * np.pi * np.fft.fftfreq(301)] * 2))
    assert abs(response[radius < 1.0].mean() - 1) < 0.02
    assert response[(radius > 1.4)].mean() < 0.02


@pytest.mark.parametrize("size", [1, 7, 21])
def test_kernels_sum_to_one_and_are_symmetric(size):
    q = kernels.distance(size, 1.7, 0.6, 1.1)
    made = [kernels.gaussian(q), kernels.generalized_gaussian(q, 0.5), kernels.plateau(q, 1.9)]
    for kernel in [*made, kernels.sinc(size, 2.0)]:
        assert kernel.shape == (size, size) and abs(kernel.sum() - 1) < 1e-12
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: kernels.distance(8, 1.0),
        lambda: kernels.distance(0, 1.0),
        lambda: kernels.distance(7, 0.0),
        lambda: kernels.distance(7, 1.0, -1.0),
        lambda: kernels.sinc(7, 0.0),
        lambda: kernels.sinc(7, float("nan")),
    ],
)
def test_invalid_kernels_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
