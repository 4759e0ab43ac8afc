"""Layers over whole clips, as Upscale-A-Video has them: norms over all frames, residual blocks in space and in time.

Maps are frames (b*t, c, h, w), clip after clip; every layer is told `num_frames`, t.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.layers import HALF, no_gradient, zero_init
from ldm.nets.temporal import check_clips, conv_over_time

TIME_GROUPS, TIME_EPS = 32, 1e-6  # of the norms in temporal blocks, whatever the network's own are


class ClipGroupNorm(nn.GroupNorm):
    """GroupNorm whose statistics run over the channels of a group and all frames and pixels of a clip.

    The same as GroupNorm of a map (b, c, t, h, w), without moving frames in memory; computed in float32 when the input
    is half precision. So frames influence each other, and a result depends on where a clip is cut.
    """

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(b*t, c, h, w) -> the same shape and dtype."""
        values = x.float() if x.dtype in HALF else x
        weight, bias = (part.to(values.dtype).view(self.num_groups, -1) for part in (self.weight, self.bias))
        fast = x.device.type == "cpu" and no_gradient(x, weight)
        moments = _moments_of_channels if fast else _moments_of_frames
        mean, variance = (part[:, None, :, None] for part in moments(values, self.num_groups, num_frames))
        scale = (variance + self.eps).rsqrt() * weight  # (b, 1, g, c/g)
        shift = torch.addcmul(bias, mean, scale, value=-1)
        scale, shift = (part.flatten(2)[..., None, None] for part in (scale, shift))  # (b, 1, c, 1, 1)
        out = torch.addcmul(shift, values.unflatten(0, (-1, num_frames)), scale)
        return out.flatten(0, 1).to(x.dtype)


