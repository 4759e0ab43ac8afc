"""NIQE (Mittal, Soundararajan, Bovik 2013): distance between statistics of an image and of pristine photographs.

The conventions are those of BasicSR, which most papers report: 96-pixel blocks at two scales, 18 features each, and the
pristine statistics that the authors of NIQE published.
"""

import importlib.util
from functools import cache
from math import lgamma
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ldm.metrics.fidelity import LUMA, rgb8
from ldm.metrics.scored_frame import Unavailable

BLOCK = 96  # pixels a side, half of it at the second scale
WINDOW, SIGMA = 7, 7 / 6  # of the local mean and contrast
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of the neighbours whose products are used
FEATURES = 36
FILE = "niqe_pris_params.npz"
PACKAGES = {"basicsr": f"metrics/{FILE}", "mmagic": f"evaluation/metrics/{FILE}"}  # packages with the official file
# Of the official statistics: sum of the mean m, trace of the covariance C, and m^T C m.
OFFICIAL = (17.3287655282, 1.63091883164, 24.6177379392)


class Pristine(NamedTuple):
    """Statistics of the features of pristine photographs: `mean` (36,) and `covariance` (36, 36), float64."""

    mean: np.ndarray
    covariance: np.ndarray


def load_pristine(path: Path | str | None = None) -> Pristine:
    """Load the official statistics from `path`, or from BasicSR's .npz in an installed package.

    Raises Unavailable if `path` is None and no package has the file, ValueError for a file that cannot be read or has
    other statistics, since values computed with those are not comparable.
    """
    path = _installed() if path is None else Path(path)
    try:
        with np.load(path) as file:
            mean = np.float64(file["mu_pris_param"]).reshape(-1)
            covariance = np.float64(file["cov_pris_param"])
    except (OSError, KeyError, ValueError, EOFError) as error:
        known = f"expected BasicSR's {FILE} with mu_pris_param and cov_pris_param"
        raise ValueError(f"got {path} ({type(error).__name__}), {known}") from error
    if mean.shape != (FEATURES,) or covariance.shape != (FEATURES, FEATURES):
        raise ValueError(f"got statistics {mean.shape} and {covariance.shape} in {path}, expected 36 and 36x36")
    summary = mean.sum(), np.trace(covariance), mean @ covariance @ mean
    if not np.allclose(summary, OFFICIAL, rtol=1e-6, atol=0):
        raise ValueError(f"got other statistics than the official ones in {path}, expected BasicSR's {FILE}")
    return Pristine(mean, covariance)


