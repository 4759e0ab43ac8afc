import pytest
import torch

from ldm.diffusion.classifier_free import guided, noise_label

POSITIVE, NEGATIVE = torch.ones(1, 2, 3), torch.full((1, 2, 3), -2.0)


class Network:
    """The clip plus the text's first number; counts its calls and rows."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, low, *, context, t):
        self.rows.append(len(x))
        return x * t + low.mean() + context[:, 0, 0].view(-1, 1, 1)


def test_both_halves_share_one_call():
    network = Network()
    run = guided(network, positive=POSITIVE, negative=NEGATIVE, scale=6)
    x, low = torch.randn(2, 4, 5), torch.zeros(2, 1)
    torch.testing.assert_close(run(x, low, t=3), 3 * x - 2 + 6 * 3)
    assert network.rows == [4]


@pytest.mark.parametrize("scale", [1, 0.5, 0])
def test_a_scale_of_one_costs_nothing(scale):
    network = Network()
    run = guided(network, positive=POSITIVE, negative=None, scale=scale)
    x = torch.randn(1, 4, 5)
    assert torch.equal(run(x, torch.zeros(1, 1), t=1), x + 1) and network.rows == [1]


def test_the_negative_half_is_in_front_and_clips_of_one_row_stay():
    def network(x, low, *, context):
        assert len(low) == 1 and context[:, 0, 0].tolist() == [-2, -2, 1, 1]
        return x

    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(guided(network, positive=POSITIVE, negative=NEGATIVE, scale=2)(x, torch.zeros(1)), x)


def test_guidance_is_computed_in_float32():
    x = torch.randn(1, 4, 5, dtype=torch.bfloat16)
    out = guided(lambda x, *, context: x, positive=POSITIVE, negative=NEGATIVE, scale=9)(x)
    assert out.dtype == torch.bfloat16 and torch.equal(out, x)


@pytest.mark.parametrize(("scale", "negative"), [(float("nan"), NEGATIVE), (float("inf"), NEGATIVE), (2, None)])
def test_what_makes_no_sense_is_refused(scale, negative):
    with pytest.raises(ValueError, match="got guidance scale"):
        guided(Network(), positive=POSITIVE, negative=negative, scale=scale)


def test_the_label_of_short_clips():
    assert noise_label(20, None, frames=30) == 20
    assert noise_label(20, 60, frames=8) == 60 and noise_label(20, 60, frames=8, released=True) == 20
    assert noise_label(20, 60, frames=9, released=True) == 60
