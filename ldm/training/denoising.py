"""What the trainings of a denoiser have in common: settings, logged losses and the optimizer."""

from abc import ABC, abstractmethod

from pytorch_lightning import LightningModule
from torch import Tensor

from ldm.training.curves import StepMeans
from ldm.training.losses import check_finite
from ldm.training.optimization import Adam


class DenoiserTraining(LightningModule, ABC):
    """Base of the modules that train a denoiser; a subclass holds the networks and computes `losses`.

    A batch holds `lq` (B, T, 3, h, w) and `gt` (B, T, 3, H, W) in [0, 1], and `index` (B,), the sample numbers.

    Args:
        optimizer: builds the optimizer of all parameters that require gradients.
        scale_factor: factor of the latents.
        accumulate: batches per optimizer step, for averaging the logged losses; the Trainer does the accumulation.
        preview_steps: sampling steps of the preview pictures.
    Raises:
        ValueError: `scale_factor` or `preview_steps` not above 0.
    """

    needs = ("gt", "lq")  # keys of a batch

    def __init__(self, *, optimizer: Adam, scale_factor: float, accumulate: int, preview_steps: int) -> None:
        super().__init__()
        if not scale_factor > 0 or preview_steps < 1:
            raise ValueError(f"got scale_factor={scale_factor}, preview_steps={preview_steps}, expected more than 0")
        self.optimizer, self.scale_factor = optimizer, scale_factor
        self.accumulate, self.preview_steps, self.means = accumulate, preview_steps, StepMeans()

    @abstractmethod
    def losses(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        """Logged losses of a batch, scalars; `loss` is minimised.

        `purpose` ("train" or "validation") selects the random numbers.
        """

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        losses = self.losses(batch, "train")
        check_finite(losses["loss"], "denoising", self.global_step)
        self.means.log_batch(self, losses, number)
        return losses["loss"]

    def validation_step(self, batch: dict[str, Tensor], _number: int) -> None:
        means = {f"val/{name}": value for name, value in self.losses(batch, "validation").items()}
        self.log_dict(means, sync_dist=True, batch_size=len(batch["gt"]))

    def configure_optimizers(self) -> dict:
        return self.optimizer(self.parameters())
