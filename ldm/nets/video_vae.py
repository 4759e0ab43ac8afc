"""The autoencoders of Upscale-A-Video: 4x smaller latents and norms over the frames of a chunk.

One class for both released files: `vae_3d.bin` (the image autoencoder, no condition) and `vae_video.bin` (a decoder
with 3-D convolutions, conditioned on the clean low-resolution frames).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.nets.autoencoder import NORM_EPS, VAEDownsample, VAEUpsample, check_sides, posterior
from ldm.nets.clip_layers import ClipResBlock, PlusBlock, clip_norm, frame_block
from ldm.nets.layers import GroupNorm, Linear

BUILDABLE = ("AutoencoderKLVideo",)

CONDITION_GROUPS = 32  # of the norms on the way of the condition, whatever the network's own are

_MakeBlock = Callable[[int, int], ClipResBlock]


class FrameAttention(nn.Module):
    """Residual self-attention over the pixels of each frame, one head of the full width."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, eps=NORM_EPS)
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.proj_attn = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, c, h, w)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (n, h*w, c)
        q, k, v = (layer(tokens).unsqueeze(1) for layer in (self.query, self.key, self.value))  # (n, 1, h*w, c)
        h = self.proj_attn(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class ClipMiddle(nn.Module):
    """Residual block, attention within frames, residual block."""

    def __init__(self, channels: int, *, groups: int, block: _MakeBlock) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels, groups=groups)])
        self.resnets = nn.ModuleList(block(channels, channels) for _ in range(2))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(b*t, c, h, w) -> the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, num_frames)), num_frames)


class ClipLevel(nn.Module):
    """The residual blocks of one level; what changes the size is under `downsamplers` or `upsamplers`."""

    def __init__(self, channels: int, out_channels: int, blocks: int, *, block: _MakeBlock) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(block(channels if k == 0 else out_channels, out_channels) for k in range(blocks))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for layer in self.resnets:
            x = layer(x, num_frames)
        return x


class ClipEncoder(nn.Module):
    """Frames in [-1, 1] (b*t, 3, H, W) -> (b*t, 2 * latent_channels, H // f, W // f), f = 2 ** (levels - 1)."""

    def __init__(
        self, widths: Sequence[int], *, in_channels: int, latent_channels: int, blocks: int, groups: int
    ) -> None:
        super().__init__()

        def block(channels: int, out_channels: int) -> ClipResBlock:
            return frame_block(channels, out_channels, groups=groups, eps=NORM_EPS)

        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = ClipLevel(widths[max(i - 1, 0)], width, blocks, block=block)
            level.downsamplers = nn.ModuleList([VAEDownsample(width)] if i < len(widths) - 1 else [])
            self.down_blocks.append(level)
        self.mid_block = ClipMiddle(widths[-1], groups=groups, block=block)
        self.conv_norm_out = clip_norm(widths[-1], groups=groups, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h, num_frames)
            for layer in level.downsamplers:
                h = layer(h)
        h = self.mid_block(h, num_frames)
        return self.conv_out(F.silu(self.conv_norm_out(h, num_frames), inplace=True))


class ConditionFusion(nn.Module):
    """Features of the decoder moved by those of the condition: x + w * (x * scale(k) + shift(k)), k = shared(cond, x).

    Spatial feature transform (Wang et al. 2018).
    """

    def __init__(self, cond_channels: int, channels: int) -> None:
        super().__init__()
        self.shared = nn.ModuleList(
            frame_block(width, channels, groups=CONDITION_GROUPS, eps=NORM_EPS)
            for width in (cond_channels + channels, channels)
        )
        self.scale = nn.Conv2d(channels, channels, 3, padding=1)
        self.shift = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, cond: Tensor, x: Tensor, num_frames: int, weight: float = 1.0) -> Tensor:
        """cond (b*t, c', h, w), x (b*t, c, h, w) -> (b*t, c, h, w)."""
        k = torch.cat((cond, x), 1)
        for block in self.shared:
            k = block(k, num_frames)
        return x + weight * (x * self.scale(k) + self.shift(k))


