"""The order of bidirectional sampling, and complete runs of the released pipeline."""

import torch
from torch import Tensor

from ldm.diffusion.bidirectional import (
    GuidedDenoiser,
    Unit,
    Visit,
    conditioned_prediction,
    control_scales,
    sample_scene,
    sampling_order,
)
from ldm.diffusion.noise import SequentialNoise
from ldm.diffusion.scheduler import Scheduler
from ldm.ops.lanczos import floored_to_multiple
from ldm.ops.resize import resize
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.stablevsr.folder import INPUT, NETWORK, limit, network, weight_file


def check_order(case: Case) -> None:
    scheduler = Scheduler.from_config({"timestep_spacing": "leading", "steps_offset": 1})
    for run in case.meta["runs"]:
        frames, steps = run["frames"], run["steps"]
        units = list(sampling_order(frames, steps))
        rows = [units[k * frames : (k + 1) * frames] for k in range(steps)]
        assert [[unit.frame for unit in row] for row in rows] == run["frame_order"]
        assert [[unit.previous is not None for unit in row] for row in rows] == run["tcm"]
        pairs = [[None if u.previous is None else [u.frame, u.previous] for u in row] for row in rows]
        assert pairs == run["warp_target_source"]
        flows = run["flow_network_calls_target_source"]
        assert flows == [pair for frame in range(1, frames) for pair in ([frame, frame - 1], [frame - 1, frame])]
        assert all(pair in flows for row in pairs for pair in row if pair is not None)
        assert scheduler.timesteps(steps) == run["timesteps"]


def prepared(case: Case) -> list[Tensor]:
    """The frames as the released image processor makes them, (1, 3, h, w) in [-1, 1]."""
    floored = [torch.from_numpy(floored_to_multiple(frame.numpy()).copy()) for frame in case.tensors["frames_uint8"]]
    lr = [frame.permute(2, 0, 1)[None].float() / 255 * 2 - 1 for frame in floored]
    assert list(lr[0].shape[-2:]) == case.meta["lr_size_used"]
    assert_near(torch.cat(lr), case["lr"], limit=INPUT, what="lr")
    upscaled = [resize(frame, (4 * frame.shape[-2], 4 * frame.shape[-1])) for frame in lr]
    assert_near(torch.cat(upscaled), case["upscaled"], limit=INPUT, what="upscaled")
    return lr


class Watched:
    """Noise as released, compared with the recording; visits compared with their records, where there are."""

    def __init__(self, case: Case) -> None:
        self.case, self.source = case, SequentialNoise(case.meta["generator_seed"])
        self.visits: set[tuple[int, int]] = set()

    def noise(self, step: int | str, frame: int) -> Tensor:
        shape = self.case["initial_noise"].shape[1:]
        drawn = self.source(step, [frame], shape)
        self.check_noise(drawn, step, frame)
        return drawn

    def check_noise(self, drawn: Tensor, step: int | str, frame: int) -> None:
        """Compare what was drawn for a frame with its record, where there is one."""
        if step == "start":
            expected = self.case["initial_noise"][frame : frame + 1]
        elif self.name(step, frame) in self.case.tensors:
            expected = self.case[self.name(step, frame)]
        else:
            return
        assert torch.equal(drawn, expected), f"noise of step {step}, frame {frame}"

    def name(self, step: int, frame: int) -> str:
        position = self.case.meta["order"][step].index(frame)
        return f"step{step}_pos{position}_frame{frame}_noise"

    def visit(self, unit: Unit, visit: Visit, condition: Tensor | None) -> None:
        prefix = f"step{unit.step}_pos{unit.position}_frame{unit.frame}"
        found = {"model": visit.prediction, "latent": visit.latent, "x0": visit.x0}
        if condition is not None:
            found["tcm_condition"] = condition
        for part, value in found.items():
            if f"{prefix}_{part}" in self.case.tensors:
                assert_near(value, self.case[f"{prefix}_{part}"], limit=NETWORK, what=f"{prefix}_{part}")
        self.visits.add((unit.step, unit.frame))


def check_run(case: Case) -> None:
    meta, lr, watched = case.meta, prepared(case), Watched(case)
    scheduler = Scheduler.from_config(meta["scheduler"])
    steps = meta.get("custom_timesteps") or meta["steps"]
    assert scheduler.timesteps(steps) == meta["timesteps"]
    factor = weight_file(case, "AutoencoderKL").meta["config"]["scaling_factor"]
    vae = network(case, "AutoencoderKL")
    nets = network(case, "UNet2DConditionModel"), network(case, "ControlNetModel")
    model = GuidedDenoiser(
        predict=conditioned_prediction(*nets, case["prompt_embeds"]),
        decode=lambda x0: vae.decode(x0 / factor),
        flow=lambda target, source: case[f"flow_{target}_to_{source}"],
    )
    scales = control_scales(
        len(meta["timesteps"]),
        meta.get("controlnet_conditioning_scale", 1.0),
        start=meta.get("control_guidance_start") or 0.0,
        end=1.0 if meta.get("control_guidance_end") is None else meta["control_guidance_end"],
    )
    done = sample_scene(
        lr,
        model=model,
        scheduler=scheduler,
        steps=steps,
        noise=watched.noise,
        scales=scales,
        on_visit=watched.visit,
    )
    assert len(watched.visits) == meta["frames"] * len(meta["timesteps"])
    final, images = torch.cat(done.latents), (torch.cat(done.pictures) / 2 + 0.5).clamp(0, 1)
    assert_near(final, case["final_latents"], limit=limit(case, "final_latents", NETWORK), what="final_latents")
    expected = case["images_0_1"].reshape(images.shape)
    assert_near(images, expected, limit=limit(case, "images", NETWORK), what="images")


CHECKS = {"sampling_order": check_order, "pipeline_run": check_run}
