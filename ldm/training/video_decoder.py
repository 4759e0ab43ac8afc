"""Stage 2 of Upscale-A-Video: training of the decoder's 3-D convolutions and of its low-resolution condition."""

import torch
from torch import Tensor

from ldm.nets.video_vae import AutoencoderKLVideo
from ldm.training.decoder import StageTwo
from ldm.training.decoder_loss import DecoderLoss
from ldm.training.draws import SampleDraws
from ldm.training.optimization import Adam

BUILDABLE = ("VideoDecoderTraining",)


class VideoDecoderTraining(StageTwo):
    """Train the decoder of `AutoencoderKLVideo`; weights have the names of `vae_video.bin`.

    A batch holds `gt` (B, T, 3, f h, f w) and `lq` (B, T, 3, h, w) in [0, 1], where f is the factor of the autoencoder,
    `index` (B,), and optionally `latent` (B, T, c, h, w) of a stage-1 model, scaled by `scale_factor`. Without it,
    latents are sampled from the frozen encoder. T should be 3, the number of frames that the released pipeline decodes
    at once.

    Args:
        decoder: autoencoder with a condition path.
        loss, optimizer, scale_factor, accumulate, gradient_clip: as for `StageTwo`.
        trained: "condition", the layers that the image autoencoder lacks; "decoder", the whole decoder.
        seed: seed of the sampled latents.
    Raises:
        ValueError: as `StageTwo`, and for an autoencoder without a condition path.
    """

    needs = ("gt", "lq")  # of a batch

    def __init__(
        self,
        decoder: AutoencoderKLVideo,
        loss: DecoderLoss,
        *,
        optimizer: Adam,
        scale_factor: float = 0.08333,
        trained: str = "condition",
        accumulate: int = 1,
        gradient_clip: float | None = None,
        seed: int = 23,
    ) -> None:
        if not decoder.conditioned:
            raise ValueError("got an autoencoder without a condition path, expected condition_channels")
        super().__init__(
            decoder, loss, optimizer=optimizer, scale_factor=scale_factor, trained=trained, accumulate=accumulate,
            gradient_clip=gradient_clip,
        )  # fmt: skip
        self.latent_draws = SampleDraws(seed)

    def reconstruct(self, batch: dict[str, Tensor], *, fusion_w: float = 1.0) -> Tensor:
        """Decode latents with low-resolution frames: (B, T, 3, f h, f w) float32, about [-1, 1].

        `fusion_w` has no effect: this decoder always sees the low-resolution frames.
        """
        (vae,) = self._decoder
        z = batch["latent"] / self.scale_factor if "latent" in batch else self._encoded(vae, batch)
        return vae.decode(z, batch["lq"] * 2 - 1).float()

    @torch.no_grad()
    def _encoded(self, vae: AutoencoderKLVideo, batch: dict[str, Tensor]) -> Tensor:
        """Unscaled posterior samples of the GT frames, (B, T, c, h, w)."""
        moments = vae.encode(batch["gt"] * 2 - 1)
        posterior = vae.posterior(moments.flatten(0, 1))
        sample = posterior.sample(self.latent_draws.normal("latents", batch["index"], posterior.mean))
        return sample.unflatten(0, moments.shape[:2])
