"""Colour correction: transfer the colours of the low-quality image to the restored one. Computed in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

_VARIANCE_FLOOR = 1e-5
_FLAT = 2 * 2 / 255  # range of the values in [-1, 1] of a frame of one colour: two levels of 8 bits


def _check_images(content: Tensor, style: Tensor) -> None:
    """Raise ValueError unless both are (n, c, h, w) with the same n and c."""
    if content.ndim != 4 or style.ndim != 4 or content.shape[:2] != style.shape[:2]:
        shapes = f"{tuple(content.shape)} and {tuple(style.shape)}"
        raise ValueError(f"got images {shapes}, expected (n, c, h, w) with the same n and c")


def _channel_moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, (n, c, 1, 1); unbiased variance plus 1e-5."""
    variance, mean = torch.var_mean(image, dim=(2, 3), keepdim=True, correction=1)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()


def adain_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """Give each channel of `content` the mean and standard deviation of that of `style`, frame by frame.

    Both are (n, c, h, w) with any range of values; h and w may differ. Raises ValueError for other shapes. Adaptive
    instance normalisation (AdaIN; Huang and Belongie 2017).
    """
    _check_images(content, style)
    mean, deviation = _channel_moments(content.float())
    wanted_mean, wanted_deviation = _channel_moments(style.float())
    return ((content.float() - mean) / deviation * wanted_deviation + wanted_mean).to(content.dtype)


def wavelet_blur(image: Tensor, radius: int) -> Tensor:
    """Blur (n, c, h, w) by [1 2 1] x [1 2 1] / 16 with taps `radius` pixels apart and replicated edges."""
    padded = F.pad(image.float(), (radius,) * 4, mode="replicate")
    h, w = image.shape[-2:]
    # sums of shifted views rather than a convolution, which would drop to half precision under autocast
    rows = 0.25 * (padded[..., :h, :] + padded[..., 2 * radius :, :]) + 0.5 * padded[..., radius : radius + h, :]
    return 0.25 * (rows[..., :w] + rows[..., 2 * radius :]) + 0.5 * rows[..., radius : radius + w]


def wavelet_decompose(image: Tensor, levels: int = 5) -> tuple[Tensor, Tensor]:
    """Split (n, c, h, w) into float32 bands (high, low) that sum to the image; blurs of radius 1, 2, 4 ..."""
    low = image.float()
    high = torch.zeros_like(low)
    for level in range(levels):
        blurred = wavelet_blur(low, 2**level)
        high = high + (low - blurred)
        low = blurred
    return high, low


def wavelet_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """Combine the high band of `content` with the low band of `style`, both (n, c, h, w).

    Raises ValueError for different sizes. The wavelet colour correction of StableSR (Wang et al. 2023).
    """
    _check_images(content, style)
    if content.shape != style.shape:
        shapes = f"{tuple(content.shape)} and {tuple(style.shape)}"
        raise ValueError(f"got images {shapes}, expected one size; resize the style")
    return (wavelet_decompose(content)[0] + wavelet_decompose(style)[1]).to(content.dtype)


def wavelet_fix_keeping_flat(content: Tensor, style: Tensor) -> Tensor:
    """Apply `wavelet_color_fix`, but return the frames of `style` that have one colour, both (n, c, h, w) in [-1, 1].

    A frame whose channels each vary by 2/255 of their range at most, such as black between scenes, holds no detail to
    restore, but the high band of a decoded frame keeps patterns of the networks there (measured up to 60/255).
    """
    fixed = wavelet_color_fix(content, style)
    spread = style.float().amax((2, 3), keepdim=True) - style.float().amin((2, 3), keepdim=True)
    return torch.where((spread <= _FLAT).all(1, keepdim=True), style.to(fixed.dtype), fixed)


COLOR_FIXES = {  # fn(content, style), both (n, c, h, w) in [-1, 1]
    "adain": adain_color_fix,
    "wavelet": wavelet_fix_keeping_flat,
    "nofix": lambda content, style: content,
}
