import torch

from ldm.training.curves import StepMeans


def test_a_term_is_averaged_over_the_batches_that_have_it():
    means = StepMeans()
    rising = torch.tensor(1.0, requires_grad=True)
    for k in range(3):
        means.add({"a": k * rising, **({"b": torch.tensor(4.0)} if k else {})})
    first = means.flush()
    assert {k: v.item() for k, v in first.items()} == {"train/a": 1.0, "train/b": 4.0}
    assert not first["train/a"].requires_grad
    assert means.flush() == {}
    means.add({"a": torch.tensor(7.0, dtype=torch.bfloat16)})
    assert means.flush()["train/a"].dtype == torch.float32


def test_added_values_are_copied():
    means, value = StepMeans(), torch.tensor(1.0)
    means.add({"a": value})
    value += 10
    assert means.flush()["train/a"] == 1
