import math

import pytest
import torch

from ldm.nets.temporal import DilatedTemporalConv, TemporalConv, blend, conv_over_time


def by_conv3d(x, conv, num_frames):
    clips = x.unflatten(0, (-1, num_frames)).transpose(1, 2)  # (b, c, t, h, w)
    return conv(clips).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_conv_over_time_is_conv3d_and_has_its_gradients(num_frames, dilation):
    torch.manual_seed(0)
    padding, stretch = (dilation, 0, 0), (dilation, 1, 1)
    conv = torch.nn.Conv3d(8, 8, (3, 1, 1), padding=padding, dilation=stretch, dtype=torch.float64)
    x = torch.randn(2 * num_frames, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    ours, theirs = conv_over_time(x, conv, num_frames=num_frames), by_conv3d(x, conv, num_frames)
    assert torch.allclose(ours, theirs, atol=1e-12)
    probe, leaves = torch.randn_like(ours), [x, *conv.parameters()]
    pairs = zip(torch.autograd.grad(ours, leaves, probe), torch.autograd.grad(theirs, leaves, probe), strict=True)
    for a, b in pairs:
        assert torch.allclose(a, b, atol=1e-12)


def test_blend_is_exact_at_its_ends_and_linear_outside():
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(blend(x, y, torch.zeros(1)), x)
    assert torch.equal(blend(x, y, torch.ones(1)), y)
    assert torch.allclose(blend(x, y, torch.tensor([1.5])), 1.5 * y - 0.5 * x, atol=1e-6)


def test_the_initial_blend_is_the_documented_one():
    assert TemporalConv(4).temporal_alpha.tolist() == pytest.approx([0.1])
    assert TemporalConv(4, temporal_alpha=0.7).temporal_alpha.tolist() == pytest.approx([0.7])
    assert torch.sigmoid(DilatedTemporalConv(4).temporal_alpha).item() == pytest.approx(0.1, abs=1e-3)


def test_temporal_conv_blends_the_convolution_with_its_input():
    layer, x = TemporalConv(4, temporal_alpha=0.3), torch.randn(6, 4, 3, 2)
    expected = 0.3 * by_conv3d(x, layer.temporal_conv, 3) + 0.7 * x
    assert torch.allclose(layer(x, 3), expected, atol=1e-6)


def test_dilated_layer_sums_both_convolutions_and_blends_through_a_sigmoid():
    layer, x = DilatedTemporalConv(4, temporal_alpha=0.4), torch.randn(8, 4, 3, 2)
    s = 1 / (1 + math.exp(-0.4))
    y = by_conv3d(x, layer.temporal_conv1, 4) + by_conv3d(x, layer.temporal_conv2, 4)
    assert torch.allclose(layer(x, 4), s * y + (1 - s) * x, atol=1e-6)
    assert layer.temporal_conv2.dilation == (2, 1, 1)


def test_clips_are_independent():
    layer, x = TemporalConv(4, temporal_alpha=0.5), torch.randn(6, 4, 2, 2)
    assert torch.allclose(layer(x, 3)[3:], layer(x[3:], 3), atol=1e-6)


def test_an_incomplete_clip_is_refused():
    with pytest.raises(ValueError, match="got 5 frames, expected clips of num_frames=3"):
        TemporalConv(4)(torch.zeros(5, 4, 2, 2), 3)
