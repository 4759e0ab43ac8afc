"""Layers that mix the frames of a clip at each pixel: the temporal convolutions of MGLD-VSR."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_over_time(x: Tensor, conv: nn.Conv3d, *, num_frames: int) -> Tensor:
    """Apply a Conv3d of kernel (k, 1, 1) along time, k odd, with zeros before the first and after the last frame.

    Args:
        x: frames (b*t, c, h, w), clip after clip.
        conv: holds the weight (c', c, k, 1, 1), the bias and the dilation; the padding is dilation * (k // 2).
        num_frames: frames per clip, t >= 1.

    Returns:
        (b*t, c', h, w).

    Computed as one matrix product per tap, accumulated in place. Unlike Conv3d, this needs no transposed copy of the
    clip, no products with the padding, and no second map.
    """
    taps = conv.weight.squeeze(-1).unbind(2)  # each (c', c, 1)
    middle, step = len(taps) // 2, conv.dilation[0]
    y = F.conv2d(x, taps[middle].unsqueeze(-1), conv.bias)
    if num_frames <= step:
        return y
    out, frames = (maps.unflatten(0, (-1, num_frames)) for maps in (y, x.to(y.dtype)))  # (b, t, c, h, w)
    for k in range(len(out)):
        for distance in range(step, min(middle * step, num_frames - 1) + 1, step):
            before, after = taps[middle - distance // step], taps[middle + distance // step]
            _add_product(out[k, distance:], before.to(y.dtype), frames[k, :-distance])
            _add_product(out[k, :-distance], after.to(y.dtype), frames[k, distance:])
    return y


def _add_product(out: Tensor, weight: Tensor, x: Tensor) -> None:
    """Add weight (c', c, 1) times x (t, c, h, w) to out (t, c', h, w), as one product for channels-last maps."""
    if out.is_contiguous(memory_format=torch.channels_last):
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)  # (t*h*w, c)
        out.permute(0, 2, 3, 1).view(len(rows), -1).addmm_(rows, weight.squeeze(-1).t())
    else:
        out.view(*out.shape[:2], -1).baddbmm_(weight.squeeze(-1).expand(len(x), -1, -1), x.flatten(2))


def blend(x: Tensor, y: Tensor, alpha: Tensor) -> Tensor:
    """Return `alpha * y + (1 - alpha) * x` with `alpha` of shape (1,); exact at 0 and 1."""
    return torch.lerp(x, y.to(x.dtype), alpha.to(x.dtype))


def blend_parameter(start: float) -> nn.Parameter:
    """Create the learned blending weight of a temporal layer, shape (1,)."""
    return nn.Parameter(torch.full((1,), float(start)))


def _temporal_kernel(channels: int, *, dilation: int = 1) -> nn.Conv3d:
    return nn.Conv3d(channels, channels, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1))


class TemporalConv(nn.Module):
    """Convolution over three neighbouring frames, blended with its input: `a*conv(x) + (1-a)*x`.

    Args:
        channels: channels in and out.
        temporal_alpha: initial value of the learned weight `a` (no sigmoid). The default 0.1 changes an image model
            only slightly, and the convolution, whose gradient is proportional to `a`, learns from the first step;
            0 would stop that gradient. The released code leaves `a` uninitialised.

    Origin: `SpatialTemporalConv` of the released MGLD-VSR; the state-dict names are the same.
    """

    def __init__(self, channels: int, *, temporal_alpha: float = 0.1):
        super().__init__()
        self.temporal_alpha = blend_parameter(temporal_alpha)
        self.temporal_conv = _temporal_kernel(channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Mix the frames of each clip.

        Args:
            x: (b*t, c, h, w), clip after clip.
            num_frames: t, any number from 1 that divides the rows of `x`.

        Returns:
            (b*t, c, h, w).

        Raises:
            ValueError: the rows of `x` are not a whole number of clips.
        """
        check_clips(x, num_frames=num_frames)
        return blend(x, conv_over_time(x, self.temporal_conv, num_frames=num_frames), self.temporal_alpha)


class DilatedTemporalConv(nn.Module):
    """Two convolutions over time, dilation 1 and 2, blended with the input: `s*(y1+y2) + (1-s)*x`, `s = sigmoid(a)`.

    Args:
        channels: channels in and out.
        temporal_alpha: initial value of `a`, before the sigmoid; the default -2.2 gives s = 0.1 (see `TemporalConv`).

    Origin: `MultiDimTemporalConv` of the released MGLD-VSR (version 2 of its video decoder); same state-dict names.
    """

    def __init__(self, channels: int, *, temporal_alpha: float = -2.2):
        super().__init__()
        self.temporal_alpha = blend_parameter(temporal_alpha)
        self.temporal_conv1 = _temporal_kernel(channels)
        self.temporal_conv2 = _temporal_kernel(channels, dilation=2)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Mix the frames of each clip: (b*t, c, h, w) -> the same shape; ValueError as in `TemporalConv`."""
        check_clips(x, num_frames=num_frames)
        y = conv_over_time(x, self.temporal_conv1, num_frames=num_frames)
        y = y + conv_over_time(x, self.temporal_conv2, num_frames=num_frames)
        return blend(x, y, torch.sigmoid(self.temporal_alpha))


def check_clips(x: Tensor, *, num_frames: int) -> None:
    """Raise ValueError unless the rows of `x` (b*t, ...) are a whole number of clips of `num_frames` frames."""
    if num_frames < 1 or x.shape[0] % num_frames:
        raise ValueError(f"got {x.shape[0]} frames, expected clips of num_frames={num_frames}; pass complete clips")
