"""Measure time, arithmetic and memory of each stage of restoring one temporal window.

python scripts/profile_upscale.py --size full -o profile.json
python scripts/profile_upscale.py --size full --device cuda --precision fp16 --stages unet decode

Weights are random: time does not depend on them. Words like flow=dis change a setting of the model's configuration.
The rates of a matrix product and of a 3x3 convolution, measured between the stages, serve as yardsticks: best of all.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ldm import config
from ldm.engine.device import Peak, hardware, usable_device
from ldm.files import write_whole
from ldm.methods.mgld.restoration import FLOW_SCALE
from ldm.methods.words import PRECISIONS
from ldm.nets.layers import channels_last
from ldm.ops.flow import estimate_motion
from scripts.command import Parser, exit_status, explained, first_line, positive_int, size_from, tell

PROGRAM = "profile_upscale.py"
ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "toy": ROOT / "tests" / "methods" / "toy.yaml",  # the smallest networks of the tests
    "tiny": ROOT / "assets" / "tiny" / "model.yaml",  # the embedded model
    "full": ROOT / "configs" / "mgldvsr" / "mgldvsr_512_realbasicvsr_deg.yaml",  # the published one
}
STAGES = {  # stage: its network
    "flow": "flow", "encode": "autoencoder", "structure": "structure", "unet": "unet", "decode": "sequence_decoder",
}  # fmt: skip
TOKENS = 77  # of a prompt


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add, size = parser.add_argument, size_from(1, "HEIGHTxWIDTH like 64x64")
    add("overrides", nargs="*", metavar="key=value", help="change a setting of the configuration")
    add("--size", choices=SIZES, default="tiny", help="of the networks (default: tiny, the embedded model)")
    add("--latent", type=size, default=(64, 64), help="of the window, in latent pixels (default: 64x64)")
    add("--frames", type=positive_int, default=5, help="of the window (default: 5)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--precision", choices=list(PRECISIONS), default="fp32", help="of the networks (default: fp32)")
    add("--compile", action="store_true", help="torch.compile the U-Net and the sequence decoder (default: no)")
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="what to measure (default: all)")
    add("--steps", nargs="+", type=positive_int, default=[50, 4], help="sampling steps to add up for (default: 50 4)")
    add("--repeat", type=positive_int, default=2, help="timed runs of each stage, the best counts (default: 2)")
    add("-o", "--output", type=Path, help="a JSON file for all figures")
    args = parser.parse_args(words)
    if args.output and not args.output.parent.is_dir():
        raise ValueError(f"{args.output}: no such folder; make it first")
    return args


class Machine:
    """A device: seconds and memory of work on it, and its yardsticks (FLOP/s, the best so far)."""

    def __init__(self, device: str | None, precision: str):
        device = usable_device(device)
        self.device, self.rates = torch.device(device), {"product": 0.0, "conv": 0.0}
        draw = partial(torch.randn, device=device, dtype=PRECISIONS[precision] or torch.float32)
        square, kernel = draw(2048, 2048), draw(320, 320, 3, 3).to(memory_format=torch.channels_last)
        maps = draw(5, 320, 64, 64).to(memory_format=torch.channels_last)
        self._yardsticks = {
            "product": (2 * 2048**3, lambda: square @ square),
            "conv": (2 * 9 * 320 * 320 * maps[:, 0].numel(), lambda: F.conv2d(maps, kernel, padding=1)),
        }

    def seconds(self, work: Callable[[], object]) -> float:
        """How long work() takes."""
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def measure_rates(self, times: int = 2) -> None:
        """Measure the yardsticks once more."""
        for name, (flops, work) in self._yardsticks.items():
            self.rates[name] = max([self.rates[name], *(flops / self.seconds(work) for _ in range(times))])

    def peak(self, work: Callable[[], object]) -> int:
        """Peak memory in bytes during work(): of the graphics card, else of this process, weights included."""
        peak = Peak(str(self.device))
        peak.reset()
        work()
        self._wait()
        return peak.read()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def count_flops(work: Callable[[], object]) -> int:
    """Multiplications and additions in products, convolutions and attention during work()."""

    def attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
        return sdpa_flop_count(query, key, value)

    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}  # which torch does not count
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        work()
    return counter.get_total_flops()


def compiled(net: nn.Module, work: Callable[[], object]) -> bool:
    """Compile a network in place and try it; on failure it stays as it was, and one line says why."""
    try:
        net.compile()
        work()
    except Exception as error:  # whatever the compiler raises
        net._compiled_call_impl = None
        logging.getLogger("scripts.profile_upscale").warning(f"not compiled: {first_line(error)}")
        return False
    return True


def stages_of(args: argparse.Namespace, device: torch.device) -> dict[str, tuple[Callable, nn.Module | None]]:
    """`{stage: (work, network to compile)}` on random inputs. Raises ConfigError or ValueError."""
    networks = config.load(SIZES[args.size], overrides=args.overrides).networks
    nets = {stage: config.instantiate(networks[STAGES[stage]]) for stage in args.stages}
    nets = {stage: channels_last(net).to(device).eval().requires_grad_(False) for stage, net in nets.items()}
    draw, (h, w), n = partial(torch.rand, device=device), args.latent, args.frames
    scale = 2 ** (len(networks.autoencoder.params.ch_mult) - 1)  # pixels per latent pixel
    z, frames, step = draw(n, 4, h, w), draw(n, 3, h * scale, w * scale), torch.tensor([500], device=device)
    small = draw(1, n, 3, h * scale // FLOW_SCALE, w * scale // FLOW_SCALE)
    maps = context = None
    if unet := nets.get("unet"):
        maps = [draw(n, unet.semb_channels, h >> level, w >> level) for level in range(unet.levels)]
        maps = [each.to(memory_format=torch.channels_last) for each in maps]
        width = next((m.in_features for name, m in unet.named_modules() if name.endswith("attn2.to_k")), 1)
        context = draw(1, TOKENS, width)
    work = {
        "flow": lambda: estimate_motion(nets["flow"], small, size=(h, w)),
        "encode": lambda: [nets["encode"].encode(frame[None]) for frame in frames],  # one by one, as the method
        "structure": lambda: nets["structure"](z, step),
        "unet": lambda: nets["unet"](z, step, context, maps, num_frames=n),
        "decode": lambda: nets["decode"].decode(z, nets["decode"].encode(frames)[1], num_frames=n),
    }
    compilable = {"unet": unet, "decode": getattr(nets.get("decode"), "decoder", None)} if args.compile else {}
    return {stage: (work[stage], compilable.get(stage)) for stage in args.stages}


@contextlib.contextmanager
def inference(device: torch.device, precision: str) -> Iterator[None]:
    """As the method runs its networks."""
    dtype = PRECISIONS[precision]
    with torch.no_grad(), torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
        yield


def measure(work: Callable[[], object], machine: Machine, *, repeat: int, to_compile: nn.Module | None = None) -> dict:
    """Seconds (of the best run), FLOPs and peak memory of a stage.

    FLOPs are counted before compilation, which hides them; that run is also the warm-up.
    """
    figures = {"flops": count_flops(work)}
    if to_compile is not None:
        figures["compiled"] = compiled(to_compile, work)
    machine.measure_rates()
    figures["peak_bytes"] = machine.peak(work)
    figures["seconds"] = min(machine.seconds(work) for _ in range(repeat))
    machine.measure_rates()
    return figures | {"flops_per_second": figures["flops"] / figures["seconds"]}


def profile(args: argparse.Namespace) -> dict:
    """All figures, with what was measured on what. Raises ValueError for what cannot be run."""
    machine, stages = Machine(args.device, args.precision), {}
    for stage, (work, net) in stages_of(args, machine.device).items():
        with inference(machine.device, "fp32" if stage == "flow" else args.precision):  # as the method
            stages[stage] = measure(work, machine, repeat=args.repeat, to_compile=net)
    for figures in stages.values():
        figures |= {f"share_of_{name}": figures["flops_per_second"] / rate for name, rate in machine.rates.items()}
    asked = {name: getattr(args, name) for name in ("size", "overrides", "latent", "frames", "precision", "compile")}
    device = str(machine.device)
    on = {"device": device, "hardware": hardware(device)["name"], "threads": torch.get_num_threads()}
    on |= {"load": os.getloadavg(), "torch": torch.__version__, "python": platform.python_version()}
    totals = {str(steps): seconds_per_frame(stages, args.frames, steps) for steps in args.steps}
    return asked | on | {"rates": machine.rates, "stages": stages, "seconds_per_frame": totals}


def seconds_per_frame(stages: dict[str, dict], frames: int, steps: int) -> float | None:
    """Of a clip of one window; None where a stage was not measured. Windows that overlap cost more."""
    if set(stages) != set(STAGES):
        return None
    times = {"structure": steps, "unet": steps}
    return sum(figures["seconds"] * times.get(stage, 1) for stage, figures in stages.items()) / frames


def table(figures: dict) -> str:
    """The figures as text."""
    (h, w), rates = figures["latent"], {name: rate / 1e9 for name, rate in figures["rates"].items()}
    what = f"{figures['size']} networks, {figures['frames']} frames of {h}x{w} latents, {figures['precision']}"
    on = f"{figures['hardware']} ({figures['device']}, {figures['threads']} threads), torch {figures['torch']}"
    bare = f"bare rates: matrix product {rates['product']:.0f} GFLOP/s, 3x3 convolution {rates['conv']:.0f} GFLOP/s"
    row = "{:<10} {:>10} {:>10} {:>10} {:>11} {:>8} {:>9}"
    lines = [what, on, bare, row.format("stage", "seconds", "GFLOP", "GFLOP/s", "of product", "of conv", "peak MB")]
    for stage, its in figures["stages"].items():
        amounts = f"{its['seconds']:.3f}", f"{its['flops'] / 1e9:.1f}", f"{its['flops_per_second'] / 1e9:.1f}"
        shares = f"{its['share_of_product']:.0%}", f"{its['share_of_conv']:.0%}", f"{its['peak_bytes'] / 1e6:.0f}"
        lines.append(row.format(stage, *amounts, *shares))
    for steps, seconds in figures["seconds_per_frame"].items():
        lines += [] if seconds is None else [f"{seconds:.2f} s per frame with {steps} steps, windows without overlap"]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> None:
    figures = profile(args)
    tell(*table(figures).splitlines())
    if args.output:
        write_whole(args.output, (json.dumps(figures, indent=2) + "\n").encode())


def explain(error: Exception) -> str | None:
    """One line for an error of the user or the machine."""
    return first_line(error) if isinstance(error, torch.OutOfMemoryError) else explained(error)


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), explain=explain)


if __name__ == "__main__":
    sys.exit(main())
