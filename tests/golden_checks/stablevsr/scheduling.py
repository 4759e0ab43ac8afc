"""The scheduler read from its JSON: time steps, steps, variance, noising, velocity."""

import torch

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.samplers import ddpm_step
from ldm.diffusion.scheduler import Scheduler
from tests.golden_checks.case import Case, assert_near

LIMIT = 1e-4  # of single steps, times the largest value above 1: the recording's schedule is float32
CLOSED = 3e-5  # of closed forms


def near(value: torch.Tensor, case: Case, name: str, bound: float) -> None:
    expected = case[name]
    assert_near(value, expected, limit=bound * max(1.0, expected.abs().max().item()), what=name)


def check_run(case: Case, k: int, run: dict) -> None:
    scheduler = Scheduler.from_config(run["config"])
    steps = len(run["timesteps"])
    if scheduler.timesteps(steps) != run["timesteps"]:  # a list of its own
        steps = run["timesteps"]
    assert scheduler.timesteps(steps) == run["timesteps"]
    schedule, x, before = scheduler.sampling(steps), case[f"run{k}_x"], scheduler.previous(steps)
    for j, step in enumerate(run["steps"]):
        i, name = len(schedule) - 1 - step, f"run{k}_s{step}"
        assert before[step] == run["prev"][j], name
        assert abs(schedule.variance[i].item() - run["variance"][j]) < 1e-6, name
        noise = case[f"{name}_noise"] if schedule.t[i] > 0 else torch.zeros_like(x)
        x0 = scheduler.to_x0(case[f"{name}_model"], x, schedule, i)
        near(x0, case, f"{name}_x0", LIMIT)
        near(ddpm_step(x0, x, i, schedule, noise=lambda _, noise=noise: noise), case, f"{name}_prev", LIMIT)


def check(case: Case) -> None:
    base = case.meta["runs"][0]["config"]
    for key, expected in case.meta["timesteps"].items():
        spacing, offset, steps = key.split("/")
        config = base | {"timestep_spacing": spacing, "steps_offset": int(offset.removeprefix("offset"))}
        assert Scheduler.from_config(config).timesteps(int(steps)) == expected, key
    for k, run in enumerate(case.meta["runs"]):
        check_run(case, k, run)
    training, t = Scheduler.from_config(base).training, case["t"]
    x0, noise = case["x0"], case["noise"]
    near(training.abar, case, "alphas_cumprod", CLOSED)
    near(training.add_noise(x0, noise, t), case, "noisy", CLOSED)
    near(training.velocity(x0, noise, t), case, "velocity", CLOSED)
    near(to_x0(noise, x0, training, t, "v"), case, "approx_x0", CLOSED)


CHECKS = {"scheduler": check}
