"""Random numbers of a training, each a function of seed, sample number and purpose.

A training therefore does not depend on the number of workers or processes, or on where it was stopped and resumed.
"""

import zlib

import numpy as np
import torch
from torch import Tensor, nn

from ldm.diffusion.noise import FrameNoise


class SampleDraws:
    """Random numbers for the samples of a training; `index` (B,) holds the sample numbers, counted over all batches."""

    def __init__(self, seed: int) -> None:
        self.seed, self._noise = seed, FrameNoise(seed)

    def normal(self, purpose: str, index: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers with the shape, dtype and device of `like` (B*T, ...), sample after sample.

        Raises:
            ValueError: the number of rows of `like` is not a multiple of the number of samples.
        """
        samples, rows = len(index), len(like)
        if not samples or rows % samples:
            raise ValueError(f"got {rows} rows for {samples} samples, expected a multiple")
        frames = rows // samples
        drawn = [self._noise(purpose, range(n * frames, (n + 1) * frames), like.shape[1:]) for n in index.tolist()]
        return torch.cat(drawn).to(like)

    def below(self, limit: int, purpose: str, index: Tensor, *, count: int) -> Tensor:
        """Draw `count` integers from 0 to limit - 1 for each sample: (B * count,) int64 on the device of `index`."""
        address = [self.seed % 2**32, self.seed >> 32, zlib.crc32(purpose.encode())]
        drawn = [np.random.default_rng([*address, n]).integers(limit, size=count) for n in index.tolist()]
        return torch.from_numpy(np.concatenate(drawn)).to(index.device)


@torch.no_grad()
def clip_latents(vae: nn.Module, batch: dict[str, Tensor], draws: SampleDraws) -> Tensor:
    """Unscaled posterior samples (B, T, c, h, w) of `gt` (B, T, 3, H, W) in [0, 1], by an autoencoder of clips."""
    moments = vae.encode(batch["gt"] * 2 - 1)
    posterior = vae.posterior(moments.flatten(0, 1))
    sample = posterior.sample(draws.normal("latents", batch["index"], posterior.mean))
    return sample.unflatten(0, moments.shape[:2])
