"""Stage 2 of Upscale-A-Video: training of the decoder's 3-D convolutions and of its low-resolution condition."""

from torch import Tensor, nn

from ldm.nets.video_vae import AutoencoderKLVideo
from ldm.training.decoder import StageTwo
from ldm.training.decoder_loss import DecoderLoss
from ldm.training.draws import SampleDraws, clip_latents
from ldm.training.optimization import Adam

BUILDABLE = ("VideoDecoderTraining", "SampledLatents")


class SampledLatents(nn.Module):
    """Posterior samples of GT frames.

    Args:
        seed: seed of the samples.
        encoder: autoencoder that encodes the frames, frozen; None for the one that is trained.
    """

    def __init__(self, *, seed: int = 23, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.draws = SampleDraws(seed)
        self.encoder = None if encoder is None else encoder.requires_grad_(False)

    def sample(self, vae: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Unscaled latents (B, T, c, h, w) of `gt` (B, T, 3, H, W) in [0, 1]; `vae` is the trained autoencoder."""
        return clip_latents(self.encoder or vae, batch, self.draws)


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
        latents: samples latents of the frames; None for `SampledLatents` of the decoder's own encoder.
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
        latents: SampledLatents | None = None,
    ) -> None:
        if not decoder.conditioned:
            raise ValueError("got an autoencoder without a condition path, expected condition_channels")
        super().__init__(
            decoder, loss, optimizer=optimizer, scale_factor=scale_factor, trained=trained, accumulate=accumulate,
            gradient_clip=gradient_clip,
        )  # fmt: skip
        self.latents = latents or SampledLatents()

    def reconstruct(self, batch: dict[str, Tensor], *, fusion_w: float = 1.0) -> Tensor:
        """Decode latents with low-resolution frames: (B, T, 3, f h, f w) float32, about [-1, 1].

        `fusion_w` has no effect: this decoder always sees the low-resolution frames.
        """
        (vae,) = self._decoder
        z = batch["latent"] / self.scale_factor if "latent" in batch else self.latents.sample(vae, batch)
        return vae.decode(z, batch["lq"] * 2 - 1).float()
