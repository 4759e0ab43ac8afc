"""Losses compared with closed forms for ramps, shifts and Gaussians."""

import math

import pytest
import torch

from ldm.training.losses import (
    GradientDistance,
    adversarial,
    check_finite,
    frame_changes,
    frame_difference_l1,
    gradient_distances,
    gradient_l1,
    hinge_discriminator,
    kl_to_normal,
)


def clips(*shape):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (2, 4, 3, 16, 20)])
def test_gradient_loss_ignores_brightness(shape):
    a, b = clips(*shape)
    assert gradient_l1(a, a) == 0
    assert gradient_l1(a + 0.7, a).item() == pytest.approx(0, abs=1e-5)
    assert gradient_l1(a, b).item() == pytest.approx(gradient_l1(b, a).item())


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_gradient_loss_of_a_ramp_sums_its_slope_over_octaves(scales):
    """Averaging by two doubles the difference between neighbouring pixels."""
    ramp = 0.25 * torch.arange(32.0).expand(1, 3, 32, 32)
    expected = 0.25 * sum(2**k for k in range(scales)) / scales
    assert gradient_l1(ramp, torch.zeros_like(ramp), scales=scales).item() == pytest.approx(expected)
    assert gradient_l1(ramp.mT, torch.zeros_like(ramp), scales=scales).item() == pytest.approx(expected)


def test_gradient_distance_is_per_image():
    a, b = clips(5, 3, 16, 20)
    distances = GradientDistance()(a, b)
    assert distances.shape == (5, 1, 1, 1) and distances.mean().item() == pytest.approx(gradient_l1(a, b).item())
    alone = [gradient_l1(a[k : k + 1], b[k : k + 1]).item() for k in range(5)]
    assert distances.flatten().tolist() == pytest.approx(alone) and len(set(alone)) == 5
    assert torch.equal(GradientDistance(scales=1)(a, b).flatten(), gradient_distances(a, b, scales=1))


def test_frame_changes_are_differences_of_neighbours():
    clip = torch.arange(2.0 * 4).view(2, 4, 1, 1, 1) ** 2
    assert frame_changes(clip).flatten().tolist() == [-1, -3, -5, -9, -11, -13]


def test_frame_differences_ignore_a_constant_error():
    a, b = clips(2, 4, 3, 8, 8)
    still = torch.randn(2, 1, 3, 8, 8)
    assert frame_difference_l1(a + still, a).item() == pytest.approx(0, abs=1e-6)
    flicker = torch.tensor([0.0, 0.5, 0.0, 0.5]).view(1, 4, 1, 1, 1)
    assert frame_difference_l1(a + flicker, a).item() == pytest.approx(0.5, rel=1e-5)
    by_definition = ((a[:, :-1] - a[:, 1:]) - (b[:, :-1] - b[:, 1:])).abs().mean()
    assert frame_difference_l1(a, b).item() == pytest.approx(by_definition.item())
    assert frame_difference_l1(a[:, :1], b[:, :1]) == 0


def test_frame_differences_do_not_mix_clips():
    a, b = clips(2, 3, 3, 8, 8)
    alone = [frame_difference_l1(a[k : k + 1], b[k : k + 1]).item() for k in range(2)]
    assert frame_difference_l1(a, b).item() == pytest.approx(sum(alone) / 2)


def test_kl_to_normal():
    zero = torch.zeros(2, 4, 3, 3)
    assert kl_to_normal(zero, zero) == 0
    assert kl_to_normal(zero + 2, zero).item() == pytest.approx(2)  # mean^2 / 2
    assert kl_to_normal(zero, zero + math.log(4)).item() == pytest.approx((4 - 1 - math.log(4)) / 2)
    mean, logvar = clips(2, 4, 3, 3)
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), normal(0.0, 1.0)).mean()
    assert kl_to_normal(mean, logvar).item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_hinge_loss_is_zero_beyond_its_margin():
    ones = torch.ones(2, 1, 4, 4)
    assert hinge_discriminator(ones, -ones) == 0 == hinge_discriminator(5 * ones, -9 * ones)
    assert hinge_discriminator(-ones, ones) == 2
    assert hinge_discriminator(0 * ones, 0 * ones) == 1
    assert adversarial(3 * ones) == -3


def test_generator_and_discriminator_gradients_have_opposite_signs():
    fake = torch.zeros(4, requires_grad=True)
    (up,) = torch.autograd.grad(adversarial(fake), fake)
    (down,) = torch.autograd.grad(hinge_discriminator(torch.zeros(4), fake), fake)
    assert (up < 0).all() and (down > 0).all()


@pytest.mark.parametrize("loss", [gradient_l1, frame_difference_l1, kl_to_normal, hinge_discriminator])
def test_half_precision_is_summed_in_float32(loss):
    a, b = (x.bfloat16() for x in clips(2, 3, 3, 16, 16))
    assert loss(a, b).dtype == torch.float32
    assert loss(a, b).item() == pytest.approx(loss(a.float(), b.float()).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [gradient_l1, frame_difference_l1])
def test_gradients_equal_finite_differences(loss):
    a, b = (x.double() for x in clips(1, 2, 3, 8, 8))
    a.requires_grad_()
    (slope,) = torch.autograd.grad(loss(a, b), a)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        step = (loss(a + 1e-2 * direction, b) - loss(a - 1e-2 * direction, b)) / 2e-2
    assert (slope * direction).sum().item() == pytest.approx(step.item(), rel=0.05, abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_names_term_and_step(value):
    with pytest.raises(FloatingPointError, match="gradient loss of .* at step 17"):
        check_finite(torch.tensor(value), "gradient", 17)
    fine = torch.tensor(2.0)
    assert check_finite(fine, "gradient", 17) is fine
