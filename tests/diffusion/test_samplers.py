import pytest
import torch

from ldm.diffusion.denoiser import make_denoise
from ldm.diffusion.samplers import sample_ddim, sample_ddpm
from ldm.diffusion.schedule import Schedule

MEAN, DEVIATION = 0.7, 0.3


def stream(size):
    generator = torch.Generator().manual_seed(0)
    return lambda i: torch.randn(size, generator=generator)


def exact(schedule):
    """E[x_0 | x_i] where x_0 ~ N(MEAN, DEVIATION^2)."""

    def denoise(x, i):
        a = schedule.abar[i].item()
        gain = DEVIATION**2 * a**0.5 / (a * DEVIATION**2 + 1 - a)
        return MEAN + gain * (x - a**0.5 * MEAN)

    return denoise


def never(i):
    raise AssertionError("no noise is needed")


@pytest.mark.parametrize(
    ("sampler", "steps", "options"),
    [(sample_ddpm, 1000, {}), (sample_ddim, 200, {}), (sample_ddim, 1000, {"eta": 1.0})],
)
def test_the_gaussian_comes_back(sampler, steps, options):
    schedule = Schedule.linear_sd().respaced(steps)
    noise = stream(20_000)
    start = schedule.abar[-1].item() ** 0.5 * MEAN + noise(0)
    sample = sampler(exact(schedule), start, schedule, noise=noise, **options)
    assert abs(sample.mean() - MEAN) < 0.01 and abs(sample.std() - DEVIATION) < 0.01


def test_ddim_without_eta_draws_nothing_and_with_eta_one_is_ddpm():
    schedule = Schedule.linear_sd().respaced(8)
    start = torch.randn(50, generator=torch.Generator().manual_seed(3))
    sample_ddim(exact(schedule), start, schedule, noise=never)
    ancestral = sample_ddpm(exact(schedule), start, schedule, noise=stream(50))
    implicit = sample_ddim(exact(schedule), start, schedule, noise=stream(50), eta=1.0)
    torch.testing.assert_close(ancestral, implicit, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_network_that_knows_x0_is_believed(sampler, kind, steps):
    schedule = Schedule.linear_sd().respaced(steps)
    known = torch.randn(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def predict(x, t):
        i = schedule.t.tolist().index(t)
        a = schedule.abar[i].item()
        eps = (x - a**0.5 * known) / (1 - a) ** 0.5
        return {"eps": eps, "x0": known, "v": a**0.5 * eps - (1 - a) ** 0.5 * known}[kind]

    denoise = make_denoise(predict, schedule, kind=kind)
    torch.testing.assert_close(sampler(denoise, torch.randn(40).double(), schedule, noise=stream(40)), known)


def test_hooks_act_in_order_at_every_step():
    schedule, calls, done = Schedule.linear_sd().respaced(3), [], []

    def note(name):
        def hook(x, i):
            calls.append((name, i))
            return x

        return hook

    def noise(i):
        calls.append(("noise", i))
        return torch.zeros(2)

    sample_ddpm(
        note("denoise"),
        torch.zeros(2),
        schedule,
        noise=noise,
        refine_x0=note("refine"),
        guide=note("guide"),
        on_step=lambda k, total: done.append((k, total)),
    )
    assert calls == [(name, i) for i in (2, 1, 0) for name in ("denoise", "refine", "noise", "guide")]
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_what_the_hooks_return_is_used():
    schedule = Schedule.linear_sd().respaced(3)
    options = {"noise": stream(4), "refine_x0": lambda x0, i: x0 + 5, "guide": lambda x, i: x if i else x + 2}
    out = sample_ddpm(lambda x, i: 0 * x, torch.zeros(4), schedule, **options)
    torch.testing.assert_close(out, torch.full((4,), 7.0))


def test_a_sample_that_is_no_number_stops_the_run():
    schedule = Schedule.linear_sd().respaced(3)
    with pytest.raises(FloatingPointError, match="step 1"):
        sample_ddpm(lambda x, i: x / (i - 1), torch.ones(4), schedule, noise=stream(4))
    with pytest.raises(ValueError, match="eta"):
        sample_ddim(lambda x, i: x, torch.ones(4), schedule, noise=stream(4), eta=2)
