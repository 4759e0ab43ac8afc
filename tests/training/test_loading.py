"""Sample numbers of a training: distribution over processes and resuming."""

from itertools import islice

import pytest
import torch
from torch.utils.data import Dataset

from ldm.training.loading import Numbered, ResumableLoader, SampleNumbers, TrainingData


class Squares(Dataset):
    """Item i is i squared, for any i."""

    def __init__(self, count=4):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return {"gt": torch.tensor(number**2)}


def batches(sampler, count):
    numbers = list(islice(iter(sampler), count * sampler.batch_size))
    return [numbers[k : k + sampler.batch_size] for k in range(0, len(numbers), sampler.batch_size)]


def test_one_process_takes_consecutive_numbers():
    assert batches(SampleNumbers(batch_size=2), 3) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(("processes", "size"), [(2, 1), (3, 2)])
def test_processes_share_the_batches_of_one_process(processes, size):
    alone = batches(SampleNumbers(batch_size=size), 4 * processes)
    dealt = [batches(SampleNumbers(batch_size=size, rank=r, processes=processes), 4) for r in range(processes)]
    assert [list(batch) for step in zip(*dealt, strict=True) for batch in step] == alone


def loader(done=lambda: 3, size=2, processes=1):
    sampler = SampleNumbers(batch_size=size, processes=processes)
    return ResumableLoader(Numbered(Squares()), done=done, sampler=sampler, batch_size=size)


def test_a_loader_resumes_after_the_trained_batches():
    trained = []
    first = loader(done=lambda: len(trained))
    prefetched = [batch["index"].tolist() for batch in islice(iter(first), 5)]
    trained += prefetched[:3]
    assert next(iter(first))["index"].tolist() == [6, 7], "a new epoch continues the numbers"
    second = loader(done=lambda: 0)
    second.load_state_dict(first.state_dict())
    batch = next(iter(second))
    assert batch["index"].tolist() == [6, 7] == prefetched[3] and batch["gt"].tolist() == [36, 49]


@pytest.mark.parametrize(("size", "processes"), [(1, 1), (2, 2)])
def test_another_batch_size_is_refused(size, processes):
    with pytest.raises(ValueError, match="the resumed run had 2; keep batch_size"):
        loader(size=size, processes=processes).load_state_dict(loader().state_dict())


def test_items_have_their_number():
    item = Numbered(Squares())[9]
    assert item["index"] == 9 and item["index"].dtype == torch.int64 and item["gt"] == 81
    assert len(Numbered(Squares(7))) == 7


def test_the_example_is_from_the_validation_set_if_there_is_one():
    assert TrainingData(Squares()).example()["gt"] == 0
    assert TrainingData(Squares(), validation=Squares(1)).example().keys() == {"gt", "index"}
    assert TrainingData(Squares()).val_dataloader() == []
    held_out = TrainingData(Squares(), validation=Squares(3), num_workers=0).val_dataloader()
    assert [batch["index"].item() for batch in held_out] == [0, 1, 2]


def test_invalid_data_is_refused():
    for settings in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match="expected at least 1 and 0"):
            TrainingData(Squares(), **settings)
    with pytest.raises(ValueError, match="got 3 for a dataset"):
        TrainingData(Squares(), validation=3)
    with pytest.raises(ValueError, match="without items"):
        TrainingData(Squares(0)).check(["gt"])
    with pytest.raises(ValueError, match="samples without 'lq', expected gt, lq"):
        TrainingData(Squares()).check(["gt", "lq"])
    TrainingData(Squares(), validation=Squares()).check(["gt"])
