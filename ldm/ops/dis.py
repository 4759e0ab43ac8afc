"""Dense inverse search (Kroeger et al. 2016): optical flow on the CPU, without weights, by OpenCV."""

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
_SMALLEST = 32  # below this many pixels a side OpenCV's choice of scales fails, for some shapes by a crash


def _grey(images: Tensor) -> np.ndarray:
    """(n, 3, h, w) RGB in [0, 1] -> (n, h, w) uint8 luma (ITU-R BT.601)."""
    r, g, b = images.detach().float().unbind(1)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return (luma.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


class DISFlow(nn.Module):
    """Optical flow by dense inverse search; the weightless stand-in for RAFT and SpyNet.

    `preset` is "ultrafast", "fast" or "medium" (OpenCV's names). Runs on the CPU on 8-bit grey pictures, one pair at a
    time, and carries nothing from one pair to the next; no gradient.
    """

    def __init__(self, preset: str = "medium"):
        super().__init__()
        if preset not in _PRESETS:
            raise ValueError(f"got DIS preset {preset!r}, expected one of {sorted(_PRESETS)}")
        self.preset = preset

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """img1, img2 (n, 3, h, w) in [0, 1] -> (n, 2, h, w) float32: at img1, where the pixel lies in img2, in pixels.

        Pictures with a side below 32 are enlarged for the search. Raises ValueError for shapes that differ, and for
        pixels that are not finite (8-bit pictures could not show them).
        """
        if img1.ndim != 4 or img1.shape[1] != 3 or img1.shape != img2.shape:
            raise ValueError(f"got {tuple(img1.shape)} and {tuple(img2.shape)}, expected two (n, 3, h, w) of one shape")
        if not (torch.isfinite(img1).all() and torch.isfinite(img2).all()):
            raise ValueError("got pixels that are not finite, expected [0, 1]; check what made the frames")
        h, w = size = tuple(img1.shape[-2:])
        times = ceil(_SMALLEST / min(size))
        if times > 1:
            img1, img2 = (
                F.interpolate(x.float(), size=(h * times, w * times), mode="bicubic", align_corners=False)
                for x in (img1, img2)
            )
        # A new search object for every pair: it keeps buffers, and would make the module impossible to copy.
        pairs = zip(_grey(img1), _grey(img2), strict=True)
        flows = [cv2.DISOpticalFlow_create(_PRESETS[self.preset]).calc(a, b, None) for a, b in pairs]
        flow = torch.from_numpy(np.stack(flows)) if flows else torch.zeros(0, h * times, w * times, 2)
        return resize_flow(flow.movedim(-1, 1).to(img1.device), size=size)
