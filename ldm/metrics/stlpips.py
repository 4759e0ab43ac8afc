"""ST-LPIPS: a learned perceptual distance that tolerates small shifts (Ghildyal and Liu, ECCV 2022).

The network follows the paper. Weights of trunk and heads are read from the wheel `stlpips-pytorch` 0.0.2 (BSD-2), with
the names of its file. Neither the package nor torchvision is imported.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.metrics.learned import version_of
from ldm.metrics.scored_frame import Unavailable

PACKAGE, MODULE = "stlpips-pytorch", "stlpips_pytorch"
FILE = "weights/vST0.0/alex_shift_tolerant.pth"
LEVELS = (64, 192, 384, 256, 256)  # channels of the five compared maps
SMALLEST = 32  # pixels a side


class BlurPool(nn.Module):
    """Downsample by 2 with a 3x3 binomial filter (Zhang 2019); borders are reflected by two pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


def _slice(first: int, *layers: nn.Module) -> nn.Sequential:
    """Layers numbered from `first`, as in the weight file."""
    part = nn.Sequential()
    for number, layer in enumerate(layers, start=first):
        part.add_module(str(number), layer)
    return part


class ShiftTolerantAlexNet(nn.Module):
    """AlexNet with a first convolution of stride 1 and antialiased downsampling; returns five feature maps."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = LEVELS
        self.slice1 = _slice(0, nn.Conv2d(3, a, 11, padding=2), BlurPool(a), nn.ReLU())
        self.slice2 = _slice(3, nn.MaxPool2d(3, stride=1), BlurPool(a), nn.Conv2d(a, b, 5, padding=2), nn.ReLU())
        self.slice3 = _slice(7, nn.MaxPool2d(3, stride=1), BlurPool(b), nn.Conv2d(b, c, 3, padding=1), nn.ReLU())
        self.slice4 = _slice(11, nn.Conv2d(c, d, 3, padding=1), nn.ReLU())
        self.slice5 = _slice(13, nn.Conv2d(d, e, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for part in self.children():
            x = part(x)
            maps.append(x)
        return maps


class Scaling(nn.Module):
    """Normalise pixels in [-1, 1] by the mean and the standard deviation of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class Head(nn.Module):
    """1x1 convolution to one channel; it is `model.1` in the file, after a dropout that is off in evaluation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class STLPIPS(nn.Module):
    """Distance between two images; weights are to be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = Scaling()
        self.net = ShiftTolerantAlexNet()
        for k, channels in enumerate(LEVELS):
            self.add_module(f"lin{k}", Head(channels))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a, b (n, 3, h, w) in [-1, 1] -> distances (n, 1, 1, 1).

        The sum over five maps of the mean over pixels of head((f(a) / |f(a)| - f(b) / |f(b)|)^2).
        """
        distance = 0.0
        for k, pair in enumerate(zip(self.net(self.scaling_layer(a)), self.net(self.scaling_layer(b)), strict=True)):
            one, other = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in pair)
            distance = distance + getattr(self, f"lin{k}")((one - other).square()).mean(dim=(2, 3), keepdim=True)
        return distance


def version() -> str:
    """Return the version of the installed wheel. Raises Unavailable where it is not installed."""
    return version_of(PACKAGE, pinned="==0.0.2")


@cache
def trained(device: str) -> STLPIPS:
    """Return the network with the weights of the wheel. Raises Unavailable for a wheel of another version."""
    version()
    folder = Path(importlib.util.find_spec(MODULE).origin).parent  # found, not imported
    model = STLPIPS()
    try:
        model.load_state_dict(torch.load(folder / FILE, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"{PACKAGE} {version()} has no {FILE} as in 0.0.2; install that version") from error
    return model.to(device).eval().requires_grad_(False)


def stlpips_score(device: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return a function that computes ST-LPIPS of two frames (H, W, 3) uint8, at least 32 pixels a side."""

    def score(one: np.ndarray, other: np.ndarray) -> float:
        if min(one.shape[:2]) < SMALLEST:
            raise Unavailable(f"frames of {one.shape[1]}x{one.shape[0]} are smaller than {SMALLEST} pixels")
        images = [torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float() for x in (one, other)]
        with torch.inference_mode():
            return float(trained(device)(*(x.to(device) / 127.5 - 1 for x in images)))

    return score
