"""The sequence decoder of MGLD-VSR: the image VAE decoder with temporal convolutions and features of the LQ frames.

Origin: Yang et al. 2024 (MGLD-VSR); the controllable feature wrapping is that of StableSR (Wang et al. 2023).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nets.autoencoder import (
    Encoder,
    ResnetBlock,
    VAELevel,
    VAEMiddle,
    VAEUpsample,
    beside_synthesis,
    check_image,
    conv3x3,
    norm_silu,
    posterior,
    vae_norm,
)
from ldm.nets.layers import regroup
from ldm.nets.linear_path import LinearPath, from_blocks, to_blocks
from ldm.nets.temporal import DilatedTemporalConv, TemporalConv, check_clips

BUILDABLE = ("SequenceAutoencoder",)  # what a configuration may name as a target

FUSED_LEVELS = (1, 2)  # half and quarter size, as released
TEMPORAL_LAYERS = {1: TemporalConv, 2: DilatedTemporalConv}


class ResidualDenseBlock(nn.Module):
    """Five densely connected 3x3 convolutions: x + 0.2 * conv5(...).

    Initialised by Kaiming normal times 0.1 with zero biases, which is close to the identity.
    Origin: ESRGAN (Wang et al. 2018).
    """

    def __init__(self, channels: int, *, growth: int = 32) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, growth)
        self.conv2 = conv3x3(channels + growth, growth)
        self.conv3 = conv3x3(channels + 2 * growth, growth)
        self.conv4 = conv3x3(channels + 3 * growth, growth)
        self.conv5 = conv3x3(channels + 4 * growth, channels)
        for conv in self.children():
            nn.init.kaiming_normal_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(0.1)
                conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        known = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            known.append(F.leaky_relu_(conv(torch.cat(known, dim=1)), 0.2))
        return torch.add(x, self.conv5(torch.cat(known, dim=1)), alpha=0.2)


class FuseBlock(nn.Module):
    """Correct decoder features by encoder features of the same level: dec + w * f(enc, dec) (CFW of StableSR)."""

    def __init__(self, channels: int, *, num_block: int = 2) -> None:
        super().__init__()
        self.encode_enc_1 = ResnetBlock(2 * channels, channels, shortcut="conv_out")
        self.encode_enc_2 = nn.Sequential(*(ResidualDenseBlock(channels) for _ in range(num_block)))
        self.encode_enc_3 = ResnetBlock(channels, channels)

    def forward(self, enc: Tensor, dec: Tensor, w: float = 1.0) -> Tensor:
        """enc, dec (n, c, h, w) -> (n, c, h, w); returns `dec` itself for w = 0."""
        if w == 0:
            return dec
        correction = self.encode_enc_1(torch.cat([enc, dec], dim=1))
        correction = self.encode_enc_3(self.encode_enc_2(correction))
        return torch.add(dec, correction, alpha=w)


class SequenceLevel(VAELevel):
    """The residual blocks of one level, each followed by a temporal layer."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        *,
        temporal: Callable[[int], nn.Module],
        attention: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, blocks, attention=attention)
        self.temporal_mixing = nn.ModuleList(temporal(out_channels) for _ in range(blocks))

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for k, (block, mix) in enumerate(zip(self.block, self.temporal_mixing, strict=True)):
            x = mix(block(x), num_frames)
            if self.attn:
                x = self.attn[k](x)
        return x


