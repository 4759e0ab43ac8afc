from functools import partial

import pytest
import torch

from ldm.diffusion.denoiser import to_eps, to_x0
from ldm.diffusion.samplers import assert_finite, ddim_step, ddpm_step, intermediate_signal, lcm_step, tcd_step
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.spacing import spaced, timesteps_from_end
from ldm.streaming.pipeline import Each, stack
from ldm.streaming.steps import Steps, WindowPlaces, sample_clip

MEAN, DEVIATION = 0.7, 0.3


def stream(size):
    generator = torch.Generator().manual_seed(0)
    return lambda i: torch.randn(1, 1, size, generator=generator)


def exact(schedule):
    """E[x_0 | x_i] where x_0 ~ N(MEAN, DEVIATION^2)."""

    def denoise(x, i):
        a = schedule.abar[i].item()
        gain = DEVIATION**2 * a**0.5 / (a * DEVIATION**2 + 1 - a)
        return MEAN + gain * (x - a**0.5 * MEAN)

    return denoise


def never(i):
    raise AssertionError("no noise is needed")


def sample(denoise, x, schedule, *, noise, step=ddpm_step, guide=None, **options):
    """Sample x (1, 1, n) by the stages that methods use."""

    def window(frames, *, i):
        x = stack(frames, "x")
        return assert_finite(step(denoise(x, i), x, i, schedule, noise=noise, **options), i)

    def guided(frames, start, stop, *, i):
        return guide(stack(frames, "x"), i)[:, start:stop]

    return sample_clip(Steps(window, WindowPlaces(1), guide=guided if guide else None), x, len(schedule))


def with_gamma(schedule, gamma):
    return partial(tcd_step, between=intermediate_signal(schedule, Schedule.linear_sd(), gamma))


@pytest.mark.parametrize(
    ("step", "steps", "options"),
    [(ddpm_step, 1000, {}), (ddim_step, 200, {}), (ddim_step, 1000, {"eta": 1.0})],
)
def test_samplers_reproduce_a_gaussian(step, steps, options):
    schedule = Schedule.linear_sd().respaced(steps)
    noise = stream(20_000)
    start = schedule.abar[-1].item() ** 0.5 * MEAN + noise(0)
    drawn = sample(exact(schedule), start, schedule, noise=noise, step=step, **options)
    assert abs(drawn.mean() - MEAN) < 0.01 and abs(drawn.std() - DEVIATION) < 0.01


def test_ddim_without_eta_draws_nothing_and_with_eta_one_is_ddpm():
    schedule = Schedule.linear_sd().respaced(8)
    start = torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(3))
    sample(exact(schedule), start, schedule, noise=never, step=ddim_step)
    ancestral = sample(exact(schedule), start, schedule, noise=stream(50))
    implicit = sample(exact(schedule), start, schedule, noise=stream(50), step=ddim_step, eta=1.0)
    torch.testing.assert_close(ancestral, implicit, rtol=1e-4, atol=1e-5)


def test_lcm_draws_the_marginal_of_the_next_step_around_x0():
    schedule = Schedule.linear_sd().respaced(4)
    x0, x, noise = (torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(k)) for k in range(3))
    out = lcm_step(x0, x, 2, schedule, noise=lambda i: noise * (i == 2))
    torch.testing.assert_close(out, schedule.add_noise(x0, noise, 1))
    assert torch.equal(lcm_step(x0, x, 0, schedule, noise=never), x0)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.75, 1.0])
def test_tcd_goes_down_by_the_noise_of_x_and_up_by_fresh_noise(gamma):
    """Moments of x_{i-1} given x0 and x: those of both parts by hand; the step has the marginal of the next level."""
    full, times = Schedule.linear_sd(), timesteps_from_end(4)
    schedule = spaced(full, times, final_abar=1.0)
    x0, eps, noise = (
        torch.randn(20_000, generator=torch.Generator().manual_seed(k), dtype=torch.double) for k in (0, 1, 2)
    )
    out = with_gamma(schedule, gamma)(x0, schedule.add_noise(x0, eps, 3), 3, schedule, noise=lambda i: noise)
    middle, prev = full.abar[int((1 - gamma) * times[2])].item(), full.abar[times[2]].item()
    part = prev / middle
    by_hand = prev**0.5 * x0 + (part - prev) ** 0.5 * eps + (1 - part) ** 0.5 * noise
    torch.testing.assert_close(out, by_hand)
    assert abs((out - prev**0.5 * x0).var() / (1 - prev) - 1) < 0.03


