"""SpyNet (Ranjan and Black 2017, "Optical flow estimation using a spatial pyramid network")."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.ops.flow import flow_warp, resize_flow

BUILDABLE = ("SpyNet",)  # what a configuration may name as a target

_LEVELS = 6
_MULTIPLE = 2 ** (_LEVELS - 1)
_SMALLEST = 2 * _MULTIPLE  # two pixels a side on the coarsest level; the released code fails on sides up to 32


class SpyNetLevel(nn.Module):
    """Five 7x7 convolutions: (image 1, warped image 2, flow) (n, 8, h, w) -> flow update (n, 2, h, w)."""

    def __init__(self):
        super().__init__()
        widths, layers = (8, 32, 64, 32, 16, 2), []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 7, padding=3), nn.ReLU()]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


class SpyNet(nn.Module):
    """Optical flow by SpyNet, with the state-dict names of `loss.flownet.` (SPEC 2.5).

    1 440 300 parameters. Expects images in [0, 1] and applies the ImageNet mean and deviation itself; the released
    training passes images in [-1, 1] (bug B12), so that inputs are not clamped or checked. `constant_buffers`
    lists constants that some files (`spynet_sintel_final-3d2a1287.pth`) lack. Computes in float32 under autocast.
    """

    constant_buffers: tuple[str, ...] = ("mean", "std")

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.basic_module = nn.ModuleList(SpyNetLevel() for _ in range(_LEVELS))

    def forward(self, img1: Tensor, img2: Tensor) -> Tensor:
        """Estimate the flow from img1 to img2 (n, 3, h, w) in [0, 1] -> (n, 2, h, w) float32, in pixels.

        Images are resized to multiples of 32, at least 64, and the flow is resized back; differentiable in both images.
        Raises ValueError for different shapes, and for weights in half precision.
        """
        if img1.ndim != 4 or img1.shape[1] != 3 or img1.shape != img2.shape:
            raise ValueError(f"got {tuple(img1.shape)} and {tuple(img2.shape)}, expected two (n, 3, h, w) of one shape")
        dtype = self.mean.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"got SpyNet weights in {dtype}, expected torch.float32; call .float() on the network")
        size = tuple(img1.shape[-2:])
        inner = tuple(max(-(-side // _MULTIPLE) * _MULTIPLE, _SMALLEST) for side in size)
        with torch.autocast(img1.device.type, enabled=False):
            img1, img2 = (
                F.interpolate(x.to(dtype), size=inner, mode="bilinear", align_corners=False) for x in (img1, img2)
            )
            return resize_flow(self._flow(img1, img2), size=size).float()

    def _flow(self, img1: Tensor, img2: Tensor) -> Tensor:
        pyramid = [((img1 - self.mean) / self.std, (img2 - self.mean) / self.std)]
        for _ in range(_LEVELS - 1):
            pyramid.insert(0, tuple(F.avg_pool2d(x, 2) for x in pyramid[0]))
        flow = torch.zeros_like(pyramid[0][0][:, :2])  # on the coarsest level
        for level, (first, second) in zip(self.basic_module, pyramid, strict=True):
            if flow.shape[-2:] != first.shape[-2:]:
                flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
            warped = flow_warp(second, flow, padding="border")
            flow = flow + level(torch.cat((first, warped, flow), 1))
        return flow
