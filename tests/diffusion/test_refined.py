import pytest
import torch

from ldm.diffusion.denoiser import target
from ldm.diffusion.refined import clean_and_noise, refined_step, refined_steps, sample_refined
from ldm.diffusion.samplers import ddim_step
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.diffusion.spacing import spaced, timesteps_from_end

FULL = Schedule.from_betas(make_betas("linear", 1000, start=1e-4, end=2e-2))
STEPS = spaced(FULL, timesteps_from_end(6))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
def test_a_true_prediction_gives_sample_and_noise_back(kind):
    clean, noise = torch.randn(2, 50)
    for i in range(len(STEPS)):
        x = STEPS.add_noise(clean, noise, i)
        x0, eps = clean_and_noise(target(kind, clean, noise, STEPS, i), x, STEPS, i, kind=kind)
        tolerance = {"rtol": 0, "atol": 1e-3}  # x0 of eps at the noisiest step divides by 0.07
        torch.testing.assert_close(x0, clean, **tolerance)
        torch.testing.assert_close(eps, noise, **tolerance)


def test_without_refinement_a_step_is_ddim():
    x, v = torch.randn(2, 50)
    for i in range(len(STEPS)):
        x0, eps = clean_and_noise(v, x, STEPS, i)
        expected = ddim_step(x0, x, i, STEPS, noise=None)
        torch.testing.assert_close(refined_step(x0, eps, STEPS, i), expected, rtol=1e-4, atol=1e-4)


def test_the_noise_is_that_of_the_unrefined_sample():
    x, v = torch.randn(2, 50)
    x0, eps = clean_and_noise(v, x, STEPS, 3)
    prev = STEPS.abar_prev[3].item()
    shift = refined_step(x0 + 1, eps, STEPS, 3) - refined_step(x0, eps, STEPS, 3)
    torch.testing.assert_close(shift, torch.full_like(shift, prev**0.5), rtol=1e-5, atol=1e-5)


def test_clipping_leaves_the_noise():
    x, v = torch.randn(2, 50) * 3
    x0, eps = clean_and_noise(v, x, STEPS, 2, clip=True)
    assert x0.abs().max() == 1
    assert torch.equal(eps, clean_and_noise(v, x, STEPS, 2)[1])


def test_refinement_acts_at_its_steps_alone():
    seen, log = [], []

    def refine(x0):
        seen.append(x0)
        return 0 * x0

    def on_step(i, found):
        log.append((i, found["refined"].any().item()))

    at = refined_steps([1, 4], 6)
    assert at == {4, 1}
    out = sample_refined(lambda x, t: 0.1 * x, torch.randn(20), STEPS, refine=refine, refine_at=at, on_step=on_step)
    assert len(seen) == 2 and out.isfinite().all()
    assert log == [(5, True), (4, False), (3, True), (2, True), (1, False), (0, True)]


def test_the_network_is_told_its_time_steps():
    told = []
    sample_refined(lambda x, t: told.append(t) or x, torch.randn(3), STEPS)
    assert told == STEPS.t.flip(0).tolist()


@pytest.mark.parametrize("numbers", [[6], [-1], [0, 24]])
def test_steps_that_are_not_there_are_refused(numbers):
    with pytest.raises(ValueError, match="got propagation steps .*expected numbers from 0 to 5"):
        refined_steps(numbers, 6)


def test_a_step_that_is_not_finite_is_named():
    with pytest.raises(FloatingPointError, match="after step 5"):
        sample_refined(lambda x, t: x / 0, torch.randn(3), STEPS)
