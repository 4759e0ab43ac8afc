"""The sharpness of a frame relative to the truth."""

import cv2
import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import RESIZE, luma, same_size

EDGES = 0.25  # the fraction of the pixels that counts


def edge_sharpness(frame: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> float:
    """The mean gradient of the luma on the truth's edges, divided by the truth's own there: below 1 is softer than the
    truth, 1 as sharp, above over-sharpened.

    Edges are the quarter of the pixels where the truth's gradient is greatest (fewer where it is zero in more), so
    noise in flat places does not count as sharpness. Gradients are central differences of 8-bit luma. NaN for a truth
    without any gradient. Raises ValueError for sizes that differ.
    """
    got, wanted = same_size(frame, truth, fix=RESIZE)
    there = gradient(luma(wanted))
    edges = (there >= np.quantile(there, 1 - EDGES)) & (there > 0)
    if not edges.any():
        return float("nan")
    return float(gradient(luma(got))[edges].mean(dtype=np.float64) / there[edges].mean(dtype=np.float64))


def gradient(image: np.ndarray) -> np.ndarray:
    """The length of the gradient at every pixel, by central differences, in values per pixel: (H, W) -> (H, W)."""
    kernel = np.float32([-0.5, 0, 0.5])
    across = cv2.sepFilter2D(image, cv2.CV_32F, kernel, np.ones(1, np.float32))
    down = cv2.sepFilter2D(image, cv2.CV_32F, np.ones(1, np.float32), kernel)
    return np.sqrt(across * across + down * down)  # cv2.magnitude rounds by memory alignment
