"""The image autoencoder of Stable Diffusion: 8x smaller latents, Gaussian posterior (Rombach et al. 2022, sec. 3.1)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.layers import group_norm, zero_init
from ldm.nets.linear_path import LinearPath, from_blocks, to_blocks

BUILDABLE = ("AutoencoderKL",)  # what a configuration may name as a target

NORM_EPS = 1e-6  # 1e-5 in the U-Net and in the condition encoder
LOGVAR_RANGE = (-30.0, 20.0)


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents: mean and log-variance, each (n, c, h, w)."""

    mean: Tensor
    logvar: Tensor

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    def sample(self, eps: Tensor) -> Tensor:
        """mean + std * eps for standard normal eps of the mean's shape."""
        return self.mean + self.std * eps.to(self.mean)


def posterior(moments: Tensor) -> Posterior:
    """Split moments (n, 2c, h, w) into mean and log-variance, the latter clamped to [-30, 20]."""
    mean, logvar = moments.chunk(2, dim=1)
    return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))


def vae_norm(channels: int, *, groups: int = 32) -> nn.Module:
    """GroupNorm with the autoencoder's eps of 1e-6; computed in float32 for half-precision maps."""
    return group_norm(channels, groups=groups, eps=NORM_EPS)


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """Return silu(norm(x)), computed in place in the output of the norm to save one map."""
    return F.silu(norm(x), inplace=True)


def conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResnetBlock(nn.Module):
    """Residual block: twice norm, SiLU, 3x3 convolution. `shortcut` is the name of the 1x1 convolution, if needed."""

    def __init__(
        self, in_channels: int, out_channels: int, *, shortcut: str = "nin_shortcut", groups: int = 32
    ) -> None:
        super().__init__()
        self.shortcut = shortcut if in_channels != out_channels else None
        self.norm1 = vae_norm(in_channels, groups=groups)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = vae_norm(out_channels, groups=groups)
        self.conv2 = conv3x3(out_channels, out_channels)
        if self.shortcut:
            self.add_module(self.shortcut, nn.Conv2d(in_channels, out_channels, 1))

    def first(self, x: Tensor) -> Tensor:
        """Compute the first half of the branch: (n, in, h, w) -> (n, out, h, w)."""
        return self.conv1(norm_silu(self.norm1, x))

    def second(self, h: Tensor) -> Tensor:
        """Compute the second half of the branch: (n, out, h, w) -> the same shape."""
        return self.conv2(norm_silu(self.norm2, h))

    def skip(self, x: Tensor) -> Tensor:
        """Compute the skip connection: (n, in, h, w) -> (n, out, h, w)."""
        return getattr(self, self.shortcut)(x) if self.shortcut else x

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h, w)."""
        return self.second(self.first(x)).add_(self.skip(x))


class VAEAttention(nn.Module):
    """Residual self-attention over all pixels with one head, without storing the (hw, hw) matrix."""

    def __init__(self, channels: int, *, groups: int = 32) -> None:
        super().__init__()
        self.norm = vae_norm(channels, groups=groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        n, c, height, width = x.shape
        h = self.norm(x)
        # Fused kernels need contiguous channels per token; channels_last maps are not copied here.
        q, k, v = (layer(h).permute(0, 2, 3, 1).reshape(n, 1, height * width, c).contiguous()
                   for layer in (self.q, self.k, self.v))  # fmt: skip
        h = F.scaled_dot_product_attention(q, k, v)  # (n, 1, hw, c)
        h = h.reshape(n, height, width, c).permute(0, 3, 1, 2)
        return x + self.proj_out(h)  # in this order the result keeps the memory format of x


class VAEDownsample(nn.Module):
    """Halve both sides: one zero column right and one zero row below, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def merge_taps(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Merge three taps along `dim` to two, for even and odd outputs of a doubled map: (0, 1+2) and (0+1, 2)."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)


def upsample_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 3x3 convolution (zero padding 1) to x upsampled by 2 (nearest), without computing the upsampled map.

    Output pixel (2i + a, 2j + b) depends on only 2x2 pixels of x. Weights for the same pixel are added (in float32),
    which leaves one 2x2 convolution per (a, b): 4/9 of the multiplications.

    (n, c, h, w), weight (c', c, 3, 3) -> (n, c', 2h, 2w).
    """
    n, _, height, width = x.shape
    out = None
    for a, rows in enumerate(merge_taps(weight.to(torch.promote_types(weight.dtype, torch.float32)), 2)):
        for b, kernel in enumerate(merge_taps(rows, 3)):
            # padding both sides needs no copy of x; the extra row and column are discarded
            part = F.conv2d(x, kernel.to(weight.dtype), bias, padding=1)  # (n, c', h + 1, w + 1)
            if out is None:
                last = not part.is_contiguous() and part.is_contiguous(memory_format=torch.channels_last)
                layout = torch.channels_last if last else torch.contiguous_format
                size = (n, weight.shape[0], 2 * height, 2 * width)
                out = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=layout)
            out[:, :, a::2, b::2] = part[:, :, a : a + height, b : b + width]
    return out


class VAEUpsample(nn.Module):
    """Double both sides by repetition, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv3x3(x, self.conv.weight, self.conv.bias)


class VAEMiddle(nn.Module):
    """Residual block, attention (or none), residual block at the coarsest level."""

    def __init__(self, channels: int, *, groups: int = 32, attention: bool = True) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups=groups)
        self.attn_1 = VAEAttention(channels, groups=groups) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class VAELevel(nn.Module):
    """The residual blocks of one level, each followed by attention where `attention` is set; no change of size."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, attention: bool = False, groups: int = 32
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, groups=groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(VAEAttention(out_channels, groups=groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for k, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[k](x)
        return x


def level_widths(ch: int, ch_mult: Sequence[float]) -> list[int]:
    """Channels of every level, finest first: ch * ch_mult[L], rounded."""
    return [round(ch * factor) for factor in ch_mult]


class Encoder(nn.Module):
    """Image in [-1, 1] (n, in_channels, H, W) -> (n, 2 * z_channels, H / f, W / f), f = 2 ** (levels - 1).

    Args:
        ch, ch_mult: width of level L is ch * ch_mult[L]; L = 0 is the finest. Factors may be fractions.
        num_res_blocks: residual blocks per level.
        attn_resolutions, resolution: a level has attention where resolution // 2 ** L is listed; no other effect.
        norm_groups: groups of every norm.
        middle_attention: whether the coarsest level has attention between its last two blocks.
    """

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[float] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
        in_channels: int = 3,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        norm_groups: int = 32,
        middle_attention: bool = True,
    ) -> None:
        super().__init__()
        widths = [ch, *level_widths(ch, ch_mult)]
        self.conv_in = conv3x3(in_channels, ch)
        self.down = nn.ModuleList()
        for level in range(len(ch_mult)):
            attention = resolution // 2**level in attn_resolutions
            width = widths[level + 1]
            stage = VAELevel(widths[level], width, num_res_blocks, attention=attention, groups=norm_groups)
            if level < len(ch_mult) - 1:
                stage.downsample = VAEDownsample(width)
            self.down.append(stage)
        self.mid = VAEMiddle(widths[-1], groups=norm_groups, attention=middle_attention)
        self.norm_out = vae_norm(widths[-1], groups=norm_groups)
        self.conv_out = conv3x3(widths[-1], 2 * z_channels)

    def descend(self, x: Tensor, *, keep: Sequence[int], last: int) -> tuple[Tensor, list[Tensor]]:
        """Return the map of level `last` and those of the levels in `keep`, before downsampling, finest first."""
        kept, h = [], self.conv_in(x)
        for level, stage in enumerate(self.down[: last + 1]):
            h = stage(h)  # (n, ch * ch_mult[level], H / 2**level, W / 2**level)
            if level in keep:
                kept.append(h)
            if level < last:
                h = stage.downsample(h)
        return h, kept

    def features(self, x: Tensor, *, keep: Sequence[int]) -> list[Tensor]:
        """Return the maps of the levels in `keep`, as `forward` does, without computing coarser levels."""
        return self.descend(x, keep=keep, last=max(keep))[1] if keep else []

    def forward(self, x: Tensor, *, keep: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Return the moments and the maps of the levels in `keep` (before downsampling), finest first."""
        h, kept = self.descend(x, keep=keep, last=len(self.down) - 1)
        h = self.mid(h)
        return self.conv_out(norm_silu(self.norm_out, h)), kept


class Decoder(nn.Module):
    """Latent (n, z_channels, h, w) -> image around [-1, 1] (n, out_ch, h * f, w * f); arguments as for `Encoder`."""

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[float] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
        out_ch: int = 3,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        norm_groups: int = 32,
        middle_attention: bool = True,
    ) -> None:
        super().__init__()
        widths = level_widths(ch, ch_mult)
        self.conv_in = conv3x3(z_channels, widths[-1])
        self.mid = VAEMiddle(widths[-1], groups=norm_groups, attention=middle_attention)
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[min(level + 1, len(widths) - 1)]
            attention = resolution // 2**level in attn_resolutions
            stage = VAELevel(before, width, num_res_blocks + 1, attention=attention, groups=norm_groups)
            if level > 0:
                stage.upsample = VAEUpsample(width)
            self.up.append(stage)
        self.norm_out = vae_norm(widths[0], groups=norm_groups)
        self.conv_out = conv3x3(widths[0], out_ch)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(range(len(self.up))):
            h = self.up[level](h)  # (n, ch * ch_mult[level], h * f / 2**level, ...)
            if level > 0:
                h = self.up[level].upsample(h)
        return self.conv_out(norm_silu(self.norm_out, h))


