"""Complete runs of the pipeline and of the script, put together from plain functions in their released options."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.diffusion.classifier_free import guided, noise_label
from ldm.diffusion.clip_noise import ReleasedClipNoise
from ldm.diffusion.propagation import latent_flow, propagate
from ldm.diffusion.refined import refined_steps, sample_refined
from ldm.diffusion.schedule import Schedule
from ldm.nets.video_unet import UNetVideoModel
from ldm.nets.video_vae import AutoencoderKLVideo
from ldm.ops.color import adain_color_fix, wavelet_color_fix
from ldm.ops.crop_tiles import AREA, released_tiles
from ldm.ops.resize import resize
from ldm.ops.windows import consecutive_windows, over_windows, released_windows
from tests.golden_checks.case import assert_near
from tests.golden_checks.uav.case import UavCase, network
from tests.golden_checks.uav.networks import SCALING_FACTOR
from tests.golden_checks.uav.sampling import KINDS, schedule_of, steps_of

SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction",
}  # fmt: skip
OUTPUT_LIMIT = 2e-4  # of a script's pipeline
DIFFERING = 0.005  # part of grey levels that may be off by one


class Settings(NamedTuple):
    """Of one call of the pipeline."""

    guidance_scale: float
    noise_level: int
    propagation_steps: list[int]
    denoise_level: int | None = None
    w_lr: float = 1.0
    kind: str = "v"


class Call(NamedTuple):
    """Inputs of one call, clips (1, T, C, h, w)."""

    video: Tensor
    noise: Tensor
    latents: Tensor
    positive: Tensor
    negative: Tensor | None
    flows: tuple[Tensor, Tensor] | None


def run_pipeline(
    nets: tuple[nn.Module, nn.Module],
    call: Call,
    settings: Settings,
    schedules: tuple[Schedule, Schedule],
    on_step: Callable | None = None,
) -> tuple[Tensor, Tensor]:
    """(final latents, video in [-1, 1])."""
    (unet, vae), (steps, low_schedule) = nets, schedules
    frames = call.video.shape[1]
    low_res = low_schedule.add_noise(call.video, call.noise, settings.noise_level)
    label = noise_label(settings.noise_level, settings.denoise_level, frames=frames, released=True)

    def network_call(x: Tensor, low: Tensor, *, context: Tensor, t: int) -> Tensor:
        return unet(x, low, torch.tensor([t]), context, torch.tensor([label]))

    window = guided(network_call, positive=call.positive, negative=call.negative, scale=settings.guidance_scale)
    predict = over_windows(window, released_windows)
    flows = None
    if call.flows is not None:
        flows = [latent_flow(flow, call.latents.shape[3:], scaling="released") for flow in call.flows]
    latents = sample_refined(
        lambda x, t: predict(x, low_res, t=t),
        call.latents,
        steps,
        kind=settings.kind,
        refine=None if flows is None else lambda x0: propagate(x0, *flows),
        refine_at=refined_steps(settings.propagation_steps, len(steps)),
        on_step=on_step,
    )
    decode = over_windows(lambda z, low: vae.decode(z, low, weight=settings.w_lr), consecutive_windows)
    with torch.no_grad():
        return latents, decode(latents / SCALING_FACTOR, call.video).clamp(-1, 1)


def networks_of(case: UavCase) -> tuple[nn.Module, nn.Module]:
    nets = [network(case.folder, name) for name in case.meta["weights"]]
    unet = next(net for net in nets if isinstance(net, UNetVideoModel))
    return unet, next(net for net in nets if isinstance(net, AutoencoderKLVideo))


def flows_of(case: UavCase) -> tuple[Tensor, Tensor] | None:
    if "flows_forward" not in case.tensors:
        return None
    return case.clip("flows_forward"), case.clip("flows_backward")


def check_pipeline(case: UavCase) -> None:
    meta = case.meta
    video, count = case.clip("video"), meta["inference_steps"]
    steps, low_schedule = steps_of(meta["scheduler"], count), schedule_of(meta["low_res_scheduler"])
    assert steps.t.flip(0).tolist() == meta.get("timesteps", steps.t.flip(0).tolist())
    nets = networks_of(case)
    if "generator_seed" in meta:
        source = ReleasedClipNoise(meta["generator_seed"])
        noise, latents = source.next_run(video.shape[1], video.shape[3:], latent_channels=nets[0].out_channels)
        case.near(noise, "lr_noise", 0.0)
        case.near(latents, "initial_latents", 0.0)
    else:
        noise, latents = case.clip("lr_noise"), case.clip("initial_latents")
    negative = case["embedding_negative"] if "embedding_negative" in case.tensors else None
    call = Call(video, noise, latents, case["embedding_positive"], negative, flows_of(case))
    settings = Settings(
        meta["guidance_scale"],
        meta["noise_level"],
        meta.get("propagation_steps") or [],
        meta.get("denoise_level"),
        meta.get("w_lr", 1.0),
        KINDS[meta["scheduler"]["prediction_type"]],
    )

    def on_step(i: int, found: dict[str, Tensor]) -> None:
        number, limit = count - 1 - i, 3 * case.limit("x0_step0")
        for key, name in (("model", "prediction"), ("x0", "x0"), ("x0_propagated", "refined"), ("latents", "x")):
            case.near(found[name], f"step{number}_{key}", limit)

    final, output = run_pipeline(nets, call, settings, (steps, low_schedule), on_step)
    assert_near(final, case.clip("final_latents"), limit=case.limit("final_latents"), what=case.name)
    case.near(output, "output", case.limit("output"))


def parse(argv: list[str]) -> argparse.Namespace:
    """The released script's flags with their defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", "--noise_level", type=int, default=120)
    parser.add_argument("-g", "--guidance_scale", type=int, default=6)
    parser.add_argument("-s", "--inference_steps", type=int, default=30)
    parser.add_argument("-p", "--propagation_steps", type=lambda text: [int(k) for k in text.split(",")], default=[])
    parser.add_argument("--color_fix", default="None")
    parser.add_argument("--tile_size", type=int, default=256)
    parser.add_argument("--perform_tile", action="store_true")
    return parser.parse_known_args(argv)[0]


