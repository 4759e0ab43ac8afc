"""Attention over pixels, text and time, computed by torch's scaled_dot_product_attention.

Its kernels keep the softmax in float32 also for half-precision inputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.layers import LayerNorm, Linear, group_norm, linear, no_gradient, zero_init
from ldm.nets.temporal import blend, blend_parameter, check_clips

TOKENS = 4096  # tokens per call of a feed-forward layer on a CPU, to limit its wide maps


def split_heads(width: int, *, num_heads: int, num_head_channels: int) -> dict[str, int]:
    """Return {"heads", "dim_head"} for `width` channels, from the size of a head or, if that is -1, the number.

    Raises:
        ValueError: neither is given, or the heads do not divide the channels.
    """
    given, name = (num_heads, "num_heads") if num_head_channels == -1 else (num_head_channels, "num_head_channels")
    if given < 1 or width % given:
        raise ValueError(f"got {name}={given} for {width} channels, expected a divisor")
    other = width // given
    return {"heads": given, "dim_head": other} if num_head_channels == -1 else {"heads": other, "dim_head": given}


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context, or to themselves without one; scale 1/sqrt(dim_head).

    Args:
        channels: of the tokens, in and out.
        heads, dim_head: the inner width is heads * dim_head.
        context_dim: channels of the context (default: those of the tokens).
    """

    def __init__(self, channels: int, *, heads: int, dim_head: int, context_dim: int | None = None):
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = Linear(channels, inner, bias=False)
        self.to_k = Linear(context_dim or channels, inner, bias=False)
        self.to_v = Linear(context_dim or channels, inner, bias=False)
        self.to_out = nn.Sequential(Linear(inner, channels))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (n, heads, tokens, dim_head)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (n, tokens, channels), context (1 | r | n, keys, context_dim) with r dividing n -> (n, tokens, channels).

        Row k of a context of r rows is used for the rows k*n/r .. (k+1)*n/r-1 of x; it is projected once.
        """
        source = x if context is None else context
        repeats = x.shape[0] // source.shape[0]
        q, k, v = self._split(self.to_q(x)), self._split(self.to_k(source)), self._split(self.to_v(source))
        if source.shape[0] == 1:
            k, v = k.expand(repeats, -1, -1, -1), v.expand(repeats, -1, -1, -1)
        elif repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=0), v.repeat_interleave(repeats, dim=0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Gated linear unit: Linear to 2*out_channels, split in value | gate, value * gelu(gate) with the exact gelu."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out_channels)

    def forward(self, x: Tensor) -> Tensor:
        (value, gate), (value_bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        return F.gelu(linear(x, gate, gate_bias)) * linear(x, value, value_bias)  # both maps stay contiguous


class FeedForward(nn.Module):
    """GEGLU to `mult` times the channels, then Linear back: (n, tokens, channels) -> the same shape."""

    def __init__(self, channels: int, *, mult: int = 4):
        super().__init__()
        # the identity replaces dropout in the released numbering
        self.net = nn.Sequential(GEGLU(channels, mult * channels), nn.Identity(), Linear(mult * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if x.device.type != "cpu" or len(rows) <= TOKENS or not no_gradient(x, *self.parameters()):
            return self.net(x)
        return torch.cat([self.net(part) for part in rows.split(TOKENS)]).view_as(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with a LayerNorm (1e-5) before it and a residual.

    `only_cross`: the first attention also takes its keys and values from the context (x4 upscaler of Stable Diffusion).
    """

    def __init__(self, channels: int, *, heads: int, dim_head: int, context_dim: int, only_cross: bool = False):
        super().__init__()
        self.only_cross = only_cross
        first = context_dim if only_cross else None
        self.attn1 = CrossAttention(channels, heads=heads, dim_head=dim_head, context_dim=first)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, heads=heads, dim_head=dim_head, context_dim=context_dim)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x), context if self.only_cross else None).add_(x)
        x = self.attn2(self.norm2(x), context).add_(x)
        return self.ff(self.norm3(x)).add_(x)


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of each frame with a text context; initially the identity (proj_out is zero).

    Args:
        channels: in and out.
        heads, dim_head: of the attention.
        context_dim: channels of the text tokens.
        depth: number of transformer blocks.
        only_cross: see `TransformerBlock`.
        groups: of the norm.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        dim_head: int,
        context_dim: int,
        depth: int = 1,
        only_cross: bool = False,
        groups: int = 32,
    ):
        super().__init__()
        inner = heads * dim_head
        self.norm = group_norm(channels, groups=groups, eps=1e-6)  # the only eps of 1e-6 in the denoiser
        self.proj_in = Linear(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(inner, heads=heads, dim_head=dim_head, context_dim=context_dim, only_cross=only_cross)
            for _ in range(depth)
        )
        self.proj_out = zero_init(Linear(inner, channels))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (n, c, h, w), context (1 | r | n, tokens, context_dim) as in `CrossAttention` -> (n, c, h, w)."""
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # (n, h*w, inner)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class TemporalAttention(nn.Module):
    """Self-attention over the frames at each pixel, blended with its input: `a*attn(LN(x)) + (1-a)*x`.

    No positional code and no inner residual, as released.

    Args:
        channels: in and out.
        heads, dim_head: of the attention.
        temporal_alpha: initial value of the learned weight `a`, uninitialised in the released code; for the
            default 0.1 see `ldm.nets.temporal.TemporalConv`.
    """

    def __init__(self, channels: int, *, heads: int, dim_head: int, temporal_alpha: float = 0.1):
        super().__init__()
        self.temporal_alpha = blend_parameter(temporal_alpha)
        self.temporal_attn = CrossAttention(channels, heads=heads, dim_head=dim_head)
        self.norm = LayerNorm(channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """x (b*t, c, h, w), clip after clip, with t = num_frames -> the same shape; ValueError for incomplete clips."""
        check_clips(x, num_frames=num_frames)
        h, w = x.shape[2:]
        tokens = x.unflatten(0, (-1, num_frames)).permute(0, 3, 4, 1, 2).flatten(0, 2)  # (b*h*w, t, c)
        y = self.temporal_attn(self.norm(tokens))
        y = y.unflatten(0, (-1, h, w)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (b*t, c, h, w)
        return blend(x, y, self.temporal_alpha)


class AttentionBlock(nn.Module):
    """Residual self-attention over pixels in the structure encoder; scale 1/sqrt(channels/heads).

    `qkv` and `proj_out` are stored as Conv1d of kernel 1; the channels of `qkv` run head -> q, k, v. Starts as the
    identity (proj_out is zero).
    """

    def __init__(self, channels: int, *, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (n, h*w, c)
        qkv = linear(tokens, self.qkv.weight.squeeze(-1), self.qkv.bias)
        q, k, v = qkv.unflatten(2, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)  # each (n, heads, h*w, c/heads)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = linear(out, self.proj_out.weight.squeeze(-1), self.proj_out.bias)
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])
