"""Samplers of several steps, against the exact solution for a Gaussian and against quadrature."""

import pytest
import torch

from ldm.diffusion.multistep import HISTORY, dpmpp_2m, log_snr, unipc
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.spacing import spaced, timesteps_from_end
from ldm.streaming.pipeline import stack
from ldm.streaming.steps import Steps, WindowPlaces, sample_clip

MEAN, DEVIATION = 0.7, 0.3


def even_in_lambda(steps, *, first=-3.0, last=3.0):
    """A schedule whose steps have the same size in lambda, down to `last`."""
    levels = torch.sigmoid(2 * torch.linspace(last, first, steps + 1, dtype=torch.float64))
    return Schedule.from_signal(levels[1:], levels[:-1], t=torch.arange(steps))


def clean_of_gaussian(x, abar):
    """E[x_0 | x] where x_0 ~ N(MEAN, DEVIATION^2)."""
    return MEAN + DEVIATION**2 * abar**0.5 / (abar * DEVIATION**2 + 1 - abar) * (x - abar**0.5 * MEAN)


def flowed(x, abar, end):
    """The exact solution of the probability-flow ODE of that Gaussian, from level abar to level end."""
    spread = [(a * DEVIATION**2 + 1 - a) ** 0.5 for a in (abar, end)]
    return end**0.5 * MEAN + spread[1] / spread[0] * (x - abar**0.5 * MEAN)


def sample(sampler, x, schedule, *, clean=clean_of_gaussian, guide=None):
    """Sample x (1, T, n) by the stages that methods use: windows of clean samples, then an update of each frame."""

    def predict(frames, *, i):
        return clean(stack(frames, "x"), schedule.abar[i].item())

    def update(frame, *, i):
        return frame.without("x0", *HISTORY).put(**sampler(frame.values, i, schedule))

    steps = Steps(predict, WindowPlaces(1), refine=lambda i: None, update=update, guide=guide, reach=0)
    return sample_clip(steps, x, len(schedule))


def ddim(values, i, schedule):
    """The same loop without memory."""
    return dpmpp_2m({key: values[key] for key in ("x", "x0")}, i, schedule)


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpmpp_2m, 2), (unipc, 3)])
def test_the_error_falls_with_the_order(sampler, order):
    x, errors = torch.linspace(-2, 2, 9, dtype=torch.double)[None, None], []
    for steps in (40, 80, 160):
        schedule = even_in_lambda(steps)
        exact = flowed(x, schedule.abar[-1].item(), schedule.abar_prev[0].item())
        errors.append((sample(sampler, x, schedule) - exact).abs().max().item())
    rates = [torch.tensor(a / b).log2().item() for a, b in zip(errors, errors[1:], strict=False)]
    assert all(abs(rate - order) < 0.25 for rate in rates), (errors, rates)


@pytest.mark.parametrize("sampler", [dpmpp_2m, unipc])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_an_exact_network_gives_x0(sampler, steps):
    schedule = spaced(Schedule.linear_sd(), timesteps_from_end(steps), final_abar=1.0)
    known = torch.randn(1, 2, 40, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    out = sample(sampler, torch.randn(1, 2, 40).double(), schedule, clean=lambda x, abar: known[:, : x.shape[1]])
    torch.testing.assert_close(out, known[:, :1].expand_as(out))


def integral(schedule, i, polynomial, count=200_000):
    """alpha h * integral of exp(h (u - 1)) polynomial(lambda) du over the step from i to i-1, by the midpoint rule."""
    start, end = log_snr(schedule.abar[i].item()), log_snr(schedule.abar_prev[i].item())
    h, u = end - start, (torch.arange(count, dtype=torch.double) + 0.5) / count
    return schedule.abar_prev[i].item() ** 0.5 * h * (torch.exp(h * (u - 1)) * polynomial(start + h * u)).mean()


def test_a_corrected_step_integrates_the_parabola_through_three_clean_samples():
    """unipc's x before its prediction: (sigma_t / sigma_s) x_s + the integral, whatever is between (equation 3.1)."""
    levels = torch.sigmoid(2 * torch.tensor([1.5, 0.4, -0.3, -1.7], dtype=torch.double))
    schedule = Schedule.from_signal(levels[1:], levels[:-1], t=torch.arange(3))
    lambdas = [log_snr(a) for a in schedule.abar.tolist()]

    def parabola(lam):
        return 0.4 - 0.3 * lam + 0.2 * lam**2

    x0 = [torch.full((1, 1), parabola(lam), dtype=torch.double) for lam in lambdas]
    x_1 = torch.full((1, 1), 0.9, dtype=torch.double)
    sigma = [(1 - a) ** 0.5 for a in schedule.abar.tolist()]
    predicted = dpmpp_2m({"x": x_1, "x0": x0[1], "x0_before": x0[2]}, 1, schedule)["x"]
    values = {"x": predicted, "x0": x0[0], "x0_before": x0[1], "x0_earlier": x0[2]}
    corrected = sigma[0] / sigma[1] * x_1 + integral(schedule, 1, parabola)
    after = dpmpp_2m({"x": corrected, "x0": x0[0], "x0_before": x0[1]}, 0, schedule)["x"]
    torch.testing.assert_close(unipc(values, 0, schedule)["x"], after, rtol=1e-8, atol=1e-8)


def test_guidance_between_steps_is_kept_by_the_correction():
    """A constant that is added to x_i stays in it, since only the difference of two integrals is added."""
    schedule = even_in_lambda(6)
    x, x0, before, push = (torch.tensor([[value]], dtype=torch.double) for value in (0.3, 0.5, 0.2, 0.1))
    plain, pushed = (
        unipc({"x": value, "x0": x0, "x0_before": before, "x0_earlier": before}, 2, schedule)["x"]
        for value in (x, x + push)
    )
    ratio = ((1 - schedule.abar_prev[2]) / (1 - schedule.abar[2])).sqrt()
    torch.testing.assert_close(pushed - plain, ratio * push)