def run_script(case: UavCase, args: argparse.Namespace) -> Tensor:
    """The video (1, T, 3, 4h, 4w) before the colour fix; the noise of every call is checked on the way."""
    video = case["video_uint8"][None].float() / 255 * 2 - 1
    frames, size = video.shape[1], tuple(video.shape[3:])
    schedules = steps_of(case.meta.get("scheduler", SCHEDULER), args.inference_steps), schedule_of(SCHEDULER)
    settings = Settings(args.guidance_scale, args.noise_level, args.propagation_steps)
    flows = flows_of(case) if args.propagation_steps else None
    tiled = args.perform_tile or size[0] * size[1] >= AREA
    tiles = released_tiles(size, args.tile_size) if tiled else released_tiles(size, max(size))
    nets = networks_of(case)
    source = ReleasedClipNoise(case.meta.get("generator_seed", 10))
    out = torch.zeros(1, frames, 3, *(nets[1].downsampling * n for n in size))
    for k, tile in enumerate(tiles):
        part = tile.of(video, size)
        noise, latents = source.next_run(frames, part.shape[3:], latent_channels=nets[0].out_channels)
        case.near(noise, f"call{k}_lr_noise", 0.0)
        case.near(latents, f"call{k}_initial_latents", 0.0)
        tile_flows = None if flows is None else tuple(tile.of(flow, size) for flow in flows)
        negative = case["embedding_1"] if "embedding_1" in case.tensors else None
        call = Call(part, noise, latents, case["embedding_0"], negative, tile_flows)
        tile.place_in(out, size).copy_(tile.core_of(run_pipeline(nets, call, settings, schedules)[1]))
    return out


def check_script(case: UavCase) -> None:
    args = parse(case.meta["argv"])
    out = run_script(case, args)
    case.near(out, "pipeline_output", case.limit("pipeline_output", OUTPUT_LIMIT))
    frames, low = out[0], case["video_uint8"].float() / 255 * 2 - 1
    fixes = {"AdaIn": adain_color_fix, "Wavelet": wavelet_color_fix}
    if args.color_fix in fixes:
        frames = fixes[args.color_fix](frames, resize(low, frames.shape[-2:]))
    grey = ((frames / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1)  # cut off, not rounded
    compare_grey(grey, case["output_uint8"])


def compare_grey(grey: Tensor, expected: Tensor) -> None:
    """Grey levels at most 1 apart, and few of them: rounding for cutting off changes half of them."""
    difference = (grey.int() - expected.int()).abs()
    assert_near(difference.float(), torch.zeros(difference.shape), limit=1, what="grey levels")
    share = (difference > 0).float().mean().item()
    assert share <= DIFFERING, f"{share:.4f} of the grey levels differ, expected at most {DIFFERING}"


CHECKS = {"pipeline_run_": check_pipeline, "script_run_": check_script}
