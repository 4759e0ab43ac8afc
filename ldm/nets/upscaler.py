"""The x4 upscaler's denoiser of Stable Diffusion, frame by frame, under the names that diffusers gives its weights."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.attention import SpatialTransformer
from ldm.nets.autoencoder import upsample_conv3x3
from ldm.nets.layers import group_norm, no_gradient, per_frame, timestep_embedding

BUILDABLE = (
    "UpscalerUNet",
    "UpscalerPlan",
)  # by configurations


class Residuals(NamedTuple):
    """What a control network adds to a denoiser: one map for every skip connection, finest first, and the middle's."""

    skips: list[Tensor]
    middle: Tensor


class Encoded(NamedTuple):
    """What the first half of a denoiser leaves: skip connections in the order they were made, the middle's map, and
    the time embedding (1 | n, 4 * width)."""

    skips: list[Tensor]
    middle: Tensor
    emb: Tensor


class UpscalerTimeEmbedding(nn.Module):
    """Sinusoid [cos | sin] of the time step, Linear, SiLU, Linear: (n,) -> (n, out_channels) in the weights' dtype."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, t: Tensor) -> Tensor:
        first = self.linear_1
        x = timestep_embedding(t, first.in_features).to(first.weight.dtype)
        return self.linear_2(F.silu(first(x)))


class TimedResnetBlock(nn.Module):
    """Twice norm, SiLU, 3x3 convolution, the time embedding added in between, plus the input.

    Args:
        in_channels, out_channels: a 1x1 convolution adapts the input where they differ.
        emb_channels: width of the time embedding.
        groups, eps: of the norms.
    """

    def __init__(self, in_channels: int, out_channels: int, *, emb_channels: int, groups: int = 32, eps: float = 1e-5):
        super().__init__()
        self.norm1 = group_norm(in_channels, groups=groups, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_channels, out_channels)
        self.norm2 = group_norm(out_channels, groups=groups, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (n, in, h, w), emb (1 | n, emb_channels) -> (n, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = h.add_(self.time_emb_proj(F.silu(emb))[:, :, None, None])
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class UpscalerDownsample(nn.Module):
    """Convolution 3x3 of stride 2, padding 1: (n, c, h, w) -> (n, c, ceil(h/2), ceil(w/2))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UpscalerUpsample(nn.Module):
    """Nearest neighbour to the size of the next skip connection, then convolution 3x3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(n, c, h, w) -> (n, c, *size), size being twice h and w or one less."""
        doubled = tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1])
        if doubled and x.device.type == "cpu" and no_gradient(x, self.conv.weight):
            return upsample_conv3x3(x, self.conv.weight, self.conv.bias)  # 4/9 of the multiplications
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))


