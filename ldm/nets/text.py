"""The text tower of OpenCLIP ViT-H-14 (Ilharco et al. 2021; weights laion2b_s32b_b79k)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.layers import LayerNorm

BUILDABLE = ("FixedContext", "OpenCLIPText")  # what a configuration may name as a target


class CausalSelfAttention(nn.Module):
    """Causal self-attention, with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) -> (n, tokens, width)."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, d)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(h.transpose(1, 2).flatten(2))


class TextMLP(nn.Module):
    """Linear to four times the width, exact GELU, Linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class TextBlock(nn.Module):
    """Pre-norm transformer block: x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = TextMLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """A stack of transformer blocks; the last `skip_last` are not run."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, *, skip_last: int) -> Tensor:
        for block in self.resblocks[: len(self.resblocks) - skip_last]:
            x = block(x)
        return x


class OpenCLIPText(nn.Module):
    """Text embedding of the penultimate layer, as in Stable Diffusion 2.

    The last block, `text_projection` and `logit_scale` hold weights of the released files but are not used. The text
    encoders of diffusers hold only the blocks that are used: 23 layers with `skip_last=0` and `unused=False`;
    `ldm.weights.names` has their names.

    Args:
        width, layers, heads, vocab_size, context_length: of ViT-H-14 by default.
        embed_dim: columns of the unused `text_projection`; the width by default.
        skip_last: blocks at the end that are not run.
        unused: whether `text_projection` and `logit_scale` exist.
    Raises:
        ValueError: if the width is not a multiple of `heads`, or `skip_last` is not a number of layers.
    """

    def __init__(
        self,
        *,
        width: int = 1024,
        layers: int = 24,
        heads: int = 16,
        vocab_size: int = 49408,
        context_length: int = 77,
        embed_dim: int | None = None,
        skip_last: int = 1,
        unused: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"got width={width} and heads={heads}, expected heads that divide the width")
        if not 0 <= skip_last <= layers:
            raise ValueError(f"got skip_last={skip_last} of {layers} layers, expected 0 to {layers}")
        self.skip_last = skip_last
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, width))
        if unused:
            self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim or width))
            self.logit_scale = nn.Parameter(torch.full((), math.log(1 / 0.07)))
        self.transformer = TextTransformer(width, layers, heads)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.ln_final = LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def empty_prompt(self, *, pad: int = 0) -> Tensor:
        """Return the token ids (1, context_length) of the empty prompt: start, end, then the padding token.

        Start and end are the last two of the vocabulary: 49406, 49407 in the released one. OpenCLIP pads with 0, which
        is also what the tokenizers of the Stable Diffusion 2 family pad with ("!").
        """
        vocab_size, length = self.token_embedding.num_embeddings, self.positional_embedding.shape[0]
        tokens = torch.full((1, length), pad, dtype=torch.int64, device=self.token_embedding.weight.device)
        tokens[0, 0], tokens[0, 1] = vocab_size - 2, vocab_size - 1
        return tokens

    def forward(self, tokens: Tensor | None = None) -> Tensor:
        """Token ids (n, context_length), by default the empty prompt -> embedding (n, context_length, width).

        Raises:
            ValueError: for any other number of tokens.
        """
        tokens = self.empty_prompt() if tokens is None else tokens
        length = self.positional_embedding.shape[0]
        if tokens.ndim != 2 or tokens.shape[1] != length:
            raise ValueError(f"got tokens of shape {tuple(tokens.shape)}, expected (n, {length}); pad with zeros")
        x = self.token_embedding(tokens) + self.positional_embedding
        return self.ln_final(self.transformer(x, skip_last=self.skip_last))


class FixedContext(nn.Module):
    """A constant context of zeros (1, tokens, width), for models trained without text.

    Raises ValueError for less than one token or channel.
    """

    def __init__(self, *, tokens: int = 1, width: int) -> None:
        super().__init__()
        if tokens < 1 or width < 1:
            raise ValueError(f"got tokens={tokens} and width={width}, expected 1 or more of each")
        self.shape = (1, tokens, width)

    def forward(self) -> Tensor:
        """(1, tokens, width), all zeros, on the CPU."""
        return torch.zeros(self.shape)