def check_image(x: Tensor, *, downsampling: int) -> None:
    """Raise ValueError unless x is (n, c, H, W) with both sides multiples of `downsampling`."""
    if x.ndim != 4 or x.shape[-2] % downsampling or x.shape[-1] % downsampling:
        raise ValueError(
            f"got an image of shape {tuple(x.shape)}, expected (n, c, H, W) with H and W multiples of {downsampling}; "
            "flatten clips to frames and pad the sides first"
        )


def check_sides(x: Tensor, least: int) -> None:
    """Raise ValueError unless both sides of images (..., H, W) have `least` pixels or more."""
    if min(x.shape[-2:]) < least:
        raise ValueError(f"got images of {x.shape[-2]}x{x.shape[-1]} pixels, expected {least} a side or more; pad them")


def beside_synthesis(net: nn.Module, y: Tensor, z: Tensor) -> Tensor:
    """The decoder's maps y of the latents z with those of the linear path added."""
    return y if net.linear is None else y + net.linear.synthesise(z)


class AutoencoderKL(nn.Module):
    """The image VAE of Stable Diffusion, with the parameter names of the released files.

    Args:
        embed_dim: channels of the latent that `decode` takes and of the posterior's mean.
        norm_groups: groups of every norm; 32 as published.
        double_z: must be true; kept because released configurations carry it.
        patch: side of the blocks of pixels that the networks read and write as channels; 1, as published, for pixels.
        linear: whether a linear path (`LinearPath`) encodes, in place of a network, and stands beside the decoder,
            which starts as nothing then. `encoder` and `quant_conv` hold no weights then.
        The others as for `Encoder` and `Decoder`.
    Raises:
        ValueError: for double_z = False, a latent without a variance.
    """

    posterior = staticmethod(posterior)

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[float] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
        embed_dim: int = 4,
        in_channels: int = 3,
        out_ch: int = 3,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        double_z: bool = True,
        norm_groups: int = 32,
        middle_attention: bool = True,
        patch: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        if not double_z:
            raise ValueError("got double_z=False, expected True; the posterior needs a mean and a log-variance")
        shared = {"ch": ch, "ch_mult": ch_mult, "num_res_blocks": num_res_blocks, "z_channels": z_channels,
                  "attn_resolutions": attn_resolutions, "resolution": resolution,
                  "norm_groups": norm_groups, "middle_attention": middle_attention}  # fmt: skip
        self.patch, self.downsampling = patch, patch * 2 ** (len(ch_mult) - 1)
        self.encoder = nn.Identity() if linear else Encoder(in_channels=in_channels * patch**2, **shared)
        self.decoder = Decoder(out_ch=out_ch * patch**2, **shared)
        self.quant_conv = None if linear else nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.linear = None
        if linear:
            self.linear = LinearPath(in_channels * patch**2, embed_dim, scale=2 ** (len(ch_mult) - 1))
            zero_init(self.decoder.conv_out)

    def encode(self, x: Tensor) -> Tensor:
        """Image (n, 3, H, W) in [-1, 1] -> moments (n, 2 * embed_dim, H // f, W // f), f = `downsampling`.

        Any sides from f on, as in diffusers; what is decoded has multiples of f. Callers that need all of the image pad
        it first. Patches and a linear path read whole blocks of pixels.

        Raises ValueError for clips, sides below f, and sides that the blocks do not divide.
        """
        check_image(x, downsampling=self.patch if self.linear is None else self.downsampling)
        check_sides(x, self.downsampling)
        x = to_blocks(x, self.patch)
        if self.linear is not None:
            return self.linear.moments(x)
        h, _ = self.encoder(x)
        return self.quant_conv(h)

    def fit_linear(self, x: Tensor, *, power: float = 0.0) -> None:
        """Fit the linear path to images (n, 3, H, W) in [-1, 1], see `LinearPath.fit`."""
        self.linear.fit(to_blocks(x, self.patch), power=power)

    def decode(self, z: Tensor) -> Tensor:
        """Latent (n, embed_dim, h, w), not multiplied by the scale factor -> image around [-1, 1], not clamped."""
        y = beside_synthesis(self, self.decoder(self.post_quant_conv(z)), z)
        return from_blocks(y, self.patch)
