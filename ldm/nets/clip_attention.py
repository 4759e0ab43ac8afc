"""The transformer of Upscale-A-Video: attention within frames and to a text, then over time with positions."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.attention import CrossAttention, FeedForward
from ldm.nets.clip_layers import time_block
from ldm.nets.layers import GroupNorm, LayerNorm, Linear, zero_init

ROTATED = 32  # features of each head that carry the rotary code
BUCKETS, MAX_DISTANCE = 32, 32  # of the relative positions
PIXELS = 8192  # whose attention over time is computed at once; the grids of GPU kernels end at 65535 rows and heads


def relative_position_buckets(frames: int) -> Tensor:
    """(frames, frames) int64: the bucket of key j seen from query i (T5, Raffel et al. 2020, with 32 and 32).

    n = i - j; later keys (n < 0) have the upper 16 buckets. Distances below 8 have a bucket each, farther ones share
    buckets of growing width, and all beyond 32 the last.
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    position = torch.arange(frames)
    difference = position[:, None] - position[None, :]
    distance = difference.abs()
    ratio = torch.log(distance.clamp_min(1).double() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (ratio * (half - exact)).floor().long()).clamp_max(half - 1)
    return torch.where(difference < 0, half, 0) + torch.where(distance < exact, distance, far)


class RelativePositions(nn.Module):
    """A learned number per head and relative position, added to the scores of an attention over time."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(BUCKETS, heads)

    def forward(self, frames: int) -> Tensor:
        """(heads, frames, frames): query, key."""
        weight = self.relative_attention_bias.weight
        return F.embedding(relative_position_buckets(frames).to(weight.device), weight).permute(2, 0, 1)


class RotaryPositions(nn.Module):
    """Rotary code of the frame number on the first 32 features of each head, in pairs (2i, 2i+1) (Su et al. 2021).

    The angle of pair i is frame * 10000**(-2i/32). `freqs` is a constant that the released files carry; it is rounded
    where the network is in half precision, as released.
    """

    constant_buffers = ("freqs",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("freqs", 10000.0 ** (-torch.arange(0, ROTATED, 2, device="cpu").float() / ROTATED))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, heads, frames, features), the first frame number 0 -> its first 32 features rotated, same dtype."""
        angle = torch.arange(x.shape[2], device=x.device)[:, None] * self.freqs.float()  # (frames, 16)
        cos, sin = angle.cos(), angle.sin()
        even, odd = x[..., :ROTATED].float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2).to(x.dtype)
        return torch.cat((turned, x[..., ROTATED:]), -1)


class RotaryTemporalAttention(nn.Module):
    """Self-attention over the frames at each pixel, with rotary and relative positions; its output starts at zero.

    Args:
        channels: in and out.
        heads: their number; each has channels / heads features, at least 32.
        rotary: the code, shared by all layers of a network.
    Raises:
        ValueError: heads that do not divide the channels or leave fewer than 32 features.
    """

    def __init__(self, channels: int, *, heads: int, rotary: RotaryPositions) -> None:
        super().__init__()
        if heads < 1 or channels % heads or channels // heads < ROTATED:
            raise ValueError(f"got {heads} heads for {channels} channels, expected a divisor, {ROTATED} each or more")
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(channels, channels, bias=False)
        self.to_v = Linear(channels, channels, bias=False)
        self.to_out = nn.Sequential(zero_init(Linear(channels, channels)))
        self.time_rel_pos_bias = RelativePositions(heads)
        self.rotary_emb = rotary

    def forward(self, x: Tensor) -> Tensor:
        """x (pixels, frames, channels) -> the same shape."""
        bias = self.time_rel_pos_bias(x.shape[1]).to(x.dtype)
        parts = [self._attend(part, bias) for part in x.split(PIXELS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )  # (pixels, heads, frames, features)
        h = F.scaled_dot_product_attention(self.rotary_emb(q), self.rotary_emb(k), v, attn_mask=bias)
        return self.to_out(h.transpose(1, 2).flatten(2))


class ClipTransformerBlock(nn.Module):
    """Attention within frames (or to the text), to the text, over time, and feed-forward, all residual.

    `cross_only`: the first attention is to the text too, as in the finer levels of the upscaler.
    """

    def __init__(
        self, channels: int, *, heads: int, context_dim: int, cross_only: bool, rotary: RotaryPositions
    ) -> None:
        super().__init__()
        size = {"heads": heads, "dim_head": channels // heads}
        self.cross_only = cross_only
        self.attn1 = CrossAttention(channels, **size, context_dim=context_dim if cross_only else None)
        self.norm1 = LayerNorm(channels)
        self.attn2 = CrossAttention(channels, **size, context_dim=context_dim)
        self.norm2 = LayerNorm(channels)
        self.attn_temporal = RotaryTemporalAttention(channels, heads=heads, rotary=rotary)
        self.norm_temporal = LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.norm3 = LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """x (b*t, pixels, channels), context (1 | b | b*t, tokens, context_dim) -> the same shape as x."""
        x = self.attn1(self.norm1(x), context if self.cross_only else None).add_(x)
        x = self.attn2(self.norm2(x), context).add_(x)
        pixels = self.norm_temporal(x).unflatten(0, (-1, num_frames)).transpose(1, 2)  # (b, pixels, t, channels)
        over_time = self.attn_temporal(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        x = x + over_time.transpose(1, 2).flatten(0, 1)
        return self.ff(self.norm3(x)).add_(x)


class ClipTransformer(nn.Module):
    """A block over time (3 frames, starts as the identity), then a transformer over the pixels of each frame.

    Its norm is per frame (eps 1e-6), and the residual is taken behind the block over time.
    """

    def __init__(
        self, channels: int, *, heads: int, context_dim: int, groups: int, cross_only: bool, rotary: RotaryPositions
    ) -> None:
        super().__init__()
        self.resblock_temporal = time_block(channels, kernel=3)
        zero_init(self.resblock_temporal.conv2)
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        block = ClipTransformerBlock(
            channels, heads=heads, context_dim=context_dim, cross_only=cross_only, rotary=rotary
        )
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """x (b*t, c, h, w), context (1 | b | b*t, tokens, context_dim) -> (b*t, c, h, w)."""
        x = self.resblock_temporal(x, num_frames)
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (b*t, h*w, c)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, num_frames)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
