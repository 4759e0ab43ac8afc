"""ST-LPIPS: a learned perceptual distance that forgives small shifts (Ghildyal and Liu, ECCV 2022).

The network is written here after the paper; the weights, trunk and heads, are those in the wheel `stlpips-pytorch`
0.0.2 (BSD-2), whose entries keep their names. Nothing of the package runs, and neither it nor torchvision is imported.
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
from ldm.metrics.look import Unavailable

PACKAGE, MODULE = "stlpips-pytorch", "stlpips_pytorch"
FILE = "weights/vST0.0/alex_shift_tolerant.pth"
LEVELS = (64, 192, 384, 256, 256)  # channels of the five compared maps
SMALLEST = 32  # pixels a side


class BlurPool(nn.Module):
    """Halve both sides behind a binomial filter (Zhang 2019), reflecting two pixels beyond the borders."""

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


def _densest() -> nn.MaxPool2d:
    """A maximum over 3x3 pixels at every pixel; the halving is left to `BlurPool`."""
    return nn.MaxPool2d(3, stride=1)


class ShiftTolerantAlexNet(nn.Module):
    """AlexNet with a first convolution of stride 1 and antialiased halvings; five maps of an image."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = LEVELS
        self.slice1 = _slice(0, nn.Conv2d(3, a, 11, padding=2), BlurPool(a), nn.ReLU())
        self.slice2 = _slice(3, _densest(), BlurPool(a), nn.Conv2d(a, b, 5, padding=2), nn.ReLU())
        self.slice3 = _slice(7, _densest(), BlurPool(b), nn.Conv2d(b, c, 3, padding=1), nn.ReLU())
        self.slice4 = _slice(11, nn.Conv2d(c, d, 3, padding=1), nn.ReLU())
        self.slice5 = _slice(13, nn.Conv2d(d, e, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for part in self.children():
            x = part(x)
            maps.append(x)
        return maps


class Scaling(nn.Module):
    """ImageNet's mean and deviation for pixels in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class Head(nn.Module):
    """One weight a channel; entry `model.1` in the file, behind a dropout that does nothing in a measurement."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class STLPIPS(nn.Module):
    """The distance of two images; weights are random or zero until they are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = Scaling()
        self.net = ShiftTolerantAlexNet()
        for k, channels in enumerate(LEVELS):
            self.add_module(f"lin{k}", Head(channels))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a, b (n, 3, h, w) in [-1, 1] -> (n, 1, 1, 1): the sum over five maps of the mean over pixels of
        head((f(a) / |f(a)| - f(b) / |f(b)|)**2)."""
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
    """The network with the weights of the wheel. Raises Unavailable for another wheel."""
    version()
    folder = Path(importlib.util.find_spec(MODULE).origin).parent  # found, not imported
    model = STLPIPS()
    try:
        model.load_state_dict(torch.load(folder / FILE, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"{PACKAGE} {version()} has no {FILE} as in 0.0.2; install that version") from error
    return model.to(device).eval().requires_grad_(False)


def stlpips_score(device: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """ST-LPIPS between two frames (H, W, 3) uint8, of at least 32 pixels a side."""

    def score(one: np.ndarray, other: np.ndarray) -> float:
        if min(one.shape[:2]) < SMALLEST:
            raise Unavailable(f"frames of {one.shape[1]}x{one.shape[0]} are smaller than {SMALLEST} pixels")
        images = [torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float() for x in (one, other)]
        with torch.inference_mode():
            return float(trained(device)(*(x.to(device) / 127.5 - 1 for x in images)))

    return score
