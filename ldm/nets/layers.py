"""Building blocks of the denoiser and of the condition encoder: norms, time embedding, residual blocks, SPADE."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HALF = (torch.float16, torch.bfloat16)
PIXELS = 16384  # of a map at a time in GroupNorm: few enough for sums in float32
CONVERTED = 2**20  # values of a half-precision map that GroupNorm holds in float32 at a time


class GroupNorm(nn.GroupNorm):
    """GroupNorm computed in float32 when the input is half precision; the result has the input's dtype and layout.

    Maps stored channels last on a CPU take a way of their own where no gradient is asked for: torch's kernel for them
    subtracts E[x]**2 from E[x**2] in float32, which is off by 1e-3 on large maps and by anything where the mean is
    large (torch 2.13). This one is within 2e-5, as fast, and 2 to 4 times faster for half precision.
    """

    def forward(self, x: Tensor) -> Tensor:
        half = x.dtype in HALF
        weight, bias = (self.weight.float(), self.bias.float()) if half else (self.weight, self.bias)
        if x.device.type == "cpu" and pixel_major(x) and no_gradient(x, weight):
            return group_norm_of_pixels(x, self.num_groups, weight.float(), bias.float(), self.eps)
        # not F.group_norm, which refuses a group of one value: maps of one pixel are allowed here
        return torch.group_norm(x.float() if half else x, self.num_groups, weight, bias, self.eps).to(x.dtype)


def no_gradient(*tensors: Tensor) -> bool:
    """Whether what is computed from these will not be differentiated."""
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def pixel_major(x: Tensor) -> bool:
    """Whether the channels of each pixel of a map lie side by side and its pixels do not (channels_last)."""
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def group_norm_of_pixels(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GroupNorm of a `pixel_major` map (n, c, h, w), any float type; weight and bias float32. No gradient.

    Two passes, in few calls: each starts all threads, which is dear on a machine that is busy otherwise.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (n, h*w, c), a view
    mean, variance = group_moments(pixels, groups)
    scale = (variance + eps).rsqrt()[..., None] * weight.view(groups, -1)  # (n, groups, c / groups)
    shift = torch.addcmul(bias.view(groups, -1), mean[..., None], scale, value=-1)
    scale, shift, out = scale.flatten(1)[:, None], shift.flatten(1)[:, None], torch.empty_like(pixels)
    # computed in float32 and rounded to the type of the map; in half precision piece by piece, for torch makes a
    # float32 copy of what it is given
    step = pixels.shape[1] if x.dtype == torch.float32 else max(1, CONVERTED // pixels[:, 0].numel())
    for piece, target in zip(pixels.split(step, dim=1), out.split(step, dim=1), strict=True):
        torch.addcmul(shift, piece, scale, out=target)
    return out.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def group_moments(pixels: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by the count) of each group of channels, (n, groups) float32, of pixels (n, hw, c)."""
    n, count, channels = pixels.shape
    pieces = pixels.split(PIXELS, dim=1)
    # of each channel in each piece, by the one kernel of torch that is exact and fast for this layout; (1, c, p, 1)
    parts = [
        torch.batch_norm_update_stats(piece[i].float().t()[None, ..., None], None, None, 0.0)
        for i in range(n)
        for piece in pieces
    ]
    means, variances = (torch.stack(part).view(n, -1, groups, channels // groups) for part in zip(*parts, strict=True))
    share = means.new_tensor([piece.shape[1] / count * groups / channels for piece in pieces])[:, None, None]
    mean = (means * share).sum((1, 3), keepdim=True)
    variance = (torch.addcmul(variances, means - mean, means - mean) * share).sum((1, 3))
    return mean[:, 0, :, 0], variance


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 when the input is half precision; the result has the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in HALF:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x (..., in), weight (out, in) -> (..., out).

    In float32 on a CPU it runs as a convolution over pixels, which adds the bias as it goes and is up to 1.6 times as
    fast as the matrix product and the copy of the bias before it.
    """
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not plain or not x.numel() or not no_gradient(x, weight):
        return F.linear(x, weight, bias)
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, in, rows, 1), channels last
    return F.conv2d(pixels, weight[..., None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """nn.Linear by way of `linear`: for many rows."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def group_norm(channels: int, *, groups: int = 32, eps: float = 1e-5) -> GroupNorm:
    """Affine GroupNorm as the denoiser and the condition encoder use it: 32 groups, eps 1e-5.

    Raises:
        ValueError: `channels` is not a multiple of `groups`.
    """
    if channels % groups:
        raise ValueError(f"got {channels} channels, expected a multiple of {groups}; change the width")
    return GroupNorm(groups, channels, eps=eps)


def regroup(network: nn.Module, groups: int) -> None:
    """Give every GroupNorm of 32 groups in `network` this many instead: for widths where 32 leave one channel each.

    A group of one channel forgets the channel's mean, and with it colour. Published weights need 32.

    Raises:
        ValueError: a width that `groups` does not divide.
    """
    for norm in network.modules():
        if isinstance(norm, nn.GroupNorm) and norm.num_groups == 32:
            if groups < 1 or norm.num_channels % groups:
                raise ValueError(f"got norm_groups={groups}, expected a divisor of the width {norm.num_channels}")
            norm.num_groups = groups


def timestep_embedding(t: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding [cos(t*f) | sin(t*f)] with f_k = max_period**(-k/half), half = dim // 2.

    Args:
        t: time steps (n,), any number type.
        dim: channels; an odd number gets one zero column at the end.

    Returns:
        (n, dim), always float32, since half precision cannot hold the phase of t = 999.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    phase = t.float()[:, None] * torch.exp(-math.log(max_period) * k / half)
    return F.pad(torch.cat([phase.cos(), phase.sin()], dim=1), (0, dim % 2))


class TimeEmbedding(nn.Sequential):
    """Sinusoid of the time step, Linear, SiLU, Linear: time steps (n,) -> (n, out_channels), in the weights' dtype."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__(nn.Linear(channels, out_channels), nn.SiLU(), nn.Linear(out_channels, out_channels))

    def forward(self, t: Tensor) -> Tensor:
        first = self[0]
        return super().forward(timestep_embedding(t, first.in_features).to(first.weight.dtype))


def per_frame(rows: Tensor, frames: int, *, num_frames: int, name: str) -> Tensor:
    """Give every frame its row: 1 row (for all), one row per clip or one per frame.

    Args:
        rows: (1 | b | b*t, ...).
        frames: b*t.
        num_frames: t.
        name: of the argument, for the error.

    Returns:
        `rows` itself where it has 1 or b*t rows (1 broadcasts), otherwise (b*t, ...) with row k for the frames
        k*t .. k*t+t-1.

    Raises:
        ValueError: any other number of rows.
    """
    clips, given = frames // num_frames, rows.shape[0]
    if given in (1, frames):
        return rows
    if given == clips:
        return rows.repeat_interleave(num_frames, dim=0)
    raise ValueError(f"got {given} rows of {name}, expected 1, {clips} (one per clip) or {frames} (one per frame)")


def zero_init(layer: nn.Module) -> nn.Module:
    """Set every parameter of `layer` to zero and return it: a residual branch that starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class SPADE(nn.Module):
    """Spatially adaptive normalisation: `GN(x) * (1 + gamma(cond)) + beta(cond)` (Park et al. 2019).

    `param_free_norm` is affine in the released model, despite its name; 32 groups, eps 1e-5. `hidden` channels lie
    between the condition map and gamma and beta.
    """

    def __init__(self, channels: int, cond_channels: int, *, hidden: int = 128):
        super().__init__()
        self.param_free_norm = group_norm(channels)
        self.mlp_shared = nn.Sequential(nn.Conv2d(cond_channels, hidden, 3, padding=1), nn.ReLU(inplace=True))
        self.mlp_gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Modulate x (n, c, h, w) by the condition map (n, cond_channels, h, w) -> (n, c, h, w)."""
        shared, conv = self.mlp_shared(cond), self.mlp_gamma
        factor = F.conv2d(shared, conv.weight, conv.bias + 1, padding=conv.padding)  # 1 + gamma
        return self.mlp_beta(shared).addcmul_(self.param_free_norm(x), factor)


class ResBlock(nn.Module):
    """Residual block with a time embedding and, where `cond_channels` is given, SPADE before the skip is added.

    Args:
        channels: channels in.
        emb_channels: width of the time embedding.
        out_channels: channels out (default: as in); a 1x1 convolution adapts the skip where they differ.
        cond_channels: channels of the condition map; None for a block without SPADE.
        cond_hidden: channels inside the SPADE.
        out_groups: groups of the second norm.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        *,
        out_channels: int | None = None,
        cond_channels: int | None = None,
        cond_hidden: int = 128,
        out_groups: int = 32,
    ):
        super().__init__()
        width = out_channels or channels
        self.in_layers = nn.Sequential(
            group_norm(channels), nn.SiLU(inplace=True), nn.Conv2d(channels, width, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        if cond_channels:  # created here because optimiser states list parameters in this order
            self.spade = SPADE(width, cond_channels, hidden=cond_hidden)
        self.out_layers = nn.Sequential(
            group_norm(width, groups=out_groups),
            nn.SiLU(inplace=True),
            nn.Identity(),  # the place of dropout in the released numbering
            zero_init(nn.Conv2d(width, width, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if width == channels else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, emb: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (n, c, h, w), emb (1 | n, emb_channels), cond (n, cond_channels, h, w) or None -> (n, c', h, w)."""
        h = self.in_layers(x).add_(self.emb_layers(emb)[:, :, None, None])
        h = self.out_layers(h)
        if cond is not None:
            h = self.spade(h, cond)
        return h.add_(self.skip_connection(x))


class Downsample(nn.Module):
    """Convolution 3x3 of stride 2 and padding 1: (n, c, h, w) -> (n, c, ceil(h/2), ceil(w/2))."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour x2, then convolution 3x3: (n, c, h, w) -> (n, c, 2h, 2w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def down_path(
    stem: nn.Conv2d, block: Callable[..., nn.ModuleList], widths: Sequence[int], *, num_res_blocks: int
) -> tuple[nn.ModuleList, list[int], list[int]]:
    """The first half of a U-Net: (blocks, the level of each block, the channels after each block).

    Args:
        stem: the first block.
        block: block(width, out, level) makes the layers of one block.
        widths: channels of each level, finest first; between levels stands a Downsample.
        num_res_blocks: blocks per level.
    """
    blocks, levels, channels = [nn.ModuleList([stem])], [0], [stem.out_channels]
    for level, width in enumerate(widths):
        if level > 0:
            blocks.append(nn.ModuleList([Downsample(channels[-1])]))
            levels.append(level)
            channels.append(channels[-1])
        for _ in range(num_res_blocks):
            blocks.append(block(channels[-1], width, level))
            levels.append(level)
            channels.append(width)
    return nn.ModuleList(blocks), levels, channels


def compile_once(module: nn.Module) -> None:
    """Compile a module in place by torch.compile, for fixed shapes, unless it is compiled already."""
    if module._compiled_call_impl is None:
        module.compile(dynamic=False)


def half_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`module` with the weights of its convolutions and linear layers in half precision; others, as of norms, stay.

    Under autocast to `dtype` results are equal up to the rounding of biases, without a cast of each weight per call.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            for parameter in layer.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    return module


def channels_last(module: nn.Module) -> nn.Module:
    """`module` with its 2-D convolutions stored channels last: the same numbers, up to seven times faster on CPUs."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module
