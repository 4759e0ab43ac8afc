"""Data loading of a training: numbered samples, their distribution over processes, and resuming."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

BUILDABLE = ("TrainingData",)  # what a configuration may name as a target

ENDLESS = 2**40  # batches of an epoch; the Trainer stops after its number of steps


class SampleNumbers(Sampler[int]):
    """Sample the numbers 0, 1, 2, ... in batches: batch k of process r of n is batch k * n + r of a single process.

    In one step n processes therefore see the samples that one process sees while it accumulates n batches. The first
    `start` batches are skipped.
    """

    def __init__(self, *, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.batch_size, self.rank, self.processes, self.start = batch_size, rank, processes, 0

    def __len__(self) -> int:
        return ENDLESS * self.batch_size

    def __iter__(self) -> Iterator[int]:
        for k in range(self.start, ENDLESS):
            first = (k * self.processes + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)


class Numbered(Dataset):
    """Add to each item of a dataset its number as `index`, from which its random numbers are drawn."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {**self.dataset[number], "index": torch.tensor(number)}


class ResumableLoader(DataLoader):
    """DataLoader whose position is saved in Lightning checkpoints and restored on resume.

    Args:
        dataset: map-style dataset.
        done: returns the number of batches that were trained on.
        sampler: yields the sample numbers.
        settings: further arguments of DataLoader.
    """

    def __init__(self, dataset: Dataset, *, done: Callable[[], int], sampler: SampleNumbers, **settings: Any) -> None:
        super().__init__(dataset, sampler=sampler, **settings)
        self.done = done

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.sampler.start = max(self.sampler.start, self.done())  # after an epoch has ended (limit_train_batches)
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Number of batches trained on, prefetched ones excluded, and samples per batch over all processes."""
        return {"batches": self.done(), "samples": self.sampler.batch_size * self.sampler.processes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the saved number of batches.

        Raises:
            ValueError: a batch now holds another number of samples.
        """
        own = self.sampler.batch_size * self.sampler.processes
        if state.get("samples", own) != own:
            what = f"got {own} samples per batch in all processes, the resumed run had {state['samples']}"
            raise ValueError(f"{what}; keep batch_size and the number of devices")
        self.sampler.start = state["batches"]


class TrainingData(LightningDataModule):
    """Batches of samples that are numbered over the whole training, for any number of processes.

    Args:
        train: map-style dataset with an item for any number from 0.
        validation: map-style dataset of fixed items; None for no validation.
        batch_size: samples per batch in each process.
        num_workers: worker processes that load batches; 0 loads them in the training process.
    Raises:
        ValueError: `batch_size` below 1, `num_workers` below 0, or an argument that is not a dataset.
    """

    def __init__(
        self, train: Dataset, *, validation: Dataset | None = None, batch_size: int = 1, num_workers: int = 2
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"got batch_size {batch_size} and {num_workers} workers, expected at least 1 and 0")
        if odd := [d for d in (train, validation) if d is not None and not isinstance(d, Dataset)]:
            raise ValueError(f"got {odd[0]!r} for a dataset, expected a mapping with a target")
        self.train, self.validation = train, validation
        self.batch_size, self.num_workers = batch_size, num_workers

    def check(self, needs: Collection[str]) -> None:
        """Read one item of each dataset, so that a wrong folder is reported before the training starts.

        Raises:
            ValueError: a dataset is empty, or its items lack one of the keys `needs`.
        """
        for dataset in (self.train, self.validation):
            if dataset is not None:
                if not len(dataset):
                    raise ValueError("got a dataset without items, expected at least one")
                if missing := [name for name in needs if name not in dataset[0]]:
                    raise ValueError(f"got samples without {missing[0]!r}, expected {', '.join(needs)}; see data")

    def example(self) -> dict[str, Tensor]:
        """Sample of the preview pictures, always the same; from the validation set if there is one."""
        return Numbered(self.train if self.validation is None else self.validation)[0]

    def train_dataloader(self) -> DataLoader:
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        numbers = SampleNumbers(batch_size=self.batch_size, rank=rank, processes=processes)
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return ResumableLoader(
            Numbered(self.train),
            done=lambda: progress.total.ready,
            sampler=numbers,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # a loader draws a base seed: not from the global generator of the training
        )

    def val_dataloader(self) -> DataLoader | list:
        if self.validation is None:
            return []
        # every process validates the whole set, so that the mean does not depend on their number
        own = torch.Generator()
        return DataLoader(Numbered(self.validation), batch_size=1, num_workers=self.num_workers, generator=own)
