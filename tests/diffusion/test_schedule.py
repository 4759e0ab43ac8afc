import math

import numpy as np
import pytest
import torch

from ldm.diffusion.schedule import Schedule, make_betas, space_timesteps

X0, NOISE = torch.randn(2, 2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("i", [0, 499, 999])
def test_removing_the_noise_gives_x0(i):
    schedule = Schedule.linear_sd()
    x, a = schedule.add_noise(X0, NOISE, i), schedule.abar[i].item()
    torch.testing.assert_close((x - (1 - a) ** 0.5 * NOISE) / a**0.5, X0, rtol=1e-4, atol=1e-4)


def test_every_array_is_float64_and_follows_from_abar():
    schedule = Schedule.linear_sd().respaced(37)
    assert {schedule.abar.dtype, schedule.coef1.dtype, schedule.variance.dtype} == {torch.float64}
    torch.testing.assert_close((1 - schedule.betas).cumprod(0), schedule.abar)
    assert schedule.abar_prev[0] == 1 and torch.equal(schedule.abar_prev[1:], schedule.abar[:-1])
    assert schedule.variance[0] == 0 and schedule.log_variance[0].item() == pytest.approx(math.log(1e-20))
    torch.testing.assert_close(schedule.log_variance[1:].exp(), schedule.variance[1:])


@pytest.mark.parametrize("arithmetic", ["float64", "released"])
@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1000])
def test_respacing_keeps_the_signal_power(steps, arithmetic):
    full = Schedule.linear_sd()
    short = full.respaced(steps, arithmetic=arithmetic)
    assert len(short) == steps and short.t[-1] == 999 and (steps == 1 or short.t[0] == 0)
    limit = 1e-12 if arithmetic == "float64" else 1e-4
    torch.testing.assert_close(short.abar, full.abar[short.t], rtol=limit, atol=0)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_last_step_lands_on_x0(steps):
    mean, variance, _ = Schedule.linear_sd().respaced(steps).posterior(X0, NOISE, 0)
    torch.testing.assert_close(mean, X0)
    assert variance == 0


def test_the_posterior_is_the_product_of_its_two_gaussians():
    schedule, i = Schedule.linear_sd().respaced(10), 4
    mean, variance, _ = schedule.posterior(X0.double(), NOISE.double(), i)
    prev, beta = schedule.abar_prev[i].item(), schedule.betas[i].item()
    # x_{i-1} given x_0, times x_i given x_{i-1}: precisions add up
    precision = 1 / (1 - prev) + (1 - beta) / beta
    expected = (prev**0.5 * X0.double() / (1 - prev) + (1 - beta) ** 0.5 * NOISE.double() / beta) / precision
    torch.testing.assert_close(mean, expected)
    assert variance == pytest.approx(1 / precision)


def test_steps_may_differ_per_frame():
    schedule = Schedule.linear_sd()
    i = torch.tensor([[0, 10, 999], [5, 5, 500]])
    together = schedule.add_noise(X0, NOISE, i)
    assert together.dtype == torch.float32
    for b, t in np.ndindex(2, 3):
        alone = schedule.add_noise(X0[b, t], NOISE[b, t], i[b, t].item())
        torch.testing.assert_close(together[b, t], alone)
    with pytest.raises(ValueError, match="leading shape"):
        schedule.velocity(X0, NOISE, torch.tensor([0, 1, 2]))


def test_respacing_twice_keeps_the_original_time_steps():
    twice = Schedule.linear_sd().respaced(100).respaced("ddim10")
    assert twice.t.tolist() == [Schedule.linear_sd().respaced(100).t[k] for k in range(0, 100, 10)]


def test_released_arithmetic_is_close_but_different():
    full = Schedule.linear_sd()
    difference = (full.respaced(1000, arithmetic="released").betas - full.betas).abs().max()
    assert 1e-9 < difference < 2e-7


@pytest.mark.parametrize("sections", ["ddim999", [11, 1], 1001, 0])
def test_impossible_sections_are_refused(sections):
    with pytest.raises(ValueError, match="expected|stride"):
        space_timesteps(20 if sections == [11, 1] else 1000, sections)


def test_sections_are_spread_apart():
    assert space_timesteps(10, [2, 5]) == [0, 4, 5, 6, 7, 8, 9]
    assert space_timesteps(10, "2,5") == [0, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", ["linear", "sqrt_linear", "sqrt", "cosine"])
def test_betas_grow_inside_the_unit_interval(name):
    betas = make_betas(name, 64)
    assert betas.dtype == torch.float64 and betas.shape == (64,)
    assert (betas.diff() >= 0).all() and betas[0] > 0 and betas[-1] <= 0.999


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_bound_weights_are_finite(kind):
    for steps in (1, 2, 50):
        weights = Schedule.linear_sd().respaced(steps).lvlb_weights(kind)
        assert weights.shape == (steps,) and torch.isfinite(weights).all()
    x = Schedule.linear_sd()
    i, beta, abar = 500, x.betas[500], x.abar[500]
    assert x.lvlb_weights("eps")[i].item() == pytest.approx(
        (beta**2 / (2 * x.variance[i] * (1 - beta) * (1 - abar))).item(), rel=1e-5
    )


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="wavy"):
        make_betas("wavy", 10)
    with pytest.raises(ValueError, match="half"):
        Schedule.linear_sd().respaced(10, arithmetic="half")
    with pytest.raises(ValueError, match="score"):
        Schedule.linear_sd().lvlb_weights("score")
