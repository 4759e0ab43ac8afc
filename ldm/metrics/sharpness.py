"""Sharpness of a frame relative to the ground truth."""

import cv2
import numpy as np
from torch import Tensor

from ldm.metrics.fidelity import RESIZE, luma, same_size

EDGES = 0.25  # fraction of the pixels


def edge_sharpness(frame: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> float:
    """Ratio of the mean luma gradients of a frame and of the ground truth, on the edges of the ground truth.

    It is below 1 for a blurred frame and above 1 for an over-sharpened one. Edges are the quarter of the pixels with
    the largest gradients of the ground truth, zeros excluded, so that noise in flat regions is ignored. Gradients are
    central differences of 8-bit luma. NaN for a ground truth without gradients.

    Raises ValueError for sizes that differ.
    """
    got, wanted = same_size(frame, truth, fix=RESIZE)
    there = gradient(luma(wanted))
    edges = (there >= np.quantile(there, 1 - EDGES)) & (there > 0)
    if not edges.any():
        return float("nan")
    return float(gradient(luma(got))[edges].mean(dtype=np.float64) / there[edges].mean(dtype=np.float64))


def gradient(image: np.ndarray) -> np.ndarray:
    """Gradient magnitude by central differences, in grey levels per pixel: (H, W) -> (H, W)."""
    kernel = np.float32([-0.5, 0, 0.5])
    across = cv2.sepFilter2D(image, cv2.CV_32F, kernel, np.ones(1, np.float32))
    down = cv2.sepFilter2D(image, cv2.CV_32F, np.ones(1, np.float32), kernel)
    return np.sqrt(across * across + down * down)  # cv2.magnitude rounds by memory alignment
