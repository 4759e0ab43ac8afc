import pytest
import torch

from ldm.diffusion.schedule import Schedule, make_betas
from ldm.diffusion.spacing import choose_timesteps, released_timesteps, spaced, timesteps_from_end

FULL = Schedule.from_betas(make_betas("linear", 1000, start=1e-4, end=2e-2))


@pytest.mark.parametrize(("count", "start"), [(30, 958), (20, 951), (8, 876), (4, 751), (2, 501), (1, 1)])
def test_released_steps_start_ever_later(count, start):
    steps = released_timesteps(count)
    assert len(steps) == count and steps[0] == 1 and steps[-1] == start


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 15, 30, 999, 1000])
def test_steps_from_the_end_start_at_the_noisiest(count):
    steps = timesteps_from_end(count)
    assert len(set(steps)) == count and steps == sorted(steps) and steps[-1] == 999 and steps[0] >= 0
    assert timesteps_from_end(4) == [249, 499, 749, 999]


def test_auto_starts_from_noise_whatever_the_count():
    for count in range(1, 1001):
        signal = FULL.abar[choose_timesteps(count)[-1]].sqrt().item()
        assert signal < 0.085, count
    assert choose_timesteps(30) == released_timesteps(30) and choose_timesteps(15) == released_timesteps(15)
    assert choose_timesteps(8) == timesteps_from_end(8)
    assert choose_timesteps(8, spacing="released") == released_timesteps(8)


@pytest.mark.parametrize("count", [0, -3, 1001, 2.0, True, "30"])
def test_nonsense_numbers_of_steps_are_refused(count):
    for choose in (released_timesteps, timesteps_from_end, choose_timesteps):
        with pytest.raises(ValueError, match="sampling steps, expected a whole number from 1 to 1000"):
            choose(count)


def test_a_released_step_behind_the_table_is_refused():
    with pytest.raises(ValueError, match="lead to time step 1000 of 0 to 999"):
        released_timesteps(1000)
    assert choose_timesteps(1000)[-1] == 999
    with pytest.raises(ValueError, match="got spacing 'leading'"):
        choose_timesteps(10, spacing="leading")


def test_a_spaced_schedule_leads_to_the_first_step_of_the_table():
    steps = spaced(FULL, [1, 501])
    assert torch.equal(steps.t, torch.tensor([1, 501]))
    assert torch.equal(steps.abar, FULL.abar[[1, 501]])
    assert torch.equal(steps.abar_prev, FULL.abar[[0, 1]])
    assert spaced(FULL, [1, 501], final_abar=1.0).abar_prev[0] == 1
    for wrong in ([], [5, 3], [3, 3], [-1, 4], [4, 1000]):
        with pytest.raises(ValueError, match="expected rising numbers"):
            spaced(FULL, wrong)
