"""Sampling, un-tiled and tiled, with and without guidance; the tile weights; the motion loss."""

from collections.abc import Callable

import torch

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.guidance import MotionGuidance, motion_loss
from ldm.diffusion.samplers import ddpm_step
from ldm.diffusion.schedule import Schedule
from ldm.nets.structure import StructureEncoder
from ldm.nets.unet import UNet
from ldm.ops.flow import Motion
from ldm.ops.tiling import released_gaussian_window, tiled
from ldm.streaming.pipeline import stack
from ldm.streaming.steps import Steps, WindowPlaces, sample_clip
from tests.golden_checks.case import Case, assert_near

LATENT_LIMIT = 1e-3  # on latents of size up to 90
EPS_LIMIT = 1e-4  # on predictions of size 3 from such latents
LOSS_LIMIT = 1e-5  # relative
NETWORK_KEYS = ("in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks")
UNET_KEYS = (*NETWORK_KEYS, "channel_mult", "num_head_channels", "num_heads", "context_dim", "transformer_depth")
STRUCT_KEYS = (*NETWORK_KEYS, "channel_mult", "num_heads", "num_head_channels")


def chosen(config: dict, keys: tuple[str, ...]) -> dict:
    return {key: config[key] for key in keys if key in config}


def clips_of(case: Case, name: str) -> torch.Tensor:
    """Frames (b*T, ...) as clips (b, T, ...)."""
    frames = case.meta.get("num_frames") or case.meta["frames"]
    return case[name].float().unflatten(0, (-1, frames))


def motion_of(case: Case) -> Motion:
    """In these cases `flow_b` leads to the next frame and `flow_f` to the previous one; the masks cross over."""
    flows = case["flow_b"].float(), case["flow_f"].float()
    return Motion(*flows, case["mask_fwd"].float(), case["mask_bwd"].float())


def load_networks(case: Case) -> tuple[UNet, StructureEncoder]:
    unet_config = chosen(case.meta["unet"], UNET_KEYS)
    if "semb_channels" in case.meta["unet"]:
        unet_config["semb_channels"] = case.meta["unet"]["semb_channels"]
    unet, struct = UNet(**unet_config), StructureEncoder(**chosen(case.meta["struct"], STRUCT_KEYS))
    weights = case.weights()
    for net, prefix in ((unet, "model.diffusion_model."), (struct, "structcond_stage_model.")):
        net.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
        net.eval()
    return unet, struct


def predictor(case: Case) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """eps of (1, T, 4, h, w) at a time step, tiled if the case is; the low-quality latent is cut along."""
    unet, struct = load_networks(case)
    low = clips_of(case, "init_latent")

    def eps(x: torch.Tensor, lq: torch.Tensor, *, t: int, **_) -> torch.Tensor:
        step = torch.tensor([t])
        maps = struct(lq.flatten(0, 1), step)
        out = unet(x.flatten(0, 1), step, case["context"], maps, num_frames=x.shape[1])
        return out.unflatten(0, x.shape[:2])

    if case.meta["tile"]:
        frames, tile, overlap = low.shape[1], case.meta["tile"], case.meta["overlap"]
        eps = tiled(eps, tile=(frames, tile, tile), overlap=(0, overlap, overlap), window=released_gaussian_window)
    return lambda x, t: eps(x, low, t=t)