class UpscalerLevel(nn.Module):
    """Residual blocks of one level, each followed by a transformer where `attentions` holds any."""

    def __init__(self, resnets: Sequence[nn.Module], attentions: Sequence[nn.Module]):
        super().__init__()
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)

    def step(self, k: int, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        """The k-th residual block and its transformer: (n, c, h, w) -> (n, c', h, w)."""
        x = self.resnets[k](x, emb)
        return self.attentions[k](x, context) if hasattr(self, "attentions") else x


class UpscalerMiddle(nn.Module):
    """Residual block, transformer, residual block at the coarsest level."""

    def __init__(self, attention: nn.Module, resnets: Sequence[nn.Module]):
        super().__init__()
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        first, last = self.resnets
        return last(self.attentions[0](first(x, emb), context), emb)


class UpscalerPlan(NamedTuple):
    """Widths and attention of the upscaler, finest level first; the published ones by default.

    widths: channels of each level. layers: residual blocks of a level going down (one more going up).
    attention: which levels have transformers. only_cross: in which of these both attentions go to the text.
    heads: attention heads of each level, or one number for all. depth: transformer blocks in a row.
    """

    widths: Sequence[int] = (256, 512, 512, 1024)
    layers: int = 2
    attention: Sequence[bool] = (False, True, True, True)
    only_cross: Sequence[bool] = (True, True, True, False)
    heads: int | Sequence[int] = 8
    context_dim: int = 1024
    depth: int = 1
    norm_groups: int = 32
    norm_eps: float = 1e-5

    def completed(self) -> "UpscalerPlan":
        """The plan with a list of heads. Raises ValueError for lists of unlike length or heads that do not divide."""
        heads = [self.heads] * len(self.widths) if isinstance(self.heads, int) else list(self.heads)
        lists = {"attention": self.attention, "only_cross": self.only_cross, "heads": heads}
        for name, values in lists.items():
            if len(values) != len(self.widths):
                raise ValueError(f"got {len(values)} values of {name}, expected {len(self.widths)}, one per level")
        attending = [*self.attention[:-1], True]  # the middle always attends
        for width, count, needed in zip(self.widths, heads, attending, strict=True):
            if needed and (count < 1 or width % count):
                raise ValueError(f"got {count} attention heads for {width} channels, expected a divisor")
        return self._replace(heads=heads)

    def resnet(self, before: int, level: int) -> TimedResnetBlock:
        width, emb = self.widths[level], 4 * self.widths[0]
        return TimedResnetBlock(before, width, emb_channels=emb, groups=self.norm_groups, eps=self.norm_eps)

    def transformer(self, level: int, *, only_cross: bool) -> SpatialTransformer:
        width, heads = self.widths[level], self.heads[level]
        return SpatialTransformer(
            width,
            heads=heads,
            dim_head=width // heads,
            context_dim=self.context_dim,
            depth=self.depth,
            only_cross=only_cross,
            groups=self.norm_groups,
        )

    def level(self, before: Sequence[int], level: int) -> UpscalerLevel:
        """One level whose residual blocks take these numbers of channels."""
        attending = before if self.attention[level] else ()
        transformers = [self.transformer(level, only_cross=self.only_cross[level]) for _ in attending]
        return UpscalerLevel([self.resnet(width, level) for width in before], transformers)


class UpscalerEncoder(nn.Module):
    """The first half of the denoiser and its middle, which a control network has too.

    Args:
        in_channels: of the input: the noisy latents and the low-resolution picture.
        plan: widths and attention.
    """

    def __init__(self, *, in_channels: int, plan: UpscalerPlan):
        super().__init__()
        plan = plan.completed()
        widths = plan.widths
        self.plan, self.in_channels = plan, in_channels
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.time_embedding = UpscalerTimeEmbedding(widths[0], 4 * widths[0])
        self.down_blocks = nn.ModuleList()
        self.skip_channels = [widths[0]]
        for level, width in enumerate(widths):
            before = [self.skip_channels[-1]] + [width] * (plan.layers - 1)
            block = plan.level(before, level)
            self.skip_channels += [width] * plan.layers
            if level < len(widths) - 1:
                block.downsamplers = nn.ModuleList([UpscalerDownsample(width)])
                self.skip_channels.append(width)
            self.down_blocks.append(block)
        last = len(widths) - 1
        resnets = [plan.resnet(widths[-1], last) for _ in range(2)]
        self.mid_block = UpscalerMiddle(plan.transformer(last, only_cross=False), resnets)

    def encode(self, x: Tensor, t: Tensor, context: Tensor, *, added: Tensor | None = None) -> Encoded:
        """Run the first half and the middle; `added` (n, width, h, w) joins the first map.

        x (n, in_channels, h, w), t (1 | n,), context (1 | r | n, tokens, context_dim). ValueError for other shapes.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"got input {tuple(x.shape)}, expected (n, {self.in_channels}, h, w)")
        if context.shape[-1] != self.plan.context_dim:
            raise ValueError(f"got text of {context.shape[-1]} channels, expected {self.plan.context_dim}")
        dtype = self.conv_in.weight.dtype
        emb = self.time_embedding(per_frame(t, x.shape[0], num_frames=1, name="time steps"))
        h, context = self.conv_in(x.to(dtype)), context.to(dtype)
        if added is not None:
            h = h + added
        skips = [h]
        for block in self.down_blocks:
            for k in range(len(block.resnets)):
                h = block.step(k, h, emb, context)
                skips.append(h)
            if hasattr(block, "downsamplers"):
                h = block.downsamplers[0](h)
                skips.append(h)
        return Encoded(skips, self.mid_block(h, emb, context), emb)


class UpscalerUNet(UpscalerEncoder):
    """Predict noise or velocity of latents, given the low-resolution picture as further channels. Any size.

    Args:
        in_channels: latents (4) and picture (3).
        out_channels: of the latents.
        plan: widths and attention.

    Origin: UNet2DConditionModel of diffusers as the Stable Diffusion x4 upscaler configures it, without its embedding
    of the noise level, which StableVSR leaves out.
    """

    def __init__(self, *, in_channels: int = 7, out_channels: int = 4, plan: UpscalerPlan | None = None):
        plan = (plan or UpscalerPlan()).completed()
        super().__init__(in_channels=in_channels, plan=plan)
        skips, before = list(self.skip_channels), plan.widths[-1]
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(plan.widths))):
            width = plan.widths[level]
            inputs = [before] + [width] * plan.layers
            block = plan.level([channels + skips.pop() for channels in inputs], level)
            if level > 0:
                block.upsamplers = nn.ModuleList([UpscalerUpsample(width)])
            self.up_blocks.append(block)
            before = width
        self.conv_norm_out = group_norm(before, groups=plan.norm_groups, eps=plan.norm_eps)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, residuals: Residuals | None = None) -> Tensor:
        """Predict for every frame.

        Args:
            x: noisy latents and low-resolution picture in [-1, 1], (n, in_channels, h, w), any h and w.
            t: time steps (1 | n,).
            context: text tokens (1 | r | n, tokens, context_dim), r dividing n.
            residuals: of a control network for the same input, or None.

        Returns:
            (n, out_channels, h, w) in the dtype of `x`; computed in the dtype of the weights.

        Raises:
            ValueError: a shape that is not one of these.
        """
        skips, h, emb = self.encode(x, t, context)
        if residuals is not None:
            if len(residuals.skips) != len(skips):
                raise ValueError(f"got {len(residuals.skips)} residuals, expected {len(skips)}")
            skips = [skip + residual for skip, residual in zip(skips, residuals.skips, strict=True)]
            h = h + residuals.middle
        context = context.to(h.dtype)
        for block in self.up_blocks:
            for k in range(len(block.resnets)):
                h = block.step(k, torch.cat([h, skips.pop()], dim=1), emb, context)
            if hasattr(block, "upsamplers"):
                h = block.upsamplers[0](h, skips[-1].shape[-2:])
        return self.conv_out(F.silu(self.conv_norm_out(h), inplace=True)).to(x.dtype)