def test_tcd_without_stochasticity_is_ddim_and_draws_nothing():
    schedule = spaced(Schedule.linear_sd(), timesteps_from_end(8), final_abar=1.0)
    x = torch.randn(1, 1, 50, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    calm = sample(exact(schedule), x, schedule, noise=never, step=with_gamma(schedule, 0.0))
    torch.testing.assert_close(calm, sample(exact(schedule), x, schedule, noise=never, step=ddim_step))


def test_tcd_with_full_stochasticity_is_nearly_lcm():
    """The intermediate time step is then 0, whose signal power is 0.99915."""
    schedule = spaced(Schedule.linear_sd(), timesteps_from_end(4), final_abar=1.0)
    x0, x, noise = (torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(k)) for k in range(3))
    tcd = with_gamma(schedule, 1.0)(x0, x, 3, schedule, noise=lambda i: noise)
    assert (tcd - lcm_step(x0, x, 3, schedule, noise=lambda i: noise)).abs().max() < 0.03 * to_eps(
        x0, x, schedule, 3
    ).abs().max()


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_an_impossible_stochasticity_is_refused(gamma):
    with pytest.raises(ValueError, match="got gamma"):
        intermediate_signal(Schedule.linear_sd().respaced(4), Schedule.linear_sd(), gamma)


@pytest.mark.parametrize("step", [ddpm_step, ddim_step, lcm_step, "tcd"])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_exact_network_gives_x0(step, kind, steps):
    schedule = Schedule.linear_sd().respaced(steps)
    step = with_gamma(schedule, 0.3) if step == "tcd" else step
    known = torch.randn(1, 1, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def denoise(x, i):
        a = schedule.abar[i].item()
        eps = (x - a**0.5 * known) / (1 - a) ** 0.5
        prediction = {"eps": eps, "x0": known, "v": a**0.5 * eps - (1 - a) ** 0.5 * known}[kind]
        return to_x0(prediction, x, schedule, i, kind)

    drawn = sample(denoise, torch.randn(1, 1, 40).double(), schedule, noise=stream(40), step=step)
    torch.testing.assert_close(drawn, known)


@pytest.mark.parametrize("refined", [False, True])
def test_a_step_is_denoise_refine_update_guide(refined):
    calls, names = [], ("denoise", "refine", "update", "guide") if refined else ("denoise", "guide")

    def note(name, i):
        calls.append((name, i))

    def denoise(frames, *, i):
        note("denoise", i)
        return stack(frames, "x") * 0

    def refine(i):
        def run(frame):
            note("refine", i)
            return frame.put(refined=frame["x0"] + 5)

        return Each(run)

    def update(frame, *, i):
        note("update", i)
        return frame.put(x=frame["refined"])

    def guide(frames, start, stop, *, i):
        note("guide", i)
        return stack(frames, "x")[:, start:stop] + (2 if i == 0 else 0)

    more = {"refine": refine, "update": update} if refined else {}
    out = sample_clip(Steps(denoise, WindowPlaces(1), guide=guide, **more), torch.zeros(1, 1, 4), 3)
    assert calls == [(name, i) for i in (2, 1, 0) for name in names]
    torch.testing.assert_close(out, torch.full((1, 1, 4), 7.0 if refined else 2.0))


def test_a_sample_with_nan_raises_an_error():
    schedule = Schedule.linear_sd().respaced(3)
    with pytest.raises(FloatingPointError, match="step 1"):
        sample(lambda x, i: x / (i - 1), torch.ones(1, 1, 4), schedule, noise=stream(4))
