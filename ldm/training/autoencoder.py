"""Training of the image autoencoder from scratch, for the embedded model."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from ldm.nets.autoencoder import AutoencoderKL
from ldm.training.curves import StepMeans
from ldm.training.draws import SampleDraws
from ldm.training.losses import check_finite, gradient_l1, kl_to_normal
from ldm.training.optimization import Adam

BUILDABLE = ("AutoencoderTraining",)  # what a configuration may name as a target


class AutoencoderTraining(LightningModule):
    """Train an image autoencoder on single frames with an L1, a gradient L1 and a KL term.

    A batch holds `gt` (B, T, 3, H, W) in [0, 1], each frame being one example, and `index` (B,), the sample
    numbers. Weights are named `first_stage_model.*`, as in the released stage-1 file.

    Args:
        autoencoder: network to train.
        optimizer: builds the optimizer.
        kl_weight, gradient_weight: weights of the KL and the gradient term; L1 has weight 1.
        seed: seed of the latent noise.
        accumulate: batches per optimizer step, for averaging the logged losses; the Trainer does the accumulation.
        fit_samples: number of training samples to which the linear path is fitted before the first step; it is not
            trained afterwards. 0 trains it from its initial weights.
        fit_power: exponent of the latents' standard deviations, see `LinearPath.fit`.
    Raises:
        ValueError: `fit_samples` for an autoencoder without a linear path.
    """

    needs = ("gt",)  # keys of a batch

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        optimizer: Adam,
        kl_weight: float,
        gradient_weight: float,
        seed: int = 23,
        accumulate: int = 1,
        fit_samples: int = 0,
        fit_power: float = 0.0,
    ):
        super().__init__()
        if fit_samples and autoencoder.linear is None:
            raise ValueError(f"got fit_samples={fit_samples} for an autoencoder without a linear path, expected 0")
        self.fit_samples, self.fit_power = fit_samples, fit_power
        if fit_samples:
            autoencoder.linear.requires_grad_(False)
        self.first_stage_model = autoencoder
        self.optimizer, self.kl_weight, self.gradient_weight = optimizer, kl_weight, gradient_weight
        self.draws, self.accumulate, self.means = SampleDraws(seed), accumulate, StepMeans()

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        x = batch["gt"].flatten(0, 1) * 2 - 1
        posterior = self.first_stage_model.posterior(self.first_stage_model.encode(x))
        y = self.first_stage_model.decode(posterior.sample(self.draws.normal("train", batch["index"], posterior.mean)))
        terms = {"l1": (y.float() - x).abs().mean(), "gradient": gradient_l1(y, x)}
        terms["kl"] = kl_to_normal(posterior.mean, posterior.logvar)
        for name, term in terms.items():
            check_finite(term, name, self.global_step)
        loss = terms["l1"] + self.gradient_weight * terms["gradient"] + self.kl_weight * terms["kl"]
        self.means.log_batch(self, {**terms, "loss": loss, "latent_std": posterior.mean.float().std()}, number)
        return loss

    def on_fit_start(self) -> None:
        """Fit the linear path to the data, unless the run is resumed."""
        if not self.fit_samples or self.trainer.ckpt_path is not None:
            return
        data = self.trainer.datamodule.train
        frames = torch.cat([data[k]["gt"] for k in range(self.fit_samples)]) * 2 - 1
        self.first_stage_model.fit_linear(frames.to(self.device), power=self.fit_power)

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """Encode and decode the GT frames: (B, T, 3, H, W) in [0, 1]."""
        x = batch["gt"].flatten(0, 1) * 2 - 1
        mean = self.first_stage_model.posterior(self.first_stage_model.encode(x)).mean
        decoded = self.first_stage_model.decode(mean).float()
        return (decoded / 2 + 0.5).clamp(0, 1).unflatten(0, batch["gt"].shape[:2])

    def configure_optimizers(self) -> dict:
        return self.optimizer(self.parameters())
