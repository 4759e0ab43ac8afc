"""The noise schedule, its respacing and what is computed from it."""

import torch

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.schedule import Schedule, make_betas, space_timesteps
from ldm.nets.layers import timestep_embedding
from tests.golden_checks.case import Case, assert_near

EPSILON = torch.finfo(torch.float32).eps
LIMIT = 1e-6  # relative to each value; the largest one where a difference of products is taken


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(
        actual.to(expected), expected, rtol=LIMIT, atol=1e-12, msg=lambda text: f"{what}: {text}", equal_nan=True
    )


def released_arrays(schedule: Schedule, *, single: bool) -> dict[str, torch.Tensor]:
    """The float32 arrays of a released checkpoint by their names there; `single`: computed from a float32 product."""
    abar = schedule.abar.float() if single else schedule.abar
    arrays = {
        "betas": schedule.betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": schedule.abar_prev,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": schedule.variance,
        "posterior_log_variance_clipped": schedule.log_variance,
        "posterior_mean_coef1": schedule.coef1,
        "posterior_mean_coef2": schedule.coef2,
    }
    return {name: array.float() for name, array in arrays.items()}


def check_arrays(case: Case, group: str, schedule: Schedule, kind: str = "eps") -> None:
    single = group.startswith("respaced_")
    arrays = released_arrays(schedule, single=single)
    arrays |= {"lvlb_weights": schedule.lvlb_weights(kind), "ori_timesteps": schedule.t}
    recorded = [name for name in case.tensors if name.startswith(f"out.{group}.")]
    for name in recorded:
        assert_close(arrays[name.removeprefix(f"out.{group}.")], case[name], name)


def check_spacing(case: Case) -> None:
    for asked, expected in case.meta.get("space_timesteps", {}).items():
        total, sections = asked.split("|")
        listed = [int(n) for n in sections.strip("[]").split(",")] if sections.startswith("[") else sections
        try:
            found = space_timesteps(int(total), listed)
        except ValueError:
            found = "ValueError"
        assert found == (expected if isinstance(expected, list) else expected.split(":")[0]), asked


def check_formulas(case: Case, schedule: Schedule, t: torch.Tensor, prefix: str) -> None:
    """x0 from the noise, and the posterior, at the steps `t` of every sample."""
    x0, noise, xt = case["x0"], case["noise"], case["xt"]
    mean, variance, log_variance = schedule.posterior(x0, xt, t)
    found = {
        "q_sample": schedule.add_noise(x0, noise, t),
        "get_v": schedule.velocity(x0, noise, t),
        "predict_start": to_x0(noise, xt, schedule, t, "eps"),
        "post_mean": mean,
        "post_var": variance,
        "post_logvar": log_variance,
    }
    for name, value in found.items():
        if f"out.{prefix}{name}" in case.tensors:
            expected = case[f"out.{prefix}{name}"]
            assert_near(value, expected, limit=LIMIT, relative_to=expected.abs().max().item(), what=prefix + name)


def check(case: Case) -> None:
    full = Schedule.from_betas(case["betas_float64"]) if "betas_float64" in case.tensors else Schedule.linear_sd()
    start, end = full.betas[0].item(), full.betas[-1].item()
    assert_close(Schedule.linear_sd(len(full), start=start, end=end).betas, full.betas, "betas")
    check_arrays(case, "full", full)
    for kind in ("v", "x0"):
        check_arrays(case, f"full_{kind}", full, kind)
    for name in (n for n in case.tensors if n.startswith("out.betas.")):
        assert_close(make_betas(name.rsplit(".", 1)[-1], len(case[name])), case[name], name)
    counts = {name.split(".")[1] for name in case.tensors if name.startswith("out.respaced_")}
    for group in sorted(counts):
        steps = int(group.removeprefix("respaced_"))
        check_arrays(case, group, full.respaced(steps, arithmetic="released"))
    check_spacing(case)
    check_formulas(case, full, case["t"], "")
    check_formulas(case, full.respaced(case.meta["respaced_on"], arithmetic="released"), case["t_respaced"], "r.")
    if "out.q_sample_respace" in case.tensors:  # the released form starts from the noisiest step of the full schedule
        started = full.add_noise(case["x0"], case["noise"], len(full) - 1)
        assert_near(started, case["out.q_sample_respace"], limit=LIMIT, relative_to=started.abs().max().item())
    for name in (n for n in case.tensors if n.startswith("out.timestep_embedding_")):
        embedded = timestep_embedding(case["emb_t"], int(name.rsplit("_", 1)[-1]))
        for t, actual, expected in zip(case["emb_t"].tolist(), embedded, case[name], strict=True):
            # exp() of different CPUs differs in the last bit of float32, which the phase multiplies by t
            assert_near(actual, expected, limit=LIMIT + t * EPSILON, what=f"{name}, t={t}")


CHECKS = {"e_schedule": check}
