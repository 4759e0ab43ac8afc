"""Classifier-free guidance (Ho and Salimans 2021): a prediction drawn away from that of a negative prompt."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    predict: Callable[..., Tensor], *, positive: Tensor, negative: Tensor | None, scale: float
) -> Callable[..., Tensor]:
    """run(*clips, **settings) = u + scale (p - u), of predict(*clips, context=..., **settings).

    Both halves share one call: clips (1 | B, ...) are doubled, the negative half in front, as released; clips of one
    row are left as they are. At a scale of 1 or less only the positive prompt is computed, at no cost, as released.
    The sum is float32; the result has the prediction's dtype.

    Args:
        predict: a network with its other arguments bound.
        positive, negative: text embeddings (1 | B, tokens, channels); `negative` None where it is not used.
        scale: of the guidance.

    Raises:
        ValueError: a scale that is not a finite number, or above 1 without a negative embedding.
    """
    if not math.isfinite(scale):
        raise ValueError(f"got guidance scale {scale}, expected a finite number")
    if scale <= 1:
        return lambda *clips, **settings: predict(*clips, context=positive, **settings)
    if negative is None:
        raise ValueError(f"got guidance scale {scale} without a negative prompt, expected one; '' is enough")

    def run(*clips: Tensor, **settings) -> Tensor:
        rows = len(clips[0])
        halves = [text.expand(rows, -1, -1) for text in (negative, positive)]
        doubled = [torch.cat((clip, clip)) if k == 0 or len(clip) > 1 else clip for k, clip in enumerate(clips)]
        both = predict(*doubled, context=torch.cat(halves), **settings)
        from_negative, from_positive = both.float().chunk(2)
        return (from_negative + scale * (from_positive - from_negative)).to(both.dtype)

    return run


def noise_label(noise_level: int, denoise_level: int | None, *, frames: int, released: bool = False) -> int:
    """The noise level that the network is told: `denoise_level` where that is given, else that of the frames.

    `released`: clips of 8 frames or fewer keep `noise_level` in any case, as in the released pipeline (quirk U1).
    """
    if denoise_level is None or (released and frames <= 8):
        return noise_level
    return denoise_level
