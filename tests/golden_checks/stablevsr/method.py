"""A recorded run through the stages of the method: what the command does, with recorded noise and flow."""

import torch

from ldm.diffusion.scheduler import Scheduler
from ldm.methods.contract import Request
from ldm.methods.stablevsr.method import StableVSR
from ldm.methods.stablevsr.settings import BidirectionalSampling, SequentialDraws
from ldm.nets.text import FixedContext
from ldm.ops.dis import DISFlow
from ldm.streaming.pipeline import Frame, Pipeline
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.stablevsr.folder import NETWORK, limit, network, weight_file
from tests.golden_checks.stablevsr.scenes import Watched


class RecordedContext(FixedContext):
    """The recorded text embedding in place of a tower."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__(width=1)
        self.value = value

    def forward(self) -> torch.Tensor:
        return self.value


class RecordedFlows:
    """The recorded flows in the order in which the released pipeline asks for them."""

    def __init__(self, case: Case) -> None:
        self.case, self.pairs = case, iter(case.meta["flow_network_calls_target_source"])

    def __call__(self, _target: torch.Tensor, _source: torch.Tensor) -> torch.Tensor:
        target, source = next(self.pairs)
        return self.case[f"flow_{target}_to_{source}"]


def recorded_method(case: Case) -> StableVSR:
    """The method with the weights and settings of a run."""
    meta = case.meta
    networks = {
        "unet": network(case, "UNet2DConditionModel"),
        "control": network(case, "ControlNetModel"),
        "autoencoder": network(case, "AutoencoderKL"),
        "text": RecordedContext(case["prompt_embeds"]),
        "flow": DISFlow(),
    }
    sampling = BidirectionalSampling(
        Scheduler.from_config(meta["scheduler"]),
        steps=meta["steps"],
        timesteps=meta.get("custom_timesteps"),
        control_scale=meta.get("controlnet_conditioning_scale", 1.0),
        control_start=meta.get("control_guidance_start") or 0.0,
        control_end=1.0 if meta.get("control_guidance_end") is None else meta["control_guidance_end"],
    )
    factor = weight_file(case, "AutoencoderKL").meta["config"]["scaling_factor"]
    return StableVSR(networks=networks, sampling=sampling, scale_factor=factor, scene_cut=None, fit="floored")


@torch.no_grad()
def check_method(case: Case) -> None:
    """Every visit, the final latents and the pictures."""
    method, watched = recorded_method(case), Watched(case)
    frames = case.tensors["frames_uint8"].permute(0, 3, 1, 2)
    latents = {}

    draws, count = SequentialDraws(case.meta["generator_seed"]), len(method.sampling.schedule)

    def noise(step, frame, *, turn, shape):
        drawn = draws(step, frame, turn=turn, shape=shape)
        watched.check_noise(drawn, step if step == "start" else count - 1 - step, frame)
        return drawn

    def on_visit(unit, visit, condition):
        watched.visit(unit, visit, condition)
        latents[unit.frame] = visit.latent

    height, width = case.meta["lr_size_used"]
    request = Request(tuple(frames.shape[-2:]), len(frames))
    run = method.restoration(request, method.levers()[0], noise=noise, flow=RecordedFlows(case), on_visit=on_visit)
    pipeline = Pipeline(method.stages(run))
    for number, frame in enumerate(frames):
        pipeline.push(Frame(number, {"lq": frame[None]}))
    pictures = torch.cat([frame["sr"] for frame in pipeline.pull(finish=True)])
    assert len(watched.visits) == len(frames) * len(method.sampling.schedule)
    final = torch.cat([latents[k] for k in range(len(frames))])
    assert_near(final, case["final_latents"], limit=limit(case, "final_latents", NETWORK), what="final latents")
    if (height, width) == tuple(frames.shape[-2:]):  # otherwise brought to the size that was asked for
        expected = case["images_0_1"].reshape(pictures.shape)
        assert_near(pictures, expected, limit=limit(case, "images", NETWORK), what="images")


CHECKS: dict = {}  # `check_method` is run by the method's tests
