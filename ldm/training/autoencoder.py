"""Training of the image autoencoder from scratch, as far as the embedded model needs it."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from ldm.nets.autoencoder import AutoencoderKL
from ldm.training.losses import check_finite, gradient_l1, kl_to_normal


class AutoencoderTraining(LightningModule):
    """L1 + gradient L1 + KL on single frames. Weights are named `first_stage_model.*`, as in the stage-1 file.

    Batch: `gt` (B, T, 3, H, W) in [0, 1]; every frame is an example of its own.
    """

    def __init__(self, autoencoder: AutoencoderKL, *, lr: float, kl_weight: float, gradient_weight: float, steps: int):
        super().__init__()
        self.first_stage_model = autoencoder
        self.lr, self.kl_weight, self.gradient_weight, self.steps = lr, kl_weight, gradient_weight, steps

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        x = batch["gt"].flatten(0, 1) * 2 - 1
        posterior = self.first_stage_model.posterior(self.first_stage_model.encode(x))
        y = self.first_stage_model.decode(posterior.sample(torch.randn_like(posterior.mean)))
        l1 = (y.float() - x).abs().mean()
        kl = kl_to_normal(posterior.mean, posterior.logvar)
        loss = l1 + self.gradient_weight * gradient_l1(y, x) + self.kl_weight * kl
        self.log_dict({"l1": l1, "kl": kl, "latent_std": posterior.mean.float().std()}, prog_bar=True)
        return check_finite(loss, "autoencoder", self.global_step)

    def configure_optimizers(self) -> dict:
        return cosine_adam([p for p in self.parameters() if p.requires_grad], self.lr, self.steps)


def cosine_adam(parameters: list[Tensor], lr: float, steps: int, betas: tuple[float, float] = (0.9, 0.99)) -> dict:
    """AdamW with a short warm-up and a cosine to zero over `steps` optimizer steps."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=0.01)
    rise = max(0.05, 2 / (steps + 1))  # a rise of less than one step divides by zero there
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps + 1, pct_start=rise)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
