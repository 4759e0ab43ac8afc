"""PSNR and SSIM, in RGB or in luma, as BasicSR-based papers report them."""

import cv2
import numpy as np
import torch
from torch import Tensor

PEAK = 255.0
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # ITU-R BT.601, limited range: 8-bit RGB -> 16..235
GRAY = (0.299, 0.587, 0.114)  # full range: 8-bit RGB -> 0..255
CHANNELS = {
    "rgb": "RGB", "y": "Y (BT.601, 16-235, not rounded)", "y8": "Y (BT.601, 16-235, rounded)",
    "gray": "gray (BT.601, 0-255, not rounded)", "gray8": "gray (BT.601, 0-255, rounded)",
}  # fmt: skip
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels
K1, K2 = 0.01, 0.03
WINDOWS = ("inside", "torchmetrics")  # of SSIM
RESIZE = "; crop or resize them first"


def rgb8(frame: Tensor | np.ndarray) -> np.ndarray:
    """The pixels of a frame as they are stored, (H, W, 3) uint8 RGB: clamped and rounded to the nearest value.

    Raises ValueError for another form than (3, H, W) float or (H, W, 3) uint8, and for pixels that are not finite.
    """
    if isinstance(frame, np.ndarray):
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
            got = f"{frame.shape} {frame.dtype}"
            raise ValueError(f"got a frame {got}, expected (H, W, 3) uint8, or a tensor (3, H, W) in [0, 1]")
        return frame
    if frame.ndim != 3 or frame.shape[0] != 3 or not frame.is_floating_point() or not frame.numel():
        got = f"{tuple(frame.shape)} {frame.dtype}"
        raise ValueError(f"got a frame {got}, expected (3, H, W) in [0, 1], or an array (H, W, 3) uint8")
    values = frame.detach().float().permute(1, 2, 0).contiguous().cpu().numpy()
    if not np.isfinite(values).all():
        raise ValueError("got a frame with pixels that are not finite, expected [0, 1]; check its source")
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def same_size(
    frame: Tensor | np.ndarray, other: Tensor | np.ndarray, *, what: str = "frames", fix: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Return both frames as `rgb8`.

    Raises ValueError for frames that differ in size; the message calls them `what` and ends in `fix`.
    """
    one, two = rgb8(frame), rgb8(other)
    if one.shape != two.shape:
        sizes = " and ".join(f"{pixels.shape[1]}x{pixels.shape[0]}" for pixels in (one, two))
        raise ValueError(f"got {what} of {sizes}, expected one size{fix}")
    return one, two


def unit_batch(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def luma(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float32 luma from 16 to 235 (BT.601, limited range), not rounded."""
    return cv2.transform(pixels.astype(np.float32), np.float32([LUMA])) + np.float32(16)


def psnr(frame: Tensor | np.ndarray, truth: Tensor | np.ndarray, *, channels: str = "rgb", crop: int = 0) -> float:
    """10 log10(255^2 / mean squared difference) in dB; infinite for equal frames.

    The mean is over all pixels and channels; `channels` one of `CHANNELS`: "y" (`luma`) is that of BasicSR, "gray"
    that of pyiqa ("gray8" for its SSIM). `crop` border pixels do not count. Raises ValueError for sizes that differ or
    a crop that leaves nothing, or an unknown `channels`.
    """
    one, other = _compared(frame, truth, channels, crop)
    error = cv2.norm(one, other, cv2.NORM_L2SQR) / one.size
    return float(10 * np.log10(PEAK**2 / error)) if error else float("inf")


def ssim(
    frame: Tensor | np.ndarray,
    truth: Tensor | np.ndarray,
    *,
    channels: str = "rgb",
    crop: int = 0,
    windows: str = "inside",
) -> float:
    """Structural similarity, at most 1 (Wang et al. 2004): the mean over channels and over windows inside the frame.

    Gaussian window of 11 pixels, sigma 1.5, biased covariance, K1 0.01, K2 0.03; arguments and errors as for `psnr`.
    With "gray8", negative contrast and structure count as 0, as in pyiqa 0.1.16, whose SSIM of gray this is.
    `windows`: "inside" the frame, or "torchmetrics", around every pixel, with the frame reflected at its border, as
    torchmetrics and with it StableVSR count: 0.005 to 0.018 lower on frames of 40x48. Raises ValueError also for frames
    smaller than the window, and for another word.
    """
    if windows not in WINDOWS:
        raise ValueError(f"got windows {windows!r}, expected one of {', '.join(WINDOWS)}")
    one, other = (pixels.astype(np.float64) for pixels in _compared(frame, truth, channels, crop))
    if min(one.shape[:2]) < WINDOW:
        size = f"{one.shape[1]}x{one.shape[0]}"
        raise ValueError(f"got frames of {size} behind the crop, expected at least {WINDOW} pixels a side")
    inside = windows == "inside"
    mean_one, mean_other = _smoothed(one, inside), _smoothed(other, inside)
    product, squares = mean_one * mean_other, mean_one * mean_one + mean_other * mean_other
    covariance = _smoothed(one * other, inside) - product
    variances = _smoothed(one * one + other * other, inside) - squares
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    likeness = (2 * product + c1) / (squares + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    if channels == "gray8":
        structure = np.maximum(structure, 0)
    return float((likeness * structure).mean())


def _smoothed(image: np.ndarray, inside: bool) -> np.ndarray:
    """The Gaussian means of all windows that lie inside the image, or of all, the image reflected at its border."""
    edge = WINDOW // 2
    means = cv2.GaussianBlur(image, (WINDOW, WINDOW), SIGMA, borderType=cv2.BORDER_REFLECT_101)
    return means[edge:-edge, edge:-edge] if inside else means


def _compared(frame, truth, channels: str, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Both frames in the compared channels, without the border."""
    one, other = same_size(frame, truth, fix=RESIZE)
    if channels not in CHANNELS:
        raise ValueError(f"got channels {channels!r}, expected one of {', '.join(CHANNELS)}")
    if not 0 <= 2 * crop < min(one.shape[:2]):
        raise ValueError(f"got crop {crop} for frames of {one.shape[1]}x{one.shape[0]}, expected some pixels inside")
    if channels != "rgb":
        one, other = _one_channel(one, channels), _one_channel(other, channels)
    inside = slice(crop, one.shape[0] - crop), slice(crop, one.shape[1] - crop)
    return np.ascontiguousarray(one[inside]), np.ascontiguousarray(other[inside])


def _one_channel(pixels: np.ndarray, channels: str) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) float32."""
    gray = channels.startswith("gray")
    values = cv2.transform(pixels.astype(np.float32), np.float32([GRAY])) if gray else luma(pixels)
    return np.rint(values) if channels.endswith("8") else values
