import pytest
import torch
from torch.nn import functional as F

from ldm.nets.perceptual import LPIPS


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = LPIPS(width=4)
    for k in range(5):
        getattr(net, f"lin{k}").model[1].weight.data.abs_()  # trained heads are not negative
    return net.eval()


def features(net, x):
    """VGG16 by layer numbers."""
    weights = net.state_dict()
    x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    for block, numbers in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)], start=1):
        if block > 1:
            x = F.max_pool2d(x, 2)
        for n in numbers:
            name = f"net.slice{block}.{n}"
            x = F.relu(F.conv2d(x, weights[name + ".weight"], weights[name + ".bias"], padding=1))
        yield x


@torch.no_grad()
def test_equals_the_formula(net):
    a, b = torch.rand(2, 2, 3, 32, 16) * 2 - 1
    expected = torch.zeros(2)
    for k, (fa, fb) in enumerate(zip(features(net, a), features(net, b), strict=True)):
        fa, fb = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (fa, fb))
        head = net.state_dict()[f"lin{k}.model.1.weight"][0, :, 0, 0]
        expected += torch.einsum("nchw,c->nhw", (fa - fb) ** 2, head).mean(dim=(1, 2))
    actual = net(a, b)
    assert actual.shape == (2, 1, 1, 1)
    torch.testing.assert_close(actual.flatten(), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_is_a_distance_and_symmetric(net):
    a, b = torch.rand(2, 1, 3, 16, 16)
    assert net(a, a).item() == 0
    assert net(a, b).item() > 0
    torch.testing.assert_close(net(a, b), net(b, a))


@torch.no_grad()
def test_dropout_acts_only_in_train_mode(net):
    a, b = torch.rand(2, 1, 3, 16, 16)
    reference = net(a, b)
    torch.manual_seed(1)
    assert not torch.equal(net.train()(a, b), reference)
    assert torch.equal(net.eval()(a, b), reference)


def test_random_heads_are_told_from_trained_ones(net):
    assert net.heads_trained() and not LPIPS(width=4).heads_trained()


def test_parameters_are_frozen_and_the_image_gradient_is_finite(net):
    assert not any(p.requires_grad for p in net.parameters())
    for k in (0, 2):
        getattr(net.net.slice1, str(k)).bias.data.fill_(-100)  # every feature is zero: the norm has no gradient there
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    net(image, torch.rand(1, 3, 16, 16)).sum().backward()
    assert image.grad.isfinite().all()


def test_gradient_reaches_the_image(net):
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    net(image, torch.rand(1, 3, 16, 16)).sum().backward()
    assert image.grad.abs().max() > 0
