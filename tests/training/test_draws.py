"""Random numbers of a sample depend only on its number, the seed and the purpose."""

import pytest
import torch

from ldm.training.draws import SampleDraws


def normal(index, seed=7, purpose="noise", frames=3):
    return SampleDraws(seed).normal(purpose, torch.tensor(index), torch.empty(len(index) * frames, 4, 5, 6))


def below(index, seed=7, purpose="t", count=4, limit=1000):
    return SampleDraws(seed).below(limit, purpose, torch.tensor(index), count=count)


def test_draws_do_not_depend_on_batch_or_order():
    together, alone = normal([0, 5, 2]), [normal([n]) for n in (0, 5, 2)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(below([9, 3]), torch.cat([below([9]), below([3])]))


def test_draws_depend_on_number_seed_and_purpose():
    draws = [normal([4]), normal([5]), normal([4], seed=8), normal([4], seed=7 + 2**32), normal([4], purpose="x")]
    assert all(not torch.equal(a, b) for k, a in enumerate(draws) for b in draws[:k])
    numbers = [below([4]), below([5]), below([4], seed=8), below([4], seed=7 + 2**32), below([4], purpose="x")]
    assert all(not torch.equal(a, b) for k, a in enumerate(numbers) for b in numbers[:k])
    first, second = normal([4], frames=2).chunk(2)
    assert not torch.equal(first, second), "frames have different noise"


def test_draws_are_normal_and_uniform():
    x = normal(list(range(64)), frames=2)
    assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.02
    t = below(list(range(2000)), count=2, limit=10)
    assert t.min() == 0 and t.max() == 9 and torch.bincount(t).min() > 320 and t.dtype == torch.int64


def test_draws_have_the_dtype_and_shape_of_the_reference():
    like = torch.empty(2, 3, dtype=torch.bfloat16)
    drawn = SampleDraws(0).normal("a", torch.tensor([1]), like)
    assert drawn.dtype == torch.bfloat16 and drawn.shape == like.shape
    state = torch.get_rng_state()
    normal([3])
    assert torch.equal(state, torch.get_rng_state()), "the global generator of torch is not used"


def test_rows_must_divide_among_samples():
    for rows, samples in ((3, 2), (2, 0)):
        with pytest.raises(ValueError, match=f"got {rows} rows for {samples} samples"):
            SampleDraws(0).normal("a", torch.zeros(samples, dtype=torch.int64), torch.empty(rows, 1))