class Recorder:
    """Keeps what happens at each step k, counted from the noisiest, and compares it with the recording."""

    def __init__(self, case: Case, schedule: Schedule, guide: MotionGuidance | None) -> None:
        self.case, self.schedule, self.guide = case, schedule, guide

    def number(self, i: int) -> int:
        return len(self.schedule) - 1 - i

    def near(self, value: torch.Tensor, name: str, limit: float = LATENT_LIMIT) -> None:
        if name in self.case.tensors:
            assert_near(value[0], self.case[name], limit=limit, what=f"{self.case.name} {name}")

    def near_but_for_flips(self, gradient: torch.Tensor, name: str) -> None:
        """The gradient of an L1 norm jumps where a residual is nearly 0: one element in a thousand may."""
        if name in self.case.tensors:
            expected = self.case[name]
            off = (gradient[0] - expected).abs() > 1e-4 * expected.abs().max()
            assert off.float().mean() <= 1e-3, f"{self.case.name} {name}: {off.sum()} elements differ"

    def denoiser(self, predict: Callable) -> Callable:
        """x_{i-1} of all frames from x_i, every intermediate value compared."""

        def denoise(frames: list, *, i: int) -> torch.Tensor:
            x = stack(frames, "x")
            eps = predict(x, int(self.schedule.t[i]))
            self.near(eps, f"out.eps.{self.number(i)}", limit=EPS_LIMIT)
            x0 = to_x0(eps, x, self.schedule, i)
            self.near(self.schedule.posterior(x0, x, i)[0], f"out.mean.{self.number(i)}")
            noise = clips_of(self.case, f"noise.{self.number(i)}")
            return ddpm_step(x0, x, i, self.schedule, noise=lambda _: noise)

        return denoise

    def guided(self, frames: list, start: int, stop: int, *, i: int) -> torch.Tensor:
        return self.after(stack(frames, "x"), i)[:, start:stop]

    def after(self, x: torch.Tensor, i: int) -> torch.Tensor:
        k = self.number(i)
        if self.guide is not None:
            loss, gradient = loss_and_gradient(x, self.guide.motion, "masked")
            self.near_but_for_flips(gradient, f"out.motion_grad.{k}")
            expected = self.case["out.motion_loss"][k].item()
            assert abs(loss.item() - expected) <= LOSS_LIMIT * abs(expected), f"loss {k}: {loss} != {expected}"
            x = self.guide(x, i)
        self.near(x, f"out.latent.{k}")
        return x


def check_sampling(case: Case) -> None:
    full = Schedule.linear_sd()
    schedule = full.respaced(case.meta["steps"], arithmetic="released")
    assert schedule.t.tolist() == case.meta["ori_timesteps"]
    assert_near(schedule.log_variance.flip(0), case["out.log_variance"], limit=1e-4, what="log-variance")
    start = full.add_noise(clips_of(case, "init_latent"), clips_of(case, "noise_T"), len(full) - 1)
    assert_near(start, clips_of(case, "x_T"), limit=1e-6, relative_to=5, what="x_T")
    scale = case.meta["guidance_scale"]
    guide = None if scale is None else MotionGuidance(motion_of(case), schedule, form="released", scale=scale)
    recorder = Recorder(case, schedule, guide)
    count = start.shape[1]
    steps = Steps(recorder.denoiser(predictor(case)), WindowPlaces(count), guide=recorder.guided, reach=count)
    sample_clip(steps, start, len(schedule))


def check_tile_weights(case: Case) -> None:
    for name in case.tensors:
        width, height = (int(n) for n in name.removeprefix("out.").split("x"))
        expected = case.tensors[name].double()
        assert_near(
            released_gaussian_window(1, height, width)[0], expected, limit=1e-6, relative_to=expected.max().item()
        )


def loss_and_gradient(latents: torch.Tensor, motion: Motion, occlusion: str) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        leaf = latents.clone().requires_grad_()
        loss = motion_loss(leaf, motion, form="released", occlusion=occlusion)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def check_motion_loss(case: Case) -> None:
    latents, motion = clips_of(case, "latents"), motion_of(case)
    for form, occlusion in (("v4", "masked"), ("v3", "border"), ("v3_nomask", "none")):
        if f"out.{form}.loss" in case.tensors:
            loss, gradient = loss_and_gradient(latents, motion, occlusion)
            expected = case[f"out.{form}.loss"]
            assert_near(loss.reshape(1), expected, limit=LOSS_LIMIT, relative_to=expected.item(), what=form)
            expected = clips_of(case, f"out.{form}.grad")
            assert_near(
                gradient, expected, limit=1e-5, relative_to=expected.abs().max().item(), what=f"{form} gradient"
            )


CHECKS = {
    "f_plain": check_sampling,
    "f_guided": check_sampling,
    "f_canvas": check_sampling,
    "f_tile_weights": check_tile_weights,
    "f_motion_loss": check_motion_loss,
}
