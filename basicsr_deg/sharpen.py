"""Unsharp masking of the ground-truth frames."""

import cv2
import numpy as np


def unsharp_mask(
    clip: np.ndarray, *, kernel_size: int = 51, sigma: float = 0.0, weight: float = 0.5, threshold: float = 10.0
) -> np.ndarray:
    """Sharpen frames (..., H, W, 3) with values 0..255 where they differ from their blur; float32, 0..255.

    residue = x - blur(x); soft = blur(|residue| > threshold); out = soft clip(x + weight residue) + (1 - soft) x, with
    a gaussian blur of `sigma` pixels and mirrored borders (Real-ESRGAN, ICCV workshops 2021). For `sigma` 0 it is
    0.3 ((kernel_size - 1)/2 - 1) + 0.8. Scale values in [0, 1] by 255 before and back after.

    Raises:
        ValueError: another shape or an even kernel size.
    """
    if clip.ndim < 3 or clip.shape[-1] != 3:
        raise ValueError(f"got a clip of shape {clip.shape}, expected (..., H, W, 3)")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: got {kernel_size}, expected an odd number of pixels")
    frames = clip.reshape(-1, *clip.shape[-3:]).astype(np.float32)
    sharp = [_sharpened(frame, (kernel_size, kernel_size), sigma, weight, threshold) for frame in frames]
    return np.stack(sharp).reshape(clip.shape) if sharp else frames.reshape(clip.shape)


def _sharpened(frame: np.ndarray, kernel: tuple[int, int], sigma: float, weight: float, threshold: float) -> np.ndarray:
    residue = frame - cv2.GaussianBlur(frame, kernel, sigma)
    soft = cv2.GaussianBlur((np.abs(residue) > threshold).astype(np.float32), kernel, sigma)
    sharp = np.clip(frame + weight * residue, 0, 255)
    return soft * sharp + (1 - soft) * frame
