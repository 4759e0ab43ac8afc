"""The denoiser of Upscale-A-Video (Zhou et al. 2024): the SD x4 upscaler's U-Net with layers over time."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.autoencoder import upsample_conv3x3
from ldm.nets.clip_attention import ClipTransformer, RotaryPositions
from ldm.nets.clip_layers import ClipResBlock, TemporalModule, clip_norm, frame_block
from ldm.nets.layers import no_gradient, timestep_embedding

BUILDABLE = ("UNetVideoModel",)

EPS = 1e-5  # of the norms of the image model; those over time have another
EMB_RATIO = 4  # width of the time embedding over that of the first level


class StridedConv(nn.Module):
    """Convolution 3x3 of stride 2 and padding 1: (n, c, h, w) -> (n, c, ceil(h/2), ceil(w/2))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SizedUpsample(nn.Module):
    """Nearest neighbour to a given size, then a 3x3 convolution, so that odd sizes meet their skips."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(n, c, h, w) -> (n, c, *size)."""
        doubled = tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1])
        if doubled and x.device.type == "cpu" and no_gradient(x, self.conv.weight):
            return upsample_conv3x3(x, self.conv.weight, self.conv.bias)  # fewer multiplications
        return self.conv(F.interpolate(x, size=tuple(size), mode="nearest"))


