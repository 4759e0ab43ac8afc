import pytest
import torch

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.scheduler import Scheduler

UPSCALER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}


def test_keys_that_a_file_leaves_out_have_the_values_of_diffusers():
    scheduler = Scheduler.from_config({})
    assert (scheduler.kind, scheduler.variance, scheduler.spacing) == ("eps", "fixed_small", "leading")
    assert (scheduler.offset, scheduler.clip, len(scheduler.training)) == (0, 1.0, 1000)
    torch.testing.assert_close(scheduler.training.betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def test_given_betas_are_taken_as_they_stand():
    scheduler = Scheduler.from_config({"trained_betas": [0.1, 0.2, 0.4]})
    assert scheduler.training.betas.tolist() == [0.1, 0.2, 0.4]
    assert scheduler.timesteps(3) == [2, 1, 0]


def test_all_steps_of_a_schedule_are_its_own():
    scheduler = Scheduler.from_config(UPSCALER | {"steps_offset": 0, "num_train_timesteps": 20})
    sampled, training = scheduler.sampling(20), scheduler.training
    for name in ("betas", "abar", "abar_prev", "coef1", "coef2", "t"):
        torch.testing.assert_close(getattr(sampled, name), getattr(training, name), atol=1e-15, rtol=1e-12)
    torch.testing.assert_close(sampled.variance[1:], training.variance[1:], atol=0, rtol=1e-12)


def test_the_previous_step_is_counted_and_in_a_list_read():
    scheduler = Scheduler.from_config(UPSCALER | {"timestep_spacing": "trailing"})
    times, before = scheduler.timesteps(30), scheduler.previous(30)
    assert before == [t - 33 for t in times] and before[2] == 899 and times[3] == 899
    assert before[1] == 933 and times[2] == 932  # the quirk: off by one
    assert scheduler.previous([900, 50, 3]) == [50, 3, -1]


def test_the_clean_sample_is_clipped_where_the_file_says_so():
    scheduler = Scheduler.from_config({"clip_sample_range": 0.5, "prediction_type": "sample"})
    schedule, x = scheduler.sampling(4), torch.linspace(-2, 2, 9).view(1, 1, 3, 3)
    assert torch.equal(scheduler.to_x0(x, x, schedule, 0), x.clamp(-0.5, 0.5))
    free = Scheduler.from_config(UPSCALER)
    plan = free.sampling(4)
    assert torch.equal(free.to_x0(x, 2 * x, plan, 1), to_x0(x, 2 * x, plan, 1, "v"))


def test_large_variance_is_beta():
    small, large = (
        Scheduler.from_config(UPSCALER | {"variance_type": v}).sampling(10) for v in ("fixed_small", "fixed_large")
    )
    assert torch.equal(large.variance, large.betas) and small.variance[0] == 1e-20
    assert (small.variance < large.variance).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "got EulerDiscreteScheduler, expected DDPMScheduler or DDIM"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid', expected one of linear"),
        ({"prediction_type": None}, "prediction_type=None, expected one of"),
        ({"variance_type": "learned"}, "variance_type='learned'"),
        ({"timestep_spacing": ["leading"]}, "timestep_spacing=.'leading'.,"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000', expected a number"),
        ({"num_train_timesteps": 10**9}, "expected a number from 1"),
        ({"beta_end": float("nan")}, "beta_end=nan"),
        ({"trained_betas": "many"}, "trained_betas"),
        ({"trained_betas": [0.1, "x"]}, "trained_betas"),
        ({"trained_betas": [0.1, 2.0]}, "betas"),
        ({"thresholding": True}, "thresholding=True, expected False"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ({"steps_offset": -1}, "steps_offset=-1"),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(change, words):
    with pytest.raises(ValueError, match=words) as error:
        Scheduler.from_config(UPSCALER | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [0, 1001, [], [5, 5], [3, 10], [1000, 4], [4, -1]])
def test_time_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(ValueError, match="got .*, expected"):
        Scheduler.from_config(UPSCALER).timesteps(steps)


def test_a_list_that_leaves_the_training_says_to_take_fewer_steps():
    with pytest.raises(ValueError, match="take fewer steps"):
        Scheduler.from_config(UPSCALER).timesteps(1000)  # offset 1


def test_signal_powers_must_fall():
    powers = torch.tensor([0.9, 0.5])
    with pytest.raises(ValueError, match="do not fall"):
        Schedule.from_signal(powers, torch.tensor([0.8, 0.9]), t=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="'large'"):
        Schedule.from_signal(powers, torch.tensor([1.0, 0.9]), t=torch.tensor([0, 1]), variance="large")
