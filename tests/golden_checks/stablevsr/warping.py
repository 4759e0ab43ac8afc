"""The warp of the released code, the guidance made with it, and its measures."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.diffusion.bidirectional import texture_guidance
from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.scheduler import Scheduler
from ldm.metrics.temporal import ALPHA, BETA
from ldm.ops.flow import flow_warp
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.stablevsr.folder import INPUT, NETWORK, TIGHT, network

PUBLISHED = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "clip_sample": False}


def check_flow_warp(case: Case) -> None:
    for run in case.meta["runs"]:
        k, bound = run["k"], run.get("tolerance", {}).get("suggested_atol", INPUT)
        settings = {"mode": run["mode"], "padding": run["padding"]}
        warped = flow_warp(case[f"x{k}"], case[f"flow{k}"].movedim(-1, 1), grid="released", **settings)
        assert_near(warped, case[f"out{k}"], limit=bound, what=f"run {k}, {settings}")


@torch.no_grad()
def check_ttg(case: Case) -> None:
    scheduler, vae = Scheduler.from_config(case.meta.get("scheduler", PUBLISHED)), network(case, "AutoencoderKL")
    x0 = to_x0(case["v_pred"], case["x_t"], scheduler.training, case["t"], scheduler.kind)
    assert_near(x0, case["x0"], limit=3e-5, what="x0")
    decoded = vae.decode(x0 / case.meta.get("scaling_factor", 0.08333))
    bound = case.meta.get("tolerance", {}).get("suggested_atol", NETWORK)
    assert_near(decoded, case["decoded_rgb"], limit=bound, what="decoded_rgb")
    guidance = texture_guidance(decoded, case["flow"].movedim(-1, 1))
    assert_near(guidance, case["warped"], limit=bound, what="warped")


def visible_pixels(flow: Tensor, back: Tensor) -> Tensor:
    """1 where following `flow` and `back`, (n, 2, h, w), returns to the start, else 0: (n, h, w)."""
    back = flow_warp(back, flow, grid="released")
    miss, reach = (flow + back).square().sum(dim=1), (flow.square() + back.square()).sum(dim=1)
    return (miss <= ALPHA * reach + BETA).float()


def warp_error(current: Tensor, previous: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """Mean squared difference of frames and warped previous frames over visible pixels and channels, (n,)."""
    error = (current - flow_warp(previous, flow, grid="released")).square()
    return (error * visible[:, None]).sum(dim=(1, 2, 3)) / (error.shape[1] * visible.sum(dim=(1, 2)))


def check_flow_utils(case: Case) -> None:
    flow, back = case["flow_fw"], case["flow_bw"]
    assert_near(flow.movedim(1, -1), case["flow_out"], limit=0.0, what="flow_out")
    for name in (name for name in case.tensors if name.startswith("get_flow_rescale")):
        factor = int(name.removeprefix("get_flow_rescale"))
        small = F.interpolate((flow / factor).floor(), scale_factor=1 / factor, mode="bilinear", align_corners=False)
        assert_near(small.movedim(1, -1), case[name], limit=INPUT, what=name)
    visible = visible_pixels(flow, back)
    assert torch.equal(visible, case["occlusion"])
    assert abs((1 - visible).mean().item() - case.meta["occluded_fraction"]) < 1e-6
    pair = case["current"], case["prev"], flow
    every = torch.ones_like(visible)
    assert_near(warp_error(*pair, every).mean(), case["warp_error_plain"].mean(), limit=TIGHT, what="warp_error_plain")
    masked = warp_error(*pair, visible)
    assert_near(masked.flatten(), case["warp_error_masked"].flatten(), limit=TIGHT, what="warp_error_masked")


CHECKS = {"flow_warp": check_flow_warp, "ttg": check_ttg, "flow_utils": check_flow_utils}
