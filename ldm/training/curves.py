"""What a training logs: one value a term and optimizer step, whatever the number of batches accumulated in it."""

from collections.abc import Mapping

from torch import Tensor


class StepMeans:
    """The mean of each loss term over the batches of one optimizer step.

    `add` takes a dict of scalars of one batch; a term that only some batches have is averaged over those. `flush` gives
    the means and starts anew. Nothing of it outlives an optimizer step, so a resumed run needs no state of it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, term in terms.items():
            value = term.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def flush(self) -> dict[str, Tensor]:
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means