class ClipDecoder(nn.Module):
    """Latents (b*t, latent_channels, h, w) -> frames around [-1, 1] (b*t, 3, h * f, w * f).

    `cond_channels`: width of the features of the condition; with it the residual blocks are `PlusBlock`s.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        out_channels: int,
        latent_channels: int,
        blocks: int,
        groups: int,
        cond_channels: int | None,
    ) -> None:
        super().__init__()
        widths = list(widths)[::-1]  # widest first

        def block(channels: int, out: int) -> ClipResBlock:
            make = PlusBlock if cond_channels else frame_block
            return make(channels, out, groups=groups, eps=NORM_EPS)

        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        if cond_channels:
            self.condition_in = nn.ModuleList(
                PlusBlock(width, cond_channels, groups=CONDITION_GROUPS, eps=NORM_EPS)
                for width in (out_channels, cond_channels)
            )
            self.condition_fuse = ConditionFusion(cond_channels, widths[0])
        self.mid_block = ClipMiddle(widths[0], groups=groups, block=block)
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            level = ClipLevel(widths[max(i - 1, 0)], width, blocks, block=block)
            level.upsamplers = nn.ModuleList([VAEUpsample(width)] if i < len(widths) - 1 else [])
            self.up_blocks.append(level)
        self.conv_norm_out = clip_norm(widths[-1], groups=groups, eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor, num_frames: int, low_res: Tensor | None = None, weight: float = 1.0) -> Tensor:
        h = self.conv_in(z)
        if low_res is not None:
            cond = low_res
            for block in self.condition_in:
                cond = block(cond, num_frames)
            h = self.condition_fuse(cond, h, num_frames, weight)
        h = self.mid_block(h, num_frames)
        for level in self.up_blocks:
            h = level(h, num_frames)
            for layer in level.upsamplers:
                h = layer(h)
        return self.conv_out(F.silu(self.conv_norm_out(h, num_frames), inplace=True))


class AutoencoderKLVideo(nn.Module):
    """Autoencoder of clips; names as in `vae_3d.bin` and `vae_video.bin` (diffusers' old ones).

    Args:
        block_out_channels: width of each level, finest first; the latents are 2 ** (levels - 1) times smaller.
        layers_per_block: residual blocks per level of the encoder; the decoder has one more.
        in_channels, out_channels: of the frames.
        latent_channels: of the latents.
        norm_num_groups: of all norms but those of the condition.
        condition_channels: width of the condition's features (128 in `vae_video.bin`); None for `vae_3d.bin`.
    Raises:
        ValueError: no level, or widths that the groups do not divide.
    """

    posterior = staticmethod(posterior)

    def __init__(
        self,
        *,
        block_out_channels: Sequence[int] = (128, 256, 512),
        layers_per_block: int = 2,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        if not block_out_channels:
            raise ValueError("got no block_out_channels, expected one width per level")
        shared = {"latent_channels": latent_channels, "groups": norm_num_groups}
        self.downsampling = 2 ** (len(block_out_channels) - 1)
        self.encoder = ClipEncoder(block_out_channels, in_channels=in_channels, blocks=layers_per_block, **shared)
        self.decoder = ClipDecoder(
            block_out_channels, out_channels=out_channels, blocks=layers_per_block + 1,
            cond_channels=condition_channels, **shared,
        )  # fmt: skip
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    @property
    def conditioned(self) -> bool:
        """Whether the decoder takes the low-resolution frames."""
        return hasattr(self.decoder, "condition_in")

    def encode(self, x: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) in [-1, 1] -> moments (B, T, 2 * latent_channels, H // f, W // f), f = `downsampling`.

        Any sides from f on, as released; what is decoded has multiples of f.

        Raises:
            ValueError: another number of dimensions, or sides below f.
        """
        if x.ndim != 5:
            raise ValueError(f"got clips {tuple(x.shape)}, expected (B, T, 3, H, W)")
        check_sides(x, self.downsampling)
        return self.quant_conv(self.encoder(x.flatten(0, 1), x.shape[1])).unflatten(0, x.shape[:2])

    def decode(self, z: Tensor, low_res: Tensor | None = None, *, weight: float = 1.0) -> Tensor:
        """Latents (B, T, latent_channels, h, w), divided by the scale factor -> (B, T, 3, h * f, w * f), not clamped.

        Args:
            z: a chunk of the clip; the norms run over all its frames.
            low_res: its clean low-resolution frames (B, T, 3, h, w) in [-1, 1]; ignored without a condition path.
            weight: of the condition.

        Raises:
            ValueError: shapes that do not belong together, or a condition path without frames.
        """
        if z.ndim != 5:
            raise ValueError(f"got latents {tuple(z.shape)}, expected (B, T, C, h, w)")
        if not self.conditioned:
            low_res = None
        elif low_res is None or low_res.shape[:2] != z.shape[:2] or low_res.shape[3:] != z.shape[3:]:
            shape = None if low_res is None else tuple(low_res.shape)
            raise ValueError(f"got low-resolution frames {shape} for latents {tuple(z.shape)}, expected one size")
        h = self.post_quant_conv(z.flatten(0, 1))
        frames = None if low_res is None else low_res.flatten(0, 1)
        return self.decoder(h, z.shape[1], frames, weight).unflatten(0, z.shape[:2])
