"""The random numbers of the released Upscale-A-Video pipeline."""

import torch
from torch import Tensor


class ReleasedClipNoise:
    """One sequential CPU generator for a whole video, as the released script has it (its seed there is 10).

    Each run of the pipeline draws for all its frames at once: first the noise of the low-resolution frames, then the
    initial latents. A tile is a run; tiles follow one another on the same generator, so that overlapping areas get
    unrelated noise (quirk U19). Numbers are drawn in the order C, T, h, w.
    """

    def __init__(self, seed: int = 10) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"got seed {seed}, expected 0 to 2**63 - 1")
        self.generator = torch.Generator().manual_seed(seed)

    def next_run(self, frames: int, size: tuple[int, int], *, latent_channels: int = 4) -> tuple[Tensor, Tensor]:
        """Noise (1, T, 3, h, w) of the low-resolution frames and initial latents (1, T, latent_channels, h, w)."""
        low_res, latents = (
            torch.randn(1, channels, frames, *size, generator=self.generator).transpose(1, 2)
            for channels in (3, latent_channels)
        )
        return low_res, latents
