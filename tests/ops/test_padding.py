import pytest
import torch
import torch.nn.functional as F

from ldm.ops.padding import Padding, pad_to_multiple, released_pad, unpad

SIZES = [(1, 1), (2, 3), (5, 40), (31, 33), (64, 32)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_is_minimal_and_invertible(size, mode):
    x = torch.randn(2, 3, 4, *size)
    padded, padding = pad_to_multiple(x, 32, mode=mode)
    assert all(side % 32 == 0 and side - was < 32 for side, was in zip(padded.shape[-2:], size, strict=True))
    assert torch.equal(unpad(padded, padding), x)
    larger = padded.repeat_interleave(4, -1).repeat_interleave(4, -2)
    assert torch.equal(unpad(larger, padding, scale=4), x.repeat_interleave(4, -1).repeat_interleave(4, -2))


def test_reflection_equals_torch_and_repeats_beyond_its_limit():
    x = torch.randn(1, 3, 20, 27)
    assert torch.equal(pad_to_multiple(x, 32)[0], F.pad(x, (0, 5, 0, 12), mode="reflect"))
    row = torch.tensor([[1.0, 2.0, 3.0]])
    assert pad_to_multiple(row, 8)[0][0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2]


def test_released_padding_adds_a_full_multiple_to_a_side_that_fits():
    assert released_pad(torch.zeros(1, 512, 600))[1] == Padding(512, 600, 32, 8)
    assert released_pad(torch.zeros(1, 512, 608))[1] == Padding(512, 608, 0, 0)
    x = torch.randn(2, 3, 50, 64)
    padded, padding = released_pad(x)
    assert padded.shape == (2, 3, 64, 96) and torch.equal(padded, F.pad(x, (0, 32, 0, 14), mode="reflect"))
    assert torch.equal(unpad(padded, padding), x)


def test_unpad_requires_the_padded_size_in_integer_pixels():
    padding = Padding(30, 20, 2, 12)
    assert unpad(torch.zeros(1, 16, 16), padding, scale=0.5).shape == (1, 15, 10)
    for shape, scale in (((1, 30, 20), 1), ((1, 8, 8), 0.25)):
        with pytest.raises(ValueError, match="expected whole padded sides"):
            unpad(torch.zeros(shape), padding, scale=scale)
    with pytest.raises(ValueError, match="mode 'wrap'"):
        pad_to_multiple(torch.zeros(3, 3), 2, mode="wrap")
    with pytest.raises(ValueError, match="no empty side"):
        pad_to_multiple(torch.zeros(0, 3), 2)