class SequenceDecoder(nn.Module):
    """Latents of clips (b*t, z_channels, h, w) -> frames around [-1, 1] (b*t, out_ch, h * f, w * f)."""

    def __init__(
        self,
        *,
        temporal: Callable[[int], nn.Module],
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
        out_ch: int = 3,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        num_fuse_block: int = 2,
        middle_attention: bool = True,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.fused_levels = tuple(level for level in FUSED_LEVELS if level < len(widths))
        self.conv_in = conv3x3(z_channels, widths[-1])
        self.mid = VAEMiddle(widths[-1], attention=middle_attention)
        self.temporal_mixing = temporal(widths[-1])
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            before = widths[min(level + 1, len(widths) - 1)]
            attention = resolution // 2**level in attn_resolutions
            stage = SequenceLevel(before, width, num_res_blocks + 1, temporal=temporal, attention=attention)
            if level > 0:
                stage.upsample = VAEUpsample(width)
            self.up.append(stage)
        for level in reversed(self.fused_levels):
            self.add_module(f"fusion_layer_{level}", FuseBlock(widths[level], num_block=num_fuse_block))
        self.norm_out = vae_norm(widths[0])
        self.conv_out = conv3x3(widths[0], out_ch)

    def forward(self, z: Tensor, features: Sequence[Tensor] | None, *, num_frames: int, fusion_w: float) -> Tensor:
        h = self.mid.block_1(self.conv_in(z))
        h = self.temporal_mixing(h, num_frames)
        h = self.mid.block_2(self.mid.attn_1(h))
        for level in reversed(range(len(self.up))):
            h = self.up[level](h, num_frames)  # (b*t, ch * ch_mult[level], h * f / 2**level, ...)
            if level in self.fused_levels and fusion_w != 0:
                feature = features[self.fused_levels.index(level)]
                h = getattr(self, f"fusion_layer_{level}")(feature, h, fusion_w)
            if level > 0:
                h = self.up[level].upsample(h)
        return self.conv_out(norm_silu(self.norm_out, h))


class SequenceAutoencoder(nn.Module):
    """Image encoder and sequence decoder, with the parameter names of `video_vae_cfw.ckpt`.

    Args:
        version: 1, one temporal convolution per place (the released weights); 2, a pair, one of them dilated.
        num_fuse_block: dense blocks per fusion layer.
        temporal_alpha: initial blending weight of all temporal layers; None for the default of the layer.
        linear: a linear path encodes, as for `AutoencoderKL`; the encoder's network gives only the features.
        embed_dim, norm_groups, double_z, patch and the others: as for `AutoencoderKL`.
    Raises:
        ValueError: for an unknown version or double_z = False.
    """

    posterior = staticmethod(posterior)

    def __init__(
        self,
        *,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
        embed_dim: int = 4,
        in_channels: int = 3,
        out_ch: int = 3,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        double_z: bool = True,
        version: int = 1,
        num_fuse_block: int = 2,
        temporal_alpha: float | None = None,
        norm_groups: int = 32,
        middle_attention: bool = True,
        patch: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        if version not in TEMPORAL_LAYERS:
            raise ValueError(f"got version={version}, expected one of {sorted(TEMPORAL_LAYERS)}")
        if not double_z:
            raise ValueError("got double_z=False, expected True; the posterior needs a mean and a log-variance")
        temporal = TEMPORAL_LAYERS[version]
        if temporal_alpha is not None:
            temporal = partial(temporal, temporal_alpha=temporal_alpha)
        shared = {"ch": ch, "ch_mult": ch_mult, "num_res_blocks": num_res_blocks, "z_channels": z_channels,
                  "attn_resolutions": attn_resolutions, "resolution": resolution,
                  "middle_attention": middle_attention}  # fmt: skip
        self.patch, self.downsampling = patch, patch * 2 ** (len(ch_mult) - 1)
        self.encoder = Encoder(in_channels=in_channels * patch**2, **shared)
        out_ch *= patch**2
        self.decoder = SequenceDecoder(temporal=temporal, out_ch=out_ch, num_fuse_block=num_fuse_block, **shared)
        self.quant_conv = None if linear else nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.linear = None
        if linear:
            self.linear = LinearPath(in_channels * patch**2, embed_dim, scale=2 ** (len(ch_mult) - 1))
            del self.encoder.mid, self.encoder.norm_out, self.encoder.conv_out  # it only gives features
        regroup(self, norm_groups)

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode frames (n, 3, H, W) in [-1, 1] to moments (n, 2 * embed_dim, H / f, W / f) and features for `decode`.

        The features are the encoder's maps of level 1 (half size) and level 2 (quarter size), before downsampling.
        """
        check_image(x, downsampling=self.downsampling)
        x = to_blocks(x, self.patch)
        if self.linear is not None:
            return self.linear.moments(x), self.encoder.features(x, keep=self.decoder.fused_levels)
        h, features = self.encoder(x, keep=self.decoder.fused_levels)
        return self.quant_conv(h), features

    def features(self, x: Tensor) -> list[Tensor]:
        """Return only the features of `encode`; the encoder stops after the last fused level."""
        check_image(x, downsampling=self.downsampling)
        return self.encoder.features(to_blocks(x, self.patch), keep=self.decoder.fused_levels)

    def decode(self, z: Tensor, features: Sequence[Tensor] | None, *, num_frames: int, fusion_w: float = 1.0) -> Tensor:
        """Latents (b*num_frames, embed_dim, h, w), clip-major -> frames around [-1, 1], not clamped.

        Args:
            z: not multiplied by the scale factor.
            features: result of `features` for the LQ frames; may be None if `fusion_w` is 0.
            num_frames: frames per clip, any number from 1.
            fusion_w: weight of the features, 1 in training; less trades fidelity for realism.
        Raises:
            ValueError: for incomplete clips or features that do not match.
        """
        if z.ndim != 4:
            raise ValueError(f"got latents {tuple(z.shape)}, expected (b * {num_frames}, c, h, w); flatten the clips")
        check_clips(z, num_frames=num_frames)
        if fusion_w != 0:
            self.check_features(z, features)
        y = self.decoder(self.post_quant_conv(z), features, num_frames=num_frames, fusion_w=fusion_w)
        return from_blocks(beside_synthesis(self, y, z), self.patch)

    def check_features(self, z: Tensor, features: Sequence[Tensor] | None) -> None:
        """Raise ValueError unless there is one feature map per fused level, of that level's size."""
        levels = self.decoder.fused_levels
        if len(features or ()) != len(levels):
            got = len(features or ())
            raise ValueError(f"got {got} feature maps, expected {len(levels)}; use `features` or set fusion_w=0")
        for level, feature in zip(levels, features or (), strict=True):
            scale = self.downsampling // self.patch // 2**level
            got, size = tuple(feature.shape), (z.shape[0], z.shape[2] * scale, z.shape[3] * scale)
            if (got[0], *got[2:]) != size:
                raise ValueError(f"got a feature map {got} at level {level}, expected (n, h, w) = {size}")
