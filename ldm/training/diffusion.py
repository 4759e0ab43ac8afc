"""Stage 1: the U-Net and the structure encoder learn to denoise the latents of high-quality clips."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm.diffusion.denoiser import target
from ldm.diffusion.schedule import Schedule
from ldm.ops.resize import resize
from ldm.training.autoencoder import cosine_adam
from ldm.training.losses import check_finite


class StageOne(LightningModule):
    """Noise (or velocity) regression on clips. Submodules carry the names of the released stage-1 file.

    Batch: `lq` (B, T, 3, h, w) and `gt` (B, T, 3, H, W) in [0, 1]. `timestep_per` is "clip", or "frame" as released
    (B22). The autoencoder stays frozen; everything else trains.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        *,
        scale_factor: float,
        prediction: str,
        timestep_per: str,
        lr: float,
        steps: int,
    ):
        super().__init__()
        if timestep_per not in ("clip", "frame"):
            raise ValueError(f"got timestep_per={timestep_per}, expected clip or frame")
        self.model = nn.ModuleDict({"diffusion_model": networks["unet"]})
        self.first_stage_model = networks["autoencoder"].requires_grad_(False)
        self.structcond_stage_model = networks["structure"]
        self.cond_stage_model = nn.ModuleDict({"model": networks["text"]})
        self.schedule = Schedule.linear_sd()
        self.scale_factor, self.prediction, self.timestep_per = scale_factor, prediction, timestep_per
        self.lr, self.steps = lr, steps

    @torch.no_grad()
    def latents(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Posterior samples of the enlarged LQ and of the GT, each (B*T, 4, h, w), scaled."""
        gt = batch["gt"]
        lq = resize(batch["lq"], gt.shape[-2:]).clamp(0, 1)
        frames = torch.cat([lq.flatten(0, 1), gt.flatten(0, 1)]) * 2 - 1
        posterior = self.first_stage_model.posterior(self.first_stage_model.encode(frames))
        z = posterior.sample(torch.randn_like(posterior.mean)) * self.scale_factor
        return z.float().chunk(2)

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        clips, frames = batch["gt"].shape[:2]
        z_lq, z_gt = self.latents(batch)
        count = clips if self.timestep_per == "clip" else clips * frames
        i = torch.randint(len(self.schedule.t), (count,), device=self.device)
        i = i.repeat_interleave(clips * frames // count)
        noise = torch.randn_like(z_gt)
        x = self.schedule.add_noise(z_gt, noise, i)
        t = self.schedule.t.to(self.device)[i]
        struct_cond = self.structcond_stage_model(z_lq, t)
        context = self.cond_stage_model["model"]().to(x)
        prediction = self.model["diffusion_model"](x, t, context, struct_cond, num_frames=frames)
        wanted = target(self.prediction, z_gt, noise, self.schedule, i)
        loss = (prediction.float() - wanted).square().mean()
        self.log("loss_simple", loss, prog_bar=True)
        return check_finite(loss, "denoising", self.global_step)

    def configure_optimizers(self) -> dict:
        return cosine_adam([p for p in self.parameters() if p.requires_grad], self.lr, self.steps)
