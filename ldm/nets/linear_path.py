"""Blocks of pixels as channels, and a linear path beside an autoencoder's networks.

The path carries what a linear transform of pixel blocks can (colour and coarse structure), so that the networks learn
the rest, as the space-to-channel shortcuts of Chen et al. 2024 (DC-AE) do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def to_blocks(x: Tensor, side: int) -> Tensor:
    """Image (n, c, H, W) -> (n, c * side**2, H / side, W / side); with side 1 the image itself."""
    return x if side == 1 else F.pixel_unshuffle(x, side)


def from_blocks(x: Tensor, side: int) -> Tensor:
    """The inverse of `to_blocks`."""
    return x if side == 1 else F.pixel_shuffle(x, side)


FRESH_LOGVAR = -7.0  # of the posterior: a deviation of 0.03


class LinearPath(nn.Module):
    """Two linear maps, between the maps that an autoencoder reads and writes and its latents; they may overlap.

    The posterior of a latent has the first map's value as its mean and a log-variance for each channel.

    Args:
        channels: of the maps that are read and written.
        latent: channels of the latents.
        scale: how many times smaller the sides of the latents are.
    Raises:
        ValueError: for an odd scale, which leaves no centred kernel.
    """

    def __init__(self, channels: int, latent: int, *, scale: int) -> None:
        super().__init__()
        if scale % 2:
            raise ValueError(f"got a linear path of scale {scale}, expected an even one")
        self.scale = scale
        self.to_latent = nn.Conv2d(channels, latent, 2 * scale, stride=scale, padding=scale // 2)
        self.from_latent = nn.Conv2d(latent, channels * scale**2, 3, padding=1)
        self.logvar = nn.Parameter(torch.full((latent,), FRESH_LOGVAR))

    def analyse(self, x: Tensor) -> Tensor:
        """(n, channels, h * scale, w * scale) -> (n, latent, h, w)."""
        return self.to_latent(x)

    def moments(self, x: Tensor) -> Tensor:
        """(n, channels, h * scale, w * scale) -> mean and log-variance (n, 2 * latent, h, w)."""
        mean = self.analyse(x)
        return torch.cat([mean, self.logvar.to(mean.dtype)[:, None, None].expand_as(mean)], dim=1)

    def synthesise(self, z: Tensor) -> Tensor:
        """(n, latent, h, w) -> (n, channels, h * scale, w * scale)."""
        return F.pixel_shuffle(self.from_latent(z), self.scale)

    @torch.no_grad()
    def fit(self, x: Tensor, *, power: float = 0.0) -> None:
        """Become the principal components of the blocks of x (n, channels, H, W).

        Each latent's deviation is proportional to its component's to the `power`, and the mean of their variances is 1:
        0 makes them equal; with 1 an error counts in the latents as it does in the pixels.

        Raises ValueError for fewer blocks than numbers in one.
        """
        blocks = F.pixel_unshuffle(x.double(), self.scale).movedim(1, -1).flatten(0, -2)  # (blocks, numbers)
        if len(blocks) <= blocks.shape[1]:
            raise ValueError(f"got {len(blocks)} blocks to fit {blocks.shape[1]} numbers, expected more of them")
        variances, axes = torch.linalg.eigh(torch.cov(blocks.t()))
        latent = self.to_latent.out_channels
        axes, deviations = axes[:, -latent:].flip(1), variances[-latent:].flip(0).clamp_min(1e-12).sqrt()
        wanted = deviations**power
        units = deviations / (wanted / wanted.square().mean().sqrt())  # of a latent, in those of the pixels
        mean, low, high = blocks.mean(0), self.scale // 2, self.scale // 2 + self.scale
        for parameter in (*self.to_latent.parameters(), *self.from_latent.parameters()):
            parameter.zero_()
        analysis = (axes / units).t()  # (latent, numbers)
        taps = analysis.reshape(latent, -1, self.scale, self.scale)
        self.to_latent.weight[:, :, low:high, low:high] = taps.to(self.to_latent.weight)
        self.to_latent.bias.copy_(-analysis @ mean)
        self.from_latent.weight[:, :, 1, 1] = (axes * units).to(self.from_latent.weight)
        self.from_latent.bias.copy_(mean)
