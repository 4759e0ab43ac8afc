"""Optical flow by dense inverse search (Kroeger et al. 2016), from OpenCV: on the CPU, without weights."""

from math import ceil

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.ops.flow import resize_flow

BUILDABLE = ("DISFlow",)  # what a configuration may name as a target

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
_SMALLEST = 32  # pixels a side; below it OpenCV's choice of scales fails and may crash


def _grey(images: Tensor) -> np.ndarray:
    """Convert RGB (n, 3, h, w) in [0, 1] to luma (n, h, w) uint8 (ITU-R BT.601)."""
    r, g, b = images.detach().float().unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return (luma.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


class DISFlow(nn.Module):
    """Optical flow by dense inverse search, an alternative to RAFT and SpyNet that needs no weights.

    `preset` is "ultrafast", "fast" or "medium" (OpenCV's names); ValueError for another. Runs on the CPU on 8-bit grey
    images, one independent pair at a time, without gradients.
    """

    def __init__(self, preset: str = "medium"):
        super().__init__()
        if preset not in _PRESETS:
            raise ValueError(f"got DIS preset {preset!r}, expected one of {sorted(_PRESETS)}")
        self.preset = preset

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Estimate the flow from img1 to img2 (n, 3, h, w) in [0, 1] -> (n, 2, h, w) float32, in pixels.

        The flow at a pixel of img1 is its displacement (x, y) to img2. Images with a side below 32 are enlarged for the
        search. Raises ValueError for different shapes, and for pixels that are not finite (8 bits would hide them).
        """
        if img1.ndim != 4 or img1.shape[1] != 3 or img1.shape != img2.shape:
            raise ValueError(f"got {tuple(img1.shape)} and {tuple(img2.shape)}, expected two (n, 3, h, w) of one shape")
        if not (torch.isfinite(img1).all() and torch.isfinite(img2).all()):
            raise ValueError("got pixels that are not finite, expected [0, 1]; check the source of the frames")
        h, w = size = tuple(img1.shape[-2:])
        times = ceil(_SMALLEST / min(size))
        if times > 1:
            img1, img2 = (
                F.interpolate(x.float(), size=(h * times, w * times), mode="bicubic", align_corners=False)
                for x in (img1, img2)
            )
        # A new object per pair: it keeps buffers, and as an attribute it would prevent copies of the module.
        pairs = zip(_grey(img1), _grey(img2), strict=True)
        flows = [cv2.DISOpticalFlow_create(_PRESETS[self.preset]).calc(a, b, None) for a, b in pairs]
        flow = torch.from_numpy(np.stack(flows)) if flows else torch.zeros(0, h * times, w * times, 2)
        return resize_flow(flow.movedim(-1, 1).to(img1.device), size=size)