def niqe(frame: Tensor | np.ndarray, pristine: Pristine, *, channels: str = "y", crop: int = 0) -> float:
    """NIQE of a frame, about 2 for a natural photograph; lower is better.

    `channels` is "y" (BT.601, 16 to 235, as in BasicSR) or "gray" (full range), rounded to integers. `crop` border
    pixels and, from the top left, pixels beyond the last complete block are ignored. Raises Unavailable for frames with
    fewer than two blocks that have statistics, ValueError for unknown channels.
    """
    image = _image(rgb8(frame), channels)
    inside = image[crop : image.shape[0] - crop, crop : image.shape[1] - crop]
    rows, columns = (side // BLOCK for side in inside.shape)
    if rows * columns < 2:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise Unavailable(f"a frame of {size} holds fewer than two blocks of {BLOCK} pixels")
    inside = inside[: rows * BLOCK, : columns * BLOCK]
    features = np.concatenate([_features(inside, BLOCK), _features(_halved(inside), BLOCK // 2)], axis=1)
    whole = features[~np.isnan(features).any(axis=1)]
    if len(whole) < 2:
        raise Unavailable("the frame is flat in all but one of its blocks")
    # A flat block has no statistics but the shape, which counts as the smallest (as in BasicSR).
    away = np.nanmean(features, axis=0) - pristine.mean
    spread = (pristine.covariance + np.cov(whole, rowvar=False)) / 2
    return float(np.sqrt(away @ np.linalg.pinv(spread) @ away))


def _installed() -> Path:
    """Return the file of an installed package, which is not imported. Raises Unavailable if there is none."""
    for package, place in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / place).is_file():
                return Path(folder) / place
    raise Unavailable(f"needs the official statistics: name BasicSR's {FILE}")


def _image(pixels: np.ndarray, channels: str) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) float32 of whole numbers.

    Via [0, 1] in float32, as in BasicSR, which decides how halves are rounded.
    """
    unit = pixels.astype(np.float32) / 255
    if channels == "y":
        unit = ((unit.astype(np.float64) @ np.float64(LUMA) * 255 + 16) / 255).astype(np.float32)
    elif channels == "gray":
        unit = cv2.cvtColor(unit[..., ::-1].copy(), cv2.COLOR_BGR2GRAY)
    else:
        raise ValueError(f"got channels {channels!r}, expected y or gray")
    return np.rint(unit * np.float32(255))


def _features(image: np.ndarray, block: int) -> np.ndarray:
    """(rows * block, columns * block) -> (rows * columns, 18): the distribution of each block's normalized values."""
    mean = _local_mean(image)
    contrast = np.sqrt(np.abs(_local_mean(image * image) - mean * mean))
    normal = (image - mean) / (contrast + 1)
    rows, columns = (side // block for side in image.shape)
    blocks = normal.reshape(rows, block, columns, block).swapaxes(1, 2).reshape(-1, block, block)
    shape, left, right, _ = _asymmetric_gaussian(blocks)
    columns = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right, centre = _asymmetric_gaussian(blocks * np.roll(blocks, shift, axis=(1, 2)))
        columns += [shape, centre, left, right]
    return np.stack(columns, axis=1)


def _local_mean(image: np.ndarray) -> np.ndarray:
    """The Gaussian mean round every pixel, border repeated; summed in float64, rounded to float32."""
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA)
    return cv2.sepFilter2D(image.astype(np.float64), -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE).astype("f4")


def _asymmetric_gaussian(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Asymmetric generalized Gaussians fitted by moments to blocks (n, h, w): shape, scales left and right, mean.

    Where a block lacks one of the sides, the shape is the least and the others are NaN.
    """
    values = blocks.reshape(len(blocks), -1).astype(np.float64)
    below, above = values < 0, values > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = values * values
        left = np.sqrt((squares * below).sum(axis=1) / below.sum(axis=1))
        right = np.sqrt((squares * above).sum(axis=1) / above.sum(axis=1))
        ratio = left / right
        moments = np.abs(values).mean(axis=1) ** 2 / squares.mean(axis=1)
        wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, moments_of_shapes = _shapes()
    nearest = np.searchsorted((moments_of_shapes[1:] + moments_of_shapes[:-1]) / 2, wanted)
    shape = shapes[np.where(np.isnan(wanted), 0, nearest)]
    scale = np.exp((_log_gamma(1 / shape) - _log_gamma(3 / shape)) / 2)
    left, right = left * scale, right * scale
    return shape, left, right, (right - left) * np.exp(_log_gamma(2 / shape) - _log_gamma(1 / shape))


@cache
def _shapes() -> tuple[np.ndarray, np.ndarray]:
    """The shapes that are tried, and (E|x|)^2 / E[x^2] of each; it rises with the shape."""
    shapes = np.arange(0.2, 10.001, 0.001)
    return shapes, np.exp(2 * _log_gamma(2 / shapes) - _log_gamma(1 / shapes) - _log_gamma(3 / shapes))


def _log_gamma(values: np.ndarray) -> np.ndarray:
    return np.array([lgamma(value) for value in values])


def _halved(image: np.ndarray) -> np.ndarray:
    """Half the size by MATLAB's antialiased bicubic, of a picture with even sides, float32.

    Row by row and column by column in float32, on values of [0, 1]: where a picture is flat, the rounding of these sums
    is all that the next features see.
    """
    distance = np.abs(np.arange(-3.5, 4) / 2)
    near, far = 1.5 * distance**3 - 2.5 * distance**2 + 1, -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance <= 1, near, far)
    weights = torch.from_numpy(weights / weights.sum()).float()
    padded = np.pad(image / np.float32(255), ((4, 4), (0, 0)), mode="symmetric")
    rows = torch.from_numpy(padded)
    low = torch.stack([rows[k : k + 8].T.mv(weights) for k in range(1, len(rows) - 8, 2)])
    columns = torch.from_numpy(np.pad(low.numpy(), ((0, 0), (4, 4)), mode="symmetric"))
    half = torch.stack([columns[:, k : k + 8].mv(weights) for k in range(1, columns.shape[1] - 8, 2)], dim=1)
    return half.numpy() * np.float32(255)