def _joined(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of parts of equal size along the last dimension -> those of the whole."""
    whole = mean.mean(-1, keepdim=True)
    return whole.squeeze(-1), (variance + (mean - whole).square()).mean(-1)


def _moments_of_frames(x: Tensor, groups: int, num_frames: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (b, groups) of clips (b*t, c, h, w), with a gradient."""
    variance, mean = torch.var_mean(x.unflatten(1, (groups, -1)), dim=(2, 3, 4), correction=0)  # (b*t, g)
    return _joined(*(part.unflatten(0, (-1, num_frames)).transpose(1, 2) for part in (mean, variance)))


def _moments_of_channels(x: Tensor, groups: int, num_frames: int) -> tuple[Tensor, Tensor]:
    """The same without a gradient: by the kernel of torch that is exact and, on a CPU, up to 8 times as fast."""
    parts = [torch.batch_norm_update_stats(clip, None, None, 0.0) for clip in x.split(num_frames)]
    mean, variance = (torch.stack(part).unflatten(1, (groups, -1)) for part in zip(*parts, strict=True))  # (b, g, c/g)
    return _joined(mean, variance)


def clip_norm(channels: int, *, groups: int, eps: float) -> ClipGroupNorm:
    """An affine `ClipGroupNorm`. Raises ValueError where the groups do not divide the channels."""
    if groups < 1 or channels % groups:
        raise ValueError(f"got {channels} channels and {groups} groups, expected a divisor; change the width")
    return ClipGroupNorm(groups, channels, eps=eps)


class FrameConv(nn.Conv2d):
    """A 2-D convolution of every frame by itself."""

    def forward(self, x: Tensor, num_frames: int = 1) -> Tensor:
        return super().forward(x)


class TimeConv(nn.Conv3d):
    """A convolution over time at every pixel, `kernel` frames wide, zeros beyond the clip."""

    def __init__(self, channels: int, *, kernel: int) -> None:
        super().__init__(channels, channels, (kernel, 1, 1), padding=(kernel // 2, 0, 0))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        return conv_over_time(x, self, num_frames=num_frames)


class ClipResBlock(nn.Module):
    """Twice norm, SiLU and convolution, plus the input; names as in diffusers' ResnetBlock2D.

    Args:
        norms: the two norms.
        convs: the two convolutions.
        emb_channels: width of the embedding that is added per channel after the first convolution; None for none.
    """

    def __init__(
        self, norms: Sequence[ClipGroupNorm], convs: Sequence[nn.Module], *, emb_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.conv1, self.conv2 = convs
        channels, out_channels = self.norm1.num_channels, self.norm2.num_channels
        self.time_emb_proj = nn.Linear(emb_channels, out_channels) if emb_channels else None
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, num_frames: int, emb: Tensor | None = None) -> Tensor:
        """x (b*t, c, h, w), emb (1 | b, emb_channels) -> (b*t, c', h, w)."""
        h = self.conv1(F.silu(self.norm1(x, num_frames), inplace=True), num_frames)
        if self.time_emb_proj is not None:
            rows = self.time_emb_proj(F.silu(emb))
            h = h.add_((rows if len(rows) == 1 else rows.repeat_interleave(num_frames, 0))[..., None, None])
        h = self.conv2(F.silu(self.norm2(h, num_frames), inplace=True), num_frames)
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


def frame_block(
    channels: int, out_channels: int, *, groups: int, eps: float, emb_channels: int | None = None
) -> ClipResBlock:
    """A residual block of 3x3 convolutions per frame; only its norms join the frames."""
    return ClipResBlock(*_frame_layers(channels, out_channels, groups=groups, eps=eps), emb_channels=emb_channels)


def time_block(channels: int, *, kernel: int, emb_channels: int | None = None) -> ClipResBlock:
    """A residual block of convolutions over time, the first `kernel` frames wide and the second 3; 32 groups, 1e-6."""
    norms = [clip_norm(channels, groups=TIME_GROUPS, eps=TIME_EPS) for _ in range(2)]
    convs = [TimeConv(channels, kernel=width) for width in (kernel, 3)]
    return ClipResBlock(norms, convs, emb_channels=emb_channels)


def _frame_layers(channels: int, out_channels: int, *, groups: int, eps: float) -> tuple[list, list]:
    """Norms and convolutions of a block per frame; fewer channels than groups get one group each."""
    norms = [clip_norm(width, groups=min(groups, width), eps=eps) for width in (channels, out_channels)]
    return norms, [FrameConv(width, out_channels, 3, padding=1) for width in (channels, out_channels)]


class PlusBlock(ClipResBlock):
    """A residual block per frame, then `y + conv3d(SiLU(norm_3d(y)))` with a 3x3x3 convolution that starts at zero.

    Zeros are padded in space and in time.
    """

    def __init__(self, channels: int, out_channels: int, *, groups: int, eps: float) -> None:
        super().__init__(*_frame_layers(channels, out_channels, groups=groups, eps=eps))
        self.norm_3d = clip_norm(out_channels, groups=groups, eps=eps)
        self.conv_3d = zero_init(nn.Conv3d(out_channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor, num_frames: int, emb: Tensor | None = None) -> Tensor:
        """x (b*t, c, h, w) -> (b*t, c', h, w)."""
        y = super().forward(x, num_frames)
        h = F.silu(self.norm_3d(y, num_frames), inplace=True).unflatten(0, (-1, num_frames)).transpose(1, 2)
        return self.conv_3d(h).transpose(1, 2).flatten(0, 1).add_(y)


class TemporalModule(nn.Module):
    """Block over time (5 frames), block per frame and a 1x1 convolution that starts at zero, added to the input."""

    def __init__(self, channels: int, *, emb_channels: int) -> None:
        super().__init__()
        self.resblocks_3d_temporal = time_block(channels, kernel=5, emb_channels=emb_channels)
        self.resblocks_3d_spatial = frame_block(
            channels, channels, groups=TIME_GROUPS, eps=TIME_EPS, emb_channels=emb_channels
        )
        self.shift_conv = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, num_frames: int, emb: Tensor) -> Tensor:
        """x (b*t, c, h, w), emb (1 | b, emb_channels) -> (b*t, c, h, w)."""
        check_clips(x, num_frames=num_frames)
        h = self.resblocks_3d_spatial(self.resblocks_3d_temporal(x, num_frames, emb), num_frames, emb)
        return self.shift_conv(h).add_(x)
