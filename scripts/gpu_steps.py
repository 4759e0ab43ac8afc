"""Short steps of scripts/gpu_check.py; each measures one device and returns values that JSON can store."""

import copy
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.guidance import MotionGuidance
from ldm.diffusion.schedule import Schedule
from ldm.engine.assemble import load_method
from ldm.engine.device import exact_float32, hardware, seconds_of
from ldm.ops.color import adain_color_fix, wavelet_color_fix
from ldm.ops.flow import Motion, estimate_motion, flow_warp, forward_backward_occlusion, warp_validity
from ldm.ops.resize import resize
from scripts.clip_flops import TOKENS, Work, flops_of
from scripts.gpu_device import Check, each, inference, moving_clip
from scripts.gpu_runs import clip, training

ROOT = Path(__file__).resolve().parents[1]
GOLDEN_SECONDS = 80


# ---- the card


def rates(check: Check) -> dict:
    """Measure the rates of matrix products (TFLOP/s) and of copies (GB/s)."""
    n = check.size.product

    def product(dtype: torch.dtype) -> float:
        x = check.random(n, n).to(dtype)
        return 2 * n**3 / check.seconds(lambda: x @ x) / 1e12

    def tf32() -> float:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return product(torch.float32)
        finally:
            exact_float32()

    def copied(source: Tensor, target: Tensor) -> float:
        return source.nbytes / check.seconds(lambda: target.copy_(source, non_blocking=source.is_pinned())) / 1e9

    here, host = (torch.empty(check.size.copied, dtype=torch.uint8, device=at) for at in (check.device, "cpu"))
    work = [(f"{dtype}".removeprefix("torch."), partial(product, dtype)) for dtype in (torch.float32, torch.bfloat16)]
    work += [("float16", partial(product, torch.float16)), ("tf32", tf32)] if check.is_cuda else []
    copies = [("on the device", lambda: copied(here, torch.empty_like(here)))]
    copies.append(("from the host", lambda: copied(host, here)))
    if check.is_cuda:
        copies.append(("from pinned memory", lambda: copied(host.pin_memory(), here)))
    versions = {"torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    return {"tflops": each(work), "gigabytes_per_second": each(copies)} | hardware(str(check.device)) | versions


# ---- exactness


def operations(check: Check) -> dict:
    """Compare operations outside networks on the device with the CPU: the largest relative difference."""
    side, frames = 64, 4

    def inputs(device) -> tuple[Tensor, Tensor, Motion]:
        x = check.random(frames, 3, side, side, device=device) * 2 - 1
        flow = resize(check.random(frames, 2, 8, 8, device=device) * 8 - 4, (side, side))
        masks = [(check.random(1, frames - 1, 1, side, side + k)[..., :side] > 0.9).float().to(device) for k in (0, 1)]
        motion = Motion(flow[None, :-1], -flow[None, :-1], *masks)
        return x, flow, motion

    def guided(form: str, device) -> Tensor:
        x, _, motion = inputs(device)
        return MotionGuidance(motion, Schedule.linear_sd().respaced(4), form=form)(x[None], 1)

    work: dict[str, Callable[[Any], Tensor]] = {
        "flow_warp": lambda device: flow_warp(*inputs(device)[:2]),
        "warp_validity": lambda device: warp_validity(inputs(device)[1]).float(),
        "occlusion": lambda device: forward_backward_occlusion(inputs(device)[1], -inputs(device)[1])[0].float(),
        "guidance, paper": partial(guided, "paper"),
        "guidance, released": partial(guided, "released"),
        "adain": lambda device: adain_color_fix(inputs(device)[0], inputs(device)[0].flip(0)),
        "wavelet": lambda device: wavelet_color_fix(inputs(device)[0], inputs(device)[0].flip(0)),
        "resize": lambda device: resize(inputs(device)[0], (side * 4, side * 4)),
    }

    def compared(fn: Callable[[Any], Tensor]) -> dict:
        there, here = fn(check.device).cpu(), fn("cpu")
        off = (there - here).abs()
        return {"largest": (off.max() / here.abs().max()).item(), "above_1e-4": (off > 1e-4).float().mean().item()}

    return {"differences": each((name, partial(compared, fn)) for name, fn in work.items())}


def embedded(check: Check) -> dict:
    """Measure the embedded model in each precision, and its PSNR against float32 on the CPU."""
    small = check.networks_size == "toy"
    frames, (h, w) = (2, (16, 16)) if small else (9, (90, 160))
    lq = moving_clip(check, frames, h, w)
    words = ["+method.params.sampling.params.steps=1"] if small else []
    reference = load_method(overrides=words).restore(lq)

    def run(precision: str) -> dict:
        method = load_method(overrides=[*words, f"+method.params.precision={precision}"], device=str(check.device))
        out = method.restore(lq)
        error = (out.cpu() - reference).square().mean().clamp_min(1e-12)
        return check.measured(lambda: method.restore(lq), repeat=1) | {"psnr": (-10 * error.log10()).item()}

    found = each((precision, partial(run, precision)) for precision in check.size.precisions)
    return {"clip": [frames, h, w], "precisions": found}


def golden(check: Check) -> dict:
    """Run the golden tests on the device."""
    command = [sys.executable, "-m", "pytest", "tests/test_golden.py", "--tb=line", "-p", "no:cacheprovider"]
    wheels = [path for path in sys.path if path.endswith(".whl")]
    paths = os.pathsep.join([*wheels, os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"GOLDEN_DEVICE": str(check.device), "PYTHONPATH": paths}
    options = {"cwd": ROOT, "env": variables, "timeout": GOLDEN_SECONDS}
    done = subprocess.run([*command, *check.size.golden], capture_output=True, text=True, check=False, **options)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return {"status": done.returncode, "summary": lines[-1:], "failures": [x[:300] for x in lines if "FAILED" in x]}


# ---- stages


def stages(check: Check) -> dict:
    """Measure each network in every precision, with channels-last and contiguous weights."""
    found = {}
    for layout in ("channels_last", "contiguous"):
        networks = check.networks if layout == "channels_last" else contiguous(check.networks)
        for precision in check.size.precisions:
            work = stage_work(check, networks).items()
            found[f"{precision}, {layout}"] = each(
                (name, partial(one_stage, check, precision, *its)) for name, its in work
            )
    flow, small = check.networks["flow"], [4 * side // 2 for side in check.size.frame]
    pair = check.random(1, 2, 3, *small)

    with torch.no_grad():
        work = partial(check.measured, lambda: estimate_motion(flow, pair, size=check.size.frame))
        found["flow"] = each([("pair", work)])
    return {"tile": check.size.tile, "frame": check.size.frame, "configurations": found}


def contiguous(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Return copies of all networks but the flow with weights in the contiguous layout."""
    copies = {name: copy.deepcopy(networks[name]) for name in ("unet", "structure", "autoencoder", "sequence_decoder")}
    for network in copies.values():
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
    return copies


def stage_work(check: Check, networks: dict[str, nn.Module]) -> dict[str, tuple[Work, Callable[[], object]]]:
    """Return the calls of each stage: 5 frames of a tile for sampling, 1 frame to encode, 5 full frames to decode."""
    (h, w), tile, n = check.size.frame, check.size.tile, 5
    f, unet = networks["autoencoder"].downsampling, networks["unet"]
    channels = networks["autoencoder"].post_quant_conv.in_channels
    z, latents = check.random(n, channels, tile, tile), check.random(n, channels, h, w)
    pictures, step = check.random(n, 3, h * f, w * f), torch.tensor([500], device=check.device)
    maps = [check.random(n, unet.semb_channels, tile >> k, tile >> k) for k in range(unet.levels)]
    context, decoder = check.random(1, TOKENS, unet.context_dim), networks["sequence_decoder"]
    sampled = Work(1, n, (tile, tile))
    return {
        "structure": (sampled, lambda: networks["structure"](z, step)),
        "unet": (sampled, lambda: unet(z, step, context, maps, num_frames=n)),
        "encode": (Work(1, 1, (h, w)), lambda: networks["autoencoder"].encode(pictures[:1])),
        "decode": (Work(1, n, (h, w)), lambda: decoder.decode(latents, decoder.encode(pictures)[1], num_frames=n)),
    }


def one_stage(check: Check, precision: str, work: Work, run: Callable[[], object]) -> dict:
    with inference(check, precision):
        return check.measured(run, repeat=2) | {"frames": work.frames}


# ---- faster


def faster(check: Check) -> dict:
    """Measure the U-Net with autocast, with bf16 weights, as a CUDA graph and compiled."""
    networks = check.networks
    _, run = stage_work(check, networks)["unet"]
    half = {"unet": copy.deepcopy(networks["unet"]).bfloat16()}
    _, run_half = stage_work(check, networks | half)["unet"]

    def autocast() -> dict:
        with inference(check, "bf16"):
            return check.measured(run)

    def bare() -> dict:
        with torch.no_grad():
            return check.measured(run_half)

    def graph() -> dict:
        if not check.is_cuda:
            return {"skipped": "no CUDA"}
        with torch.no_grad():
            for _ in range(3):
                run_half()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                run_half()
            return check.measured(captured.replay)

    def compiled() -> dict:
        if not check.is_cuda:
            return {"skipped": "no CUDA"}
        half["unet"].compile(dynamic=False)
        with torch.no_grad():
            return {"compile_seconds": seconds_of(run_half, check.device)} | check.measured(run_half)

    ways = [("autocast", autocast), ("half weights", bare), ("CUDA graph", graph), ("compiled", compiled)]
    return {"unet": each(ways)}


def arithmetic(check: Check) -> dict:
    """Return the GFLOP of each stage of `stages`, counted on the meta device."""
    work = {name: its[0] for name, its in stage_work(check, check.networks).items()}
    return {name: flops_of(check.bare_networks, name, its) / 1e9 for name, its in work.items()}


STEPS = {
    "rates": rates,
    "operations": operations,
    "embedded": embedded,
    "golden": golden,
    "stages": lambda check: stages(check) | {"gigaflops": arithmetic(check)},
    "clip": clip,
    "faster": faster,
    "training": training,
}
