"""Training of the denoiser of the x4 upscaler on single frames, the base of StableVSR's control network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.bidirectional import GuidedDenoiser, conditioned_prediction, sample_scene
from ldm.diffusion.denoiser import target
from ldm.diffusion.scheduler import Scheduler
from ldm.training.denoising import DenoiserTraining
from ldm.training.draws import SampleDraws
from ldm.training.optimization import Adam
from ldm.training.temporal_control import sampled_latents

BUILDABLE = ("FrameUpscaler",)  # by configurations


class FrameUpscaler(DenoiserTraining):
    """Train a denoiser on single frames, with the low-resolution frame as additional input channels.

    A time step is drawn for each frame.

    Args:
        networks: "unet" (trained), "autoencoder" and "text" (frozen).
        scheduler: time steps and the type of prediction.
        seed: seed of time steps and noise.
        optimizer, scale_factor, accumulate, preview_steps: as for `DenoiserTraining`.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        *,
        scheduler: Scheduler,
        optimizer: Adam,
        scale_factor: float = 0.08333,
        seed: int = 42,
        accumulate: int = 1,
        preview_steps: int = 4,
    ):
        super().__init__(
            optimizer=optimizer, scale_factor=scale_factor, accumulate=accumulate, preview_steps=preview_steps
        )
        self.unet = networks["unet"]
        self.vae = networks["autoencoder"].requires_grad_(False)
        self.text_encoder = networks["text"].requires_grad_(False)
        self.scheduler, self.draws = scheduler, SampleDraws(seed)

    def losses(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        """Mean squared error of the prediction at a time step drawn for each frame."""
        lq, gt, index = 2 * batch["lq"].flatten(0, 1) - 1, batch["gt"].flatten(0, 1), batch["index"]
        training = self.scheduler.training
        like = lq.new_empty(len(lq), self.unet.conv_out.out_channels, *lq.shape[-2:])
        with torch.no_grad():
            eps = self.draws.normal(f"{purpose}.eps", index, like)
            z = sampled_latents(self.vae, gt, eps, scale_factor=self.scale_factor)
        t = self.draws.below(len(training), f"{purpose}.t", index, count=len(lq) // len(index))
        noise = self.draws.normal(f"{purpose}.noise", index, z)
        x = torch.cat([training.add_noise(z, noise, t), lq], dim=1)
        prediction = self.unet(x, t, self.text_encoder().to(x)).float()
        return {"loss": F.mse_loss(prediction, target(self.scheduler.kind, z, noise, training, t))}

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """Sample each frame of a clip (1, T, ...) independently in a few steps: (1, T, 3, H, W) in [0, 1]."""
        lr = list((2 * batch["lq"][0] - 1).split(1))
        like = lr[0].new_empty(1, self.unet.conv_out.out_channels, *lr[0].shape[-2:])

        def noise(step: int | str, frame: int) -> Tensor:
            return self.draws.normal(f"preview.{step}.{frame}", batch["index"], like)

        predict = conditioned_prediction(self.unet, None, self.text_encoder().to(like))
        model = GuidedDenoiser(predict, lambda x0: self.vae.decode(x0 / self.scale_factor).float())
        steps = min(self.preview_steps, len(self.scheduler.training))
        scales = [0.0] * steps
        done = sample_scene(lr, model=model, scheduler=self.scheduler, steps=steps, noise=noise, scales=scales)
        return (torch.cat(done.pictures) / 2 + 0.5).clamp(0, 1)[None]
