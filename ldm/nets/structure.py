"""The structure encoder: the first half of a U-Net, which encodes the LQ latents to one condition map per level."""

from collections.abc import Sequence

from torch import Tensor, nn

from ldm.nets.attention import AttentionBlock, split_heads
from ldm.nets.layers import ResBlock, TimeEmbedding, down_path, per_frame, regroup

BUILDABLE = ("StructureEncoder",)  # what a configuration may name as a target


class StructureEncoder(nn.Module):
    """Time-aware encoder of the noise-free LQ latents; frames are independent.

    State-dict names are those of the released `structcond_stage_model.`.

    Args:
        in_channels: of the latents.
        model_channels: width of the first level, a multiple of 32; the time embedding is 4 times as wide.
        out_channels: of every condition map.
        num_res_blocks: residual blocks per level.
        attention_resolutions: down-sampling factors (1, 2, 4 ...) of the levels that have attention.
        channel_mult: width of each level in units of `model_channels`; its length is the number of levels.
        num_heads: heads of the attention where `num_head_channels` is -1.
        num_head_channels: channels per head, or -1.
        norm_groups: groups of every norm of 32 groups; 32 as published.

    Origin: `InflatedEncoderUNetModelWT` of the released MGLD-VSR, after the encoder of StableSR (Wang et al. 2023).
    """

    def __init__(
        self,
        in_channels: int = 4,
        model_channels: int = 256,
        out_channels: int = 256,
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (4, 2, 1),
        channel_mult: Sequence[int] = (1, 1, 2, 2),
        num_heads: int = 4,
        num_head_channels: int = -1,
        norm_groups: int = 32,
    ):
        super().__init__()
        emb_channels, widths = 4 * model_channels, [mult * model_channels for mult in channel_mult]

        def attention(width: int) -> AttentionBlock:
            heads = split_heads(width, num_heads=num_heads, num_head_channels=num_head_channels)["heads"]
            return AttentionBlock(width, heads=heads)

        def block(width: int, out: int, level: int) -> nn.ModuleList:
            layers = [ResBlock(width, emb_channels, out_channels=out)]
            return nn.ModuleList([*layers, attention(out)] if 2**level in attention_resolutions else layers)

        self.time_embed = TimeEmbedding(model_channels, emb_channels)
        stem = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        self.input_blocks, self.input_levels, _ = down_path(stem, block, widths, num_res_blocks=num_res_blocks)
        last = widths[-1]
        self.middle_block = nn.ModuleList([ResBlock(last, emb_channels), attention(last), ResBlock(last, emb_channels)])
        # the release gives the second norm one group per channel where 32 groups do not fit
        groups = out_channels if out_channels % 32 else 32
        self.fea_tran = nn.ModuleList(
            ResBlock(width, emb_channels, out_channels=out_channels, out_groups=groups) for width in widths
        )
        regroup(self, norm_groups)

    def forward(self, x: Tensor, t: Tensor, *, num_frames: int = 1) -> list[Tensor]:
        """Encode each frame at its time step.

        Args:
            x: latents of the low-resolution frames (b*t, in_channels, h, w), any size.
            t: time steps, one for all, one per clip (with `num_frames`) or one per frame: (1 | b | b*t,).
            num_frames: frames per clip; needed only for time steps per clip.

        Returns:
            One map per level, finest first: (b*t, out_channels, h / 2**i, w / 2**i), each side rounded up, in the
            dtype of `x`; computed in the dtype of the weights.

        Raises:
            ValueError: another number of time steps.
        """
        emb = self.time_embed(per_frame(t, x.shape[0], num_frames=num_frames, name="time steps"))
        h, features = x.to(emb.dtype), []
        for layers, level in zip(self.input_blocks, self.input_levels, strict=True):
            if level > len(features):  # this block leaves the level of h
                features.append(h)
            h = self._run(layers, h, emb)
        features.append(self._run(self.middle_block, h, emb))
        return [head(feature, emb).to(x.dtype) for head, feature in zip(self.fea_tran, features, strict=True)]

    @staticmethod
    def _run(layers: nn.ModuleList, h: Tensor, emb: Tensor) -> Tensor:
        for layer in layers:
            h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
        return h
