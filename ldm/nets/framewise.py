"""An image autoencoder over the frames of clips, in place of the autoencoders of Upscale-A-Video."""

from torch import Tensor, nn

from ldm.nets.autoencoder import AutoencoderKL, Posterior

BUILDABLE = ("FramewiseAutoencoder",)


class FramewiseAutoencoder(nn.Module):
    """An image autoencoder with the interface of `ldm.nets.video_vae.AutoencoderKLVideo`, frame by frame.

    Args:
        image: the autoencoder of single frames.
    """

    conditioned = False  # low-resolution frames are ignored

    def __init__(self, image: AutoencoderKL) -> None:
        super().__init__()
        self.image = image

    @property
    def downsampling(self) -> int:
        """Sides of the frames over those of the latents."""
        return self.image.downsampling

    def posterior(self, moments: Tensor) -> Posterior:
        """The Gaussian posterior of moments (n, 2 c, h, w)."""
        return self.image.posterior(moments)

    def encode(self, x: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) in [-1, 1] -> moments (B, T, 2 c, H // f, W // f), f = `downsampling`."""
        return self.image.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def decode(self, z: Tensor, _low_res: Tensor | None = None, *, weight: float = 1.0) -> Tensor:
        """Latents (B, T, c, h, w) -> (B, T, 3, h * f, w * f), not clamped; the other arguments have no effect."""
        return self.image.decode(z.flatten(0, 1)).unflatten(0, z.shape[:2])
