"""The stream of samples a training sees: which number comes when, in which process, and where a resumed run goes on."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

BUILDABLE = ("TrainingData",)  # what a configuration may name as a target

ENDLESS = 2**40  # batches: the Trainer stops by its number of steps


class SampleNumbers(Sampler[int]):
    """Numbers 0, 1, 2 ... dealt out in batches: batch k of process r of n is the batch k * n + r of one process.

    So n processes see in one step what one process sees while it accumulates n batches. `start` batches are left out.
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
    """A dataset whose items carry their number as `index`: where a training finds its random numbers."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {**self.dataset[number], "index": torch.tensor(number)}


class ResumableLoader(DataLoader):
    """A DataLoader that a checkpoint of Lightning can set going where a run was stopped."""

    def __init__(self, dataset: Dataset, *, done: Callable[[], int], sampler: SampleNumbers, **settings: Any) -> None:
        super().__init__(dataset, sampler=sampler, **settings)
        self.done = done

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.sampler.start = max(self.sampler.start, self.done())  # behind an epoch that ended (limit_train_batches)
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Batches that were trained on (not those that are only prepared), and samples of all processes in each."""
        return {"batches": self.done(), "samples": self.sampler.batch_size * self.sampler.processes}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind these batches. Raises ValueError where they would be other samples."""
        own = self.sampler.batch_size * self.sampler.processes
        if state.get("samples", own) != own:
            what = f"got {own} samples a batch in all processes, the run that is resumed had {state['samples']}"
            raise ValueError(f"{what}; keep batch_size and the number of devices")
        self.sampler.start = state["batches"]


class TrainingData(LightningDataModule):
    """Batches of samples that are numbered through the whole training, over any number of processes.

    Args:
        train: map-style dataset that has an item for any number from 0 on.
        validation: dataset of `len` items, the same each time; None for none.
        batch_size: samples a batch in each process.
        num_workers: processes that prepare batches; 0: none but the training itself.
    Raises:
        ValueError: a size below 1, fewer than no workers, or no dataset.
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
        """Read one item of each dataset, so that a wrong folder shows before a training starts. Raises ValueError."""
        for dataset in (self.train, self.validation):
            if dataset is not None:
                if not len(dataset):
                    raise ValueError("got a dataset without items, expected at least one")
                if missing := [name for name in needs if name not in dataset[0]]:
                    raise ValueError(f"got samples without {missing[0]!r}, expected {', '.join(needs)}; see data")

    def example(self) -> dict[str, Tensor]:
        """The sample that pictures are made of: the same each time, held out where there is a validation."""
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
            generator=torch.Generator(),  # a loader draws a number when it starts: not one of the training's
        )

    def val_dataloader(self) -> DataLoader | list:
        if self.validation is None:
            return []
        # every process validates all of it: the same mean, whatever their number
        own = torch.Generator()
        return DataLoader(Numbered(self.validation), batch_size=1, num_workers=self.num_workers, generator=own)
