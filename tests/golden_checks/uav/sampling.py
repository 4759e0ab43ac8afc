"""Schedules, windows, propagation: mathematics without a network."""

import torch

from ldm.diffusion.denoiser import to_eps
from ldm.diffusion.propagation import Propagation, consistency_masks, latent_flow, propagate
from ldm.diffusion.refined import clean_and_noise, refined_step
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.scheduler import training_betas
from ldm.diffusion.spacing import released_timesteps, spaced
from ldm.ops.windows import consecutive_windows, released_windows
from tests.golden_checks.case import assert_near
from tests.golden_checks.uav.case import UavCase

KINDS = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
ALPHA_LIMIT, SAMPLE_LIMIT = 1e-6, 3e-4


def schedule_of(config: dict) -> Schedule:
    """The schedule of a diffusers scheduler's configuration."""
    return Schedule.from_betas(training_betas({"trained_betas": None} | config))


def steps_of(config: dict, count: int) -> Schedule:
    """The steps that a diffusers DDIM scheduler visits."""
    full = schedule_of(config)
    steps = released_timesteps(count, len(full), offset=config.get("steps_offset", 0))
    return spaced(full, steps, final_abar=1.0 if config.get("set_alpha_to_one", True) else None)


def check_scheduler(case: UavCase) -> None:
    full, low = (schedule_of(case.meta[key]) for key in ("scheduler", "low_res_scheduler"))
    assert_near(full.abar, case["alphas_cumprod"], limit=ALPHA_LIMIT)
    assert_near(low.abar, case["low_res_alphas_cumprod"], limit=ALPHA_LIMIT)
    for count, steps in case.meta["timesteps"].items():
        assert steps_of(case.meta["scheduler"], int(count)).t.flip(0).tolist() == steps
    for key in [key for key in case.tensors if key.startswith("lr_noised_")]:
        level = int(key.removeprefix("lr_noised_"))
        noised = low.add_noise(case["lr_image"], case["lr_noise"], level)
        assert_near(noised, case[key], limit=1e-6 if level else 1e-5, what=key)
    for k, run in enumerate(case.meta["runs"]):
        for number in run["steps"]:
            check_step(case, k, run, number)


def check_step(case: UavCase, k: int, run: dict, number: int) -> None:
    config, prefix = run["config"], f"run{k}_s{number}"
    schedule = steps_of(config, run["inference_steps"])
    i, kind, clip = len(schedule) - 1 - number, KINDS[config["prediction_type"]], config.get("clip_sample", True)
    x = case[f"run{k}_x"]
    x0, eps = clean_and_noise(case[f"{prefix}_model"], x, schedule, i, kind=kind, clip=clip)

    def near(value: torch.Tensor, key: str) -> None:
        expected = case[f"{prefix}_{key}"]
        limit = SAMPLE_LIMIT if kind == "x0" else 1e-6 * expected.abs().max().item() + 3e-6
        assert_near(value, expected, limit=limit, what=f"{run['name']} {prefix}_{key}")

    near(x0, "x0")
    for clean, key in ((x0, "prev_unmodified"), (case[f"{prefix}_x0_modified"], "prev_modified")):
        clean = clean.clamp(-1, 1) if clip else clean
        # for "sample" the reference finds eps from the modified sample (quirk 14)
        noise = to_eps(clean, x, schedule, i) if kind == "x0" else eps
        near(refined_step(clean, noise, schedule, i), key)


def check_temporal_windows(case: UavCase) -> None:
    lengths = {"length": case.meta.get("short_seq", 8), "overlap": case.meta.get("overlap", 2)}
    assert case.meta["frames"]
    for frames, table in case.meta["frames"].items():
        windows, shares = released_windows(int(frames), **lengths)
        assert [[w.start, w.stop] for w in windows] == table["windows"], frames
        assert shares.tolist() == table["weights"], frames
        chunks = consecutive_windows(int(frames), length=case.meta.get("decode_seq", 3)).windows
        assert [list(range(c.start, c.stop)) for c in chunks] == table["decode_chunks"], frames


def check_propagation(case: UavCase) -> None:
    assert case.meta["runs"]
    for run in case.meta["runs"]:
        k = run["k"]
        x = case.clip(f"x{k}")
        flows = [
            latent_flow(case.clip(f"flows_{name}{k}"), x.shape[3:], scaling="released")
            for name in ("forward", "backward")
        ]
        fuse = 1.0 if run["mode"] == "copy" else run["fuse_scale"]
        how = Propagation(run["interpolation"], fuse, run["alpha1"], run["alpha2"])
        for mask, name in zip(consistency_masks(*flows, how=how), ("forward", "backward"), strict=True):
            case.near(mask.float(), f"valid_{name}{k}", 0.0)
        limit = run.get("tolerance", {}).get("suggested_atol", case.limit(f"out{k}"))
        assert_near(propagate(x, *flows, how=how), case.clip(f"out{k}"), limit=limit, what=f"out{k}")


CHECKS = {
    "scheduler": check_scheduler,
    "temporal_windows": check_temporal_windows,
    "propagation": check_propagation,
}
