"""Seven families of blur kernels as functions of their parameters, each (size, size) float64 with sum 1.

With x a position relative to the centre (x right, y down), C = R diag(sigma_x^2, sigma_y^2) R^T and q = x^T C^-1 x:
gaussian exp(-q/2), generalised gaussian exp(-q^beta/2), plateau 1/(1 + q^beta), and sinc omega J1(omega r) / (2 pi r),
the ideal low pass of radius omega (Real-ESRGAN, ICCV workshops 2021). Sigmas in pixels, angles in radians.
"""

import numpy as np


def _positions(size: int) -> np.ndarray:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"got a kernel of size {size}, expected an odd number of pixels")
    axis = np.arange(size) - size // 2
    return np.stack(np.meshgrid(axis, axis), axis=-1).astype(np.float64)


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return kernel / kernel.sum()


def distance(size: int, sigma_x: float, sigma_y: float | None = None, angle: float = 0.0) -> np.ndarray:
    """Squared Mahalanobis distance q (size, size) from the centre; without `sigma_y` the gaussian is isotropic.

    The covariance and its inverse are computed in float32, as in the released code.

    Args:
        size: side of the kernel in pixels, odd.
        sigma_x, sigma_y: standard deviations in pixels.
        angle: rotation in radians.
    Raises:
        ValueError: an even size or a sigma not above 0.
    """
    if sigma_x <= 0 or (sigma_y is not None and sigma_y <= 0):
        raise ValueError(f"got sigma {sigma_x} and {sigma_y}, expected more than 0 pixels")
    variance = np.square([sigma_x, sigma_x if sigma_y is None else sigma_y]).astype(np.float32)
    turn = np.eye(2) if sigma_y is None else [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn = np.asarray(turn, np.float32)
    covariance = turn @ np.diag(variance) @ turn.T
    x = _positions(size)
    return ((x @ np.linalg.inv(covariance)) * x).sum(axis=-1)


def gaussian(q: np.ndarray) -> np.ndarray:
    """Gaussian kernel exp(-q/2) of the squared distances q, normalised."""
    return _normalised(np.exp(-0.5 * q))


def generalized_gaussian(q: np.ndarray, beta: float) -> np.ndarray:
    """Generalised gaussian kernel exp(-q^beta/2), normalised; peaked for beta < 1, flat-topped for beta > 1."""
    return _normalised(np.exp(-0.5 * q**beta))


def plateau(q: np.ndarray, beta: float) -> np.ndarray:
    """Plateau kernel 1/(1 + q^beta), normalised."""
    return _normalised(1 / (1 + q**beta))


def sinc(size: int, omega: float) -> np.ndarray:
    """Circular low-pass kernel (size, size) with cutoff `omega` in radians per pixel, in (0, pi].

    Raises:
        ValueError: an even size or an omega not above 0.
    """
    if not omega > 0:
        raise ValueError(f"got omega {omega}, expected more than 0 radians per pixel")
    radius = np.hypot(*np.moveaxis(_positions(size), -1, 0))
    different, where = np.unique(radius, return_inverse=True)
    values = np.full(different.shape, omega**2 / (4 * np.pi))
    far = different > 0
    values[far] = omega * bessel_j1(omega * different[far]) / (2 * np.pi * different[far])
    return _normalised(values[where].reshape(radius.shape))


def bessel_j1(x: np.ndarray) -> np.ndarray:
    """Bessel function J1 of real numbers in float64, by the trapezoidal rule for Bessel's integral.

    J1(x) is the mean of cos(t - x sin t) over a period. With n points the error is of order J_(n-1)(x), which vanishes
    for n well above |x|.
    """
    x = np.asarray(x, np.float64)
    points = 64 + 2 * int(np.ceil(np.abs(x).max(initial=0.0)))
    t = 2 * np.pi * np.arange(points) / points
    return np.cos(t - x[..., None] * np.sin(t)).mean(axis=-1)
