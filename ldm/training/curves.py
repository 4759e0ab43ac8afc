"""Logged values of a training: one per loss term and optimizer step, for any number of accumulated batches."""

from collections.abc import Mapping

from pytorch_lightning import LightningModule
from torch import Tensor


class StepMeans:
    """Mean of each loss term over the batches of one optimizer step.

    A term that only some batches have is averaged over those batches. No state outlives an optimizer step, so
    checkpoints hold none.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the scalar terms of one batch."""
        for name, term in terms.items():
            value = term.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def flush(self) -> dict[str, Tensor]:
        """Return the means since the last call as train/NAME, and reset them."""
        means = {f"train/{name}": total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def log_batch(self, module: LightningModule, terms: Mapping[str, Tensor], number: int) -> None:
        """Add the terms of batch `number`; log their means after every `module.accumulate` batches."""
        self.add(terms)
        if (number + 1) % module.accumulate == 0:
            module.log_dict(self.flush(), sync_dist=True, batch_size=1)
