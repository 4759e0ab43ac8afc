"""The denoiser: Stable Diffusion 2.1's U-Net, conditioned on the low-resolution clip (SPADE), with temporal layers."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ldm.nets.attention import SpatialTransformer, TemporalAttention, split_heads
from ldm.nets.autoencoder import upsample_conv3x3
from ldm.nets.layers import (
    ResBlock,
    TimeEmbedding,
    Upsample,
    down_path,
    group_norm,
    no_gradient,
    per_frame,
    regroup,
    zero_init,
)
from ldm.nets.temporal import TemporalConv, check_clips

BUILDABLE = ("UNet",)  # what a configuration may name as a target

# For each numbering of the middle block, the index in `middle_block` of its layers in the order they run:
# Res, temporal conv, transformer, temporal attention, Res, temporal conv.
MIDDLE_ORDER = {"released": (0, 1, 2, 3, 4, 5), "repaired": (0, 3, 1, 4, 2, 5)}
TEMPORAL = ("middle", "every")


class UNet(nn.Module):
    """Predict the noise (or velocity) of the latents of a clip.

    Residual blocks carry SPADE, so every level sees the condition map of its own level; `temporal` says where the
    temporal layers sit. State-dict names are those of the released `model.diffusion_model.`.

    Args:
        in_channels, out_channels: of the latents.
        model_channels: width of the first level, a multiple of 32; the time embedding is 4 times as wide.
        attention_resolutions: down-sampling factors (1, 2, 4 ...) of the levels that have transformers.
        num_res_blocks: residual blocks per level going down (one more going up).
        channel_mult: width of each level in units of `model_channels`; its length is the number of levels.
        num_head_channels: channels per attention head; -1 to give `num_heads` instead.
        num_heads: number of heads where `num_head_channels` is -1.
        context_dim: channels of the text tokens.
        transformer_depth: transformer blocks in a row.
        semb_channels: channels of the condition maps.
        temporal_alpha: start of the blend of the temporal layers (see `ldm.nets.temporal.TemporalConv`).
        middle: numbering of the middle block. "released" counts the temporal layers in between, so the names
            match the published weights but an SD-2.1 checkpoint finds no home for its middle transformer and second
            residual block. "repaired" keeps SD-2.1's 0, 1, 2 for Res, transformer, Res and puts temporal conv,
            temporal attention, temporal conv at 3, 4, 5. Both compute the same function, in the released order.
        norm_groups: groups of every norm; 32 as published.
        temporal: "middle", temporal layers in the middle block alone, as in the released code; "every", also a temporal
            convolution behind each residual block (and its transformer), the last but an `Upsample` of its block, so at
            every level, as the paper draws it.
        spade_hidden: channels between the condition maps and the modulation of each SPADE; 128 as published.

    Raises:
        ValueError: an unknown `middle` or `temporal`, or widths that groups or heads do not divide.

    Origin: `InflatedUNetModelDualcondV2` of the released MGLD-VSR; Rombach et al. 2022; SPADE: Park et al. 2019.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        model_channels: int = 320,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        num_res_blocks: int = 2,
        channel_mult: Sequence[int] = (1, 2, 4, 4),
        num_head_channels: int = 64,
        num_heads: int = -1,
        context_dim: int = 1024,
        transformer_depth: int = 1,
        semb_channels: int = 256,
        temporal_alpha: float = 0.1,
        middle: str = "released",
        norm_groups: int = 32,
        temporal: str = "middle",
        spade_hidden: int = 128,
    ):
        super().__init__()
        if middle not in MIDDLE_ORDER:
            raise ValueError(f"got middle={middle!r}, expected one of {sorted(MIDDLE_ORDER)}")
        if temporal not in TEMPORAL:
            raise ValueError(f"got temporal={temporal!r}, expected one of {', '.join(TEMPORAL)}")
        self.middle_order = MIDDLE_ORDER[middle]
        self.levels, self.semb_channels, self.context_dim = len(channel_mult), semb_channels, context_dim
        emb_channels, widths = 4 * model_channels, [mult * model_channels for mult in channel_mult]

        def res(width: int, out: int) -> ResBlock:
            spade = {"cond_channels": semb_channels, "cond_hidden": spade_hidden}
            return ResBlock(width, emb_channels, out_channels=out, **spade)

        def heads(width: int) -> dict[str, int]:
            return split_heads(width, num_heads=num_heads, num_head_channels=num_head_channels)

        def transformer(width: int) -> SpatialTransformer:
            return SpatialTransformer(width, **heads(width), context_dim=context_dim, depth=transformer_depth)

        def block(width: int, out: int, level: int) -> nn.ModuleList:
            layers = [res(width, out)] + ([transformer(out)] if 2**level in attention_resolutions else [])
            mixing = [TemporalConv(out, temporal_alpha=temporal_alpha)] if temporal == "every" else []
            return nn.ModuleList(layers + mixing)

        self.time_embed = TimeEmbedding(model_channels, emb_channels)
        stem = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        self.input_blocks, self.input_levels, skips = down_path(stem, block, widths, num_res_blocks=num_res_blocks)
        layers = [
            res(widths[-1], widths[-1]),
            TemporalConv(widths[-1], temporal_alpha=temporal_alpha),
            transformer(widths[-1]),
            TemporalAttention(widths[-1], **heads(widths[-1]), temporal_alpha=temporal_alpha),
            res(widths[-1], widths[-1]),
            TemporalConv(widths[-1], temporal_alpha=temporal_alpha),
        ]
        self.middle_block = nn.ModuleList(layers[self.middle_order.index(i)] for i in range(len(layers)))
        self.output_blocks, self.output_levels = up_path(skips, block, widths, num_res_blocks=num_res_blocks)
        final = zero_init(nn.Conv2d(widths[0], out_channels, 3, padding=1))
        self.out = nn.Sequential(group_norm(widths[0]), nn.SiLU(), final)
        regroup(self, norm_groups)

    @property
    def downsampling(self) -> int:
        """Height and width of the latents must be multiples of this."""
        return 2 ** (self.levels - 1)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, struct_cond: Sequence[Tensor], *, num_frames: int
    ) -> Tensor:
        """Predict for every frame.

        Args:
            x: noisy latents (b*t, in_channels, h, w), clip after clip; h and w multiples of `downsampling`.
            t: time steps, one for all, one per clip or one per frame: (1 | b | b*t,).
            context: text tokens (1 | b | b*t, tokens, context_dim), rows as for `t`.
            struct_cond: one map per level, finest first: level i is (b*t, semb_channels, h / 2**i, w / 2**i).
            num_frames: frames per clip, any number from 1.

        Returns:
            (b*t, out_channels, h, w) in the dtype of `x`; computed in the dtype of the weights.

        Raises:
            ValueError: a shape that is not one of these.
        """
        check_clips(x, num_frames=num_frames)
        self._check(x, struct_cond)
        if context.shape[-1] != self.context_dim:
            raise ValueError(f"got text of {context.shape[-1]} channels, expected context_dim={self.context_dim}")
        dtype, frames = self.out[2].weight.dtype, x.shape[0]
        emb = self.time_embed(per_frame(t, frames, num_frames=num_frames, name="time steps"))  # (1 | bt, emb)
        per_frame(context, frames, num_frames=num_frames, name="context")  # checked only: attention repeats its keys
        context, maps = context.to(dtype), [m.to(dtype) for m in struct_cond]

        h, skips = x.to(dtype), []
        for layers, level in zip(self.input_blocks, self.input_levels, strict=True):
            h = self._run(layers, h, emb, context, maps[level], num_frames)
            skips.append(h)
        middle = [self.middle_block[i] for i in self.middle_order]
        h = self._run(middle, h, emb, context, maps[-1], num_frames)
        for layers, level in zip(self.output_blocks, self.output_levels, strict=True):
            h = torch.cat([h, skips.pop()], dim=1)
            h = self._run(layers, h, emb, context, maps[level], num_frames)
        return self.out(h).to(x.dtype)

    @staticmethod
    def _run(layers, h: Tensor, emb: Tensor, context: Tensor, cond: Tensor, num_frames: int) -> Tensor:
        for layer in layers:
            if isinstance(layer, ResBlock):
                h = layer(h, emb, cond)
            elif isinstance(layer, SpatialTransformer):
                h = layer(h, context)
            elif isinstance(layer, TemporalConv | TemporalAttention):
                h = layer(h, num_frames)
            else:  # convolutions that change the size
                h = layer(h)
        return h

    def _check(self, x: Tensor, struct_cond: Sequence[Tensor]) -> None:
        frames, _, height, width = x.shape
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(f"got latents of {height}x{width}, expected multiples of {self.downsampling}; pad them")
        if len(struct_cond) != self.levels:
            raise ValueError(f"got {len(struct_cond)} condition maps, expected {self.levels}, one per level")
        for level, cond in enumerate(struct_cond):
            expected = (frames, self.semb_channels, height >> level, width >> level)
            if tuple(cond.shape) != expected:
                raise ValueError(f"got a condition map {tuple(cond.shape)} for level {level}, expected {expected}")


class MergedUpsample(Upsample):
    """`Upsample` that on a CPU adds up the weights which meet the same pixel: 4/9 of the multiplications."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not no_gradient(x, self.conv.weight):
            return super().forward(x)
        return upsample_conv3x3(x, self.conv.weight, self.conv.bias)


def up_path(
    skips: Sequence[int], block: Callable[..., nn.ModuleList], widths: Sequence[int], *, num_res_blocks: int
) -> tuple[nn.ModuleList, list[int]]:
    """The second half of the U-Net: (blocks, the level of each block), coarsest level first.

    Args:
        skips: channels of the maps of the first half, in the order they were made; each block takes the last one left.
        block: block(width, out, level) makes the layers of one block.
        widths: channels of each level, finest first.
        num_res_blocks: of the first half; this half has one more per level.
    """
    skips, width, blocks, levels = list(skips), widths[-1], [], []
    for level in reversed(range(len(widths))):
        for i in range(num_res_blocks + 1):
            layers = block(width + skips.pop(), widths[level], level)
            width = widths[level]
            if level > 0 and i == num_res_blocks:
                layers.append(MergedUpsample(width))
            blocks.append(layers)
            levels.append(level)
    return nn.ModuleList(blocks), levels
