"""Encoding and decoding by the two autoencoders of MGLD-VSR, in tiles where memory requires it."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ldm.methods.mgld.settings import Decoding
from ldm.methods.windows import Windows
from ldm.nets.whole_frame import Cut, decode_frames, encode_frames


class Codec:
    """The image autoencoder as encoder and the sequence decoder as decoder.

    Args:
        autoencoder: the image autoencoder.
        sequence_decoder: the sequence autoencoder; its encoder computes the LQ features.
        decoding: tiles, norms and weight of the LQ features.
        scale_factor: latents are samples of the autoencoder's posterior times this factor.
        dtype: autocast dtype of the networks; None disables autocast.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        sequence_decoder: nn.Module,
        decoding: Decoding,
        *,
        scale_factor: float,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.autoencoder, self.sequence_decoder, self.decoding = autoencoder, sequence_decoder, decoding
        self.scale_factor, self.dtype = scale_factor, dtype
        self._known: dict[tuple, Callable[..., Tensor]] = {}

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return self.autoencoder.post_quant_conv.in_channels

    @property
    def downsampling(self) -> int:
        """Side of a frame divided by the side of its latents."""
        return self.autoencoder.downsampling

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the autocast context of the networks; everything else is float32."""
        device = self.autoencoder.post_quant_conv.weight.device.type
        return torch.autocast(device, self.dtype, enabled=self.dtype is not None)

    def encode(self, pictures: Tensor, eps: Tensor) -> Tensor:
        """Encode frames (B, T, 3, H, W) in [0, 1] to scaled posterior samples (B, T, c, h, w).

        `eps` is standard normal noise (B, T, c, h, w).
        """
        if cut := self.cut_of(eps.shape[-2:]):
            with self.autocast():
                moments = encode_frames(self.autoencoder, pictures.flatten(0, 1) * 2 - 1, cut).float()
        else:
            frame_by_frame = replace(self.decoding.windows, n_frames=1, frame_overlap=0, batch=1)
            moments = self._in_tiles(frame_by_frame, self._encode_tile, eps)(eps, pictures).flatten(0, 1)
        posterior = self.autoencoder.posterior(moments)
        return posterior.sample(eps.flatten(0, 1)).unflatten(0, pictures.shape[:2]) * self.scale_factor

    def _encode_tile(self, eps: Tensor, pictures: Tensor, *, tiles: list) -> Tensor:
        with self.autocast():
            return self.autoencoder.encode(pictures.flatten(0, 1) * 2 - 1).float().unflatten(0, eps.shape[:2])

    def decode(self, x: Tensor, pictures: Tensor, report: Callable[[], None] = lambda: None) -> Tensor:
        """Decode latents x (B, T, c, h, w) with the enlarged LQ frames in [0, 1] to frames (B, T, 3, H, W).

        Results are about [-1, 1], not clamped. T is at most the length of a window. `report` is called after each tile,
        or once if norms use statistics of more than a tile.
        """
        if cut := self.cut_of(x.shape[-2:]):
            with self.autocast():
                out = decode_frames(
                    self.sequence_decoder, x.flatten(0, 1) / self.scale_factor, pictures.flatten(0, 1) * 2 - 1,
                    cut=cut, num_frames=x.shape[1], fusion_w=self.decoding.dec_w,
                )  # fmt: skip
            report()
            return out.float().unflatten(0, x.shape[:2])

        return self._in_tiles(self.decoding.windows, self._decode_tile, x)(x, pictures, report=report)

    def _decode_tile(self, z: Tensor, pictures: Tensor, *, report: Callable[[], None], tiles: list) -> Tensor:
        with self.autocast():
            _, features = self.sequence_decoder.encode(pictures.flatten(0, 1) * 2 - 1)
            out = self.sequence_decoder.decode(
                z.flatten(0, 1) / self.scale_factor, features, num_frames=z.shape[1], fusion_w=self.decoding.dec_w
            )
        report()
        return out.float().unflatten(0, z.shape[:2])

    def _in_tiles(self, windows: Windows, fn: Callable[..., Tensor], latents: Tensor) -> Callable[..., Tensor]:
        """Return `fn` applied to tiles of latents of this size; kept, for it keeps the weights of the tiles."""
        key = (fn.__name__, tuple(latents.shape[-2:]))
        if key not in self._known:
            self._known[key] = windows.over(fn, key[1])
        return self._known[key]

    def cut_of(self, latent: tuple[int, int]) -> Cut | None:
        """Return how the autoencoders cut latents of this size; None for blended tiles."""
        if self.decoding.norms == "tile":
            return None
        return self.decoding.cut(self.largest_map(latent))

    def largest_map(self, latent: tuple[int, int]) -> int:
        """Return the bytes of the largest feature map for a window of latents of this size.

        The networks compute on blocks of pixels as channels, so maps are smaller than frames by the side of a block.
        """
        width = self.autoencoder.decoder.up[0].block[-1].conv2.out_channels
        f = self.downsampling // self.autoencoder.patch
        values = self.decoding.windows.n_frames * width * math.prod(latent) * f * f
        return values * (2 if self.dtype else 4)