class UNetLevel(nn.Module):
    """Residual blocks of one level, each followed by a transformer where the level has them."""

    def __init__(self, resnets: Sequence[ClipResBlock], attentions: Sequence[ClipTransformer]) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)

    def step(self, k: int, h: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        """The k-th block and its transformer."""
        h = self.resnets[k](h, num_frames, emb)
        return self.attentions[k](h, context, num_frames) if len(self.attentions) > 0 else h


class UNetMiddle(nn.Module):
    """Residual block, transformer, residual block."""

    def __init__(self, resnets: Sequence[ClipResBlock], attention: ClipTransformer) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList(resnets)

    def forward(self, h: Tensor, emb: Tensor, context: Tensor, num_frames: int) -> Tensor:
        h = self.attentions[0](self.resnets[0](h, num_frames, emb), context, num_frames)
        return self.resnets[1](h, num_frames, emb)


class UNetVideoModel(nn.Module):
    """Predict the velocity (v) of the latents of a clip, given the clip in low resolution with noise.

    Names are those of the released `unet_video.bin`; norms run over all frames of what is given. As built, all layers
    over time are the identity.

    Args:
        in_channels: of the latents and the low-resolution frames together.
        out_channels: of the latents.
        block_out_channels: width of each level, finest first.
        layers_per_block: residual blocks per level going down; one more going up.
        attention: whether each level has transformers; the middle has one always.
        only_cross_attention: whether the first attention of each level is to the text; the middle takes the last.
        num_heads: attention heads in every transformer (the released key is `attention_head_dim`).
        cross_attention_dim: channels of the text tokens.
        num_class_embeds, max_noise_level: noise levels that have an embedding, and the highest that is accepted.
        norm_num_groups: of the image model's norms.
        down_temporal_idx, mid_temporal, up_temporal_idx: where temporal modules stand (blocks in running order).
    Raises:
        ValueError: lists of unequal length, or widths that groups or heads do not divide.
    """

    def __init__(
        self,
        *,
        in_channels: int = 7,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (256, 512, 512, 1024),
        layers_per_block: int = 2,
        attention: Sequence[bool] = (False, True, True, True),
        only_cross_attention: Sequence[bool] = (True, True, True, False),
        num_heads: int = 8,
        cross_attention_dim: int = 1024,
        num_class_embeds: int = 1000,
        max_noise_level: int = 350,
        norm_num_groups: int = 32,
        down_temporal_idx: Collection[int] = (0, 1, 2, 3),
        mid_temporal: bool = True,
        up_temporal_idx: Collection[int] = (0, 1, 2, 3),
    ) -> None:
        super().__init__()
        widths, levels = list(block_out_channels), len(block_out_channels)
        if not levels or len(attention) != levels or len(only_cross_attention) != levels:
            raise ValueError(
                f"got {levels} widths, {len(attention)} attention and {len(only_cross_attention)} only_cross_attention "
                "entries, expected one of each per level"
            )
        emb = EMB_RATIO * widths[0]
        self.out_channels, self.context_dim = out_channels, cross_attention_dim
        self.max_noise_level = min(max_noise_level, num_class_embeds - 1)
        self.temporal_rotary_emb = rotary = RotaryPositions()

        def res(channels: int, out: int) -> ClipResBlock:
            return frame_block(channels, out, groups=norm_num_groups, eps=EPS, emb_channels=emb)

        def transformer(i: int) -> ClipTransformer:
            size = {"heads": num_heads, "context_dim": cross_attention_dim, "groups": norm_num_groups}
            return ClipTransformer(widths[i], **size, cross_only=only_cross_attention[i], rotary=rotary)

        def level(inputs: Sequence[int], i: int) -> UNetLevel:
            attentions = [transformer(i) for _ in inputs if attention[i]]
            return UNetLevel([res(channels, widths[i]) for channels in inputs], attentions)

        layers = [("linear_1", nn.Linear(widths[0], emb)), ("act", nn.SiLU()), ("linear_2", nn.Linear(emb, emb))]
        self.time_embedding = nn.Sequential(OrderedDict(layers))
        self.class_embedding = nn.Embedding(num_class_embeds, emb)
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks, skips = _down_blocks(widths, layers_per_block, level)
        self.mid_block = UNetMiddle([res(widths[-1], widths[-1]) for _ in range(2)], transformer(levels - 1))
        self.up_blocks = _up_blocks(widths, layers_per_block, level, skips)
        self.down_temp_blocks = _modules_at(down_temporal_idx, widths, emb)
        self.mid_temp_block = TemporalModule(widths[-1], emb_channels=emb) if mid_temporal else None
        self.up_temp_blocks = _modules_at(up_temporal_idx, widths[::-1], emb)
        self.conv_norm_out = clip_norm(widths[0], groups=norm_num_groups, eps=EPS)
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor, low_res: Tensor, t: Tensor, context: Tensor, noise_level: Tensor) -> Tensor:
        """Predict for every frame of clips of any length and size.

        Args:
            x: noisy latents (B, T, C, h, w).
            low_res: noised low-resolution frames (1 | B, T, 3, h, w) in about [-1, 1].
            t: time steps (1 | B,).
            context: text tokens (1 | B, tokens, cross_attention_dim).
            noise_level: of `low_res`, int64 (1 | B,), 0 to `max_noise_level`.

        Returns:
            (B, T, out_channels, h, w) in the dtype of x; computed in the dtype of the weights.

        Raises:
            ValueError: a shape that is not one of these, or a noise level outside its range.
        """
        self._check(x, low_res, t, context, noise_level)
        dtype, frames = self.conv_in.weight.dtype, x.shape[1]
        code = timestep_embedding(t, self.time_embedding.linear_1.in_features).to(dtype)
        emb = self.time_embedding(code) + self.class_embedding(noise_level)  # (1 | B, emb)
        h = torch.cat((x.to(dtype), low_res.to(dtype).expand(len(x), -1, -1, -1, -1)), 2).flatten(0, 1)
        context = context.to(dtype)
        h = self.conv_in(h)
        skips = [h]
        for i, block in enumerate(self.down_blocks):
            for k in range(len(block.resnets)):
                h = block.step(k, h, emb, context, frames)
                skips.append(h)
            for layer in block.downsamplers:
                h = layer(h)
                skips.append(h)
            h = _over_time(self.down_temp_blocks, i, h, frames, emb)
        h = self.mid_block(h, emb, context, frames)
        if self.mid_temp_block is not None:
            h = self.mid_temp_block(h, frames, emb)
        for i, block in enumerate(self.up_blocks):
            for k in range(len(block.resnets)):
                h = block.step(k, torch.cat((h, skips.pop()), 1), emb, context, frames)
            for layer in block.upsamplers:
                h = layer(h, skips[-1].shape[-2:])
            h = _over_time(self.up_temp_blocks, i, h, frames, emb)
        h = self.conv_out(F.silu(self.conv_norm_out(h, frames), inplace=True))
        return h.unflatten(0, x.shape[:2]).to(x.dtype)

    def _check(self, x: Tensor, low_res: Tensor, t: Tensor, context: Tensor, noise_level: Tensor) -> None:
        channels = self.conv_in.in_channels
        fits = x.ndim == 5 and low_res.ndim == 5 and x.shape[1] == low_res.shape[1] and x.shape[3:] == low_res.shape[3:]
        if not fits or x.shape[2] + low_res.shape[2] != channels:
            raise ValueError(
                f"got latents {tuple(x.shape)} and low-resolution frames {tuple(low_res.shape)}, expected "
                f"(B, T, C, h, w) each, alike but for C, with {channels} channels together"
            )
        for name, rows in (("frames", low_res), ("time steps", t), ("texts", context), ("noise levels", noise_level)):
            if len(rows) not in (1, len(x)):
                raise ValueError(f"got {len(rows)} rows of {name}, expected 1 or {len(x)}, one per clip")
        if context.shape[-1] != self.context_dim:
            raise ValueError(f"got text of {context.shape[-1]} channels, expected {self.context_dim}")
        lowest, highest = noise_level.min().item(), noise_level.max().item()
        if lowest < 0 or highest > self.max_noise_level:
            raise ValueError(f"got noise levels {lowest} to {highest}, expected 0 to {self.max_noise_level}")


_MakeLevel = Callable[[Sequence[int], int], UNetLevel]


def _down_blocks(widths: Sequence[int], count: int, level: _MakeLevel) -> tuple[nn.ModuleList, list[int]]:
    """Levels of `count` blocks going down, finest first, and the channels of the maps they keep for the way up."""
    blocks, skips = nn.ModuleList(), [widths[0]]
    for i, width in enumerate(widths):
        block = level([skips[-1]] + [width] * (count - 1), i)
        block.downsamplers = nn.ModuleList([StridedConv(width)] if i < len(widths) - 1 else [])
        blocks.append(block)
        skips += [width] * (count + len(block.downsamplers))
    return blocks, skips


def _up_blocks(widths: Sequence[int], count: int, level: _MakeLevel, skips: Sequence[int]) -> nn.ModuleList:
    """Levels of `count` + 1 blocks going up, coarsest first; each block takes the last of the kept maps."""
    blocks, skips, channels = nn.ModuleList(), list(skips), widths[-1]
    for i in reversed(range(len(widths))):
        before = [channels] + [widths[i]] * count
        block = level([width + skips.pop() for width in before], i)
        block.upsamplers = nn.ModuleList([SizedUpsample(widths[i])] if i > 0 else [])
        blocks.append(block)
        channels = widths[i]
    return blocks


def _modules_at(places: Collection[int], widths: Sequence[int], emb_channels: int) -> nn.ModuleDict:
    """Temporal modules under the numbers of their blocks, which are of these widths."""
    if any(not 0 <= i < len(widths) for i in places):
        raise ValueError(f"got temporal modules at {list(places)}, expected numbers of the {len(widths)} blocks")
    return nn.ModuleDict({str(i): TemporalModule(widths[i], emb_channels=emb_channels) for i in sorted(places)})


def _over_time(modules: nn.ModuleDict, i: int, h: Tensor, frames: int, emb: Tensor) -> Tensor:
    return modules[str(i)](h, frames, emb) if str(i) in modules else h
