"""Measure time, arithmetic and memory of each part of a method, on the probes that also plan its memory.

python scripts/profile_upscale.py --config configs/mgldvsr/model.yaml -o profile.json
python scripts/profile_upscale.py --device cuda --precision fp16 --parts sampling decoding method.params.compiled=true

Weights are random: time does not depend on them. Words like flow=dis change a setting of the model's configuration.
The rates of a matrix product and of a 3x3 convolution, measured between the parts, serve as references: best of all.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import torch
from torch.nn import functional as F

from ldm.engine.assemble import CARD, EMBEDDED, Weights, build_method, read_settings
from ldm.engine.device import Peak, count_flops, hardware, is_out_of_memory, seconds_of, usable_device
from ldm.engine.restoring import model_of
from ldm.files import write_atomically
from ldm.methods.contract import Method, Request
from ldm.methods.geometry import MIN_SIDE
from ldm.methods.words import PRECISIONS
from scripts.command import DEVICE, Parser, add_trust, exit_status, explained, positive_int, tell
from scripts.host_share import host_share

PROGRAM = "profile_upscale.py"
HOST_LINE = (
    "{clip}, {frames} frames x{upscale:g}: {seconds:.2f} s of processor time, {networks:.2f} s in networks; "
    "outside {share:.1%}, {outside_per_frame:.3f} s per frame"
)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("--config", type=Path, default=EMBEDDED / CARD, metavar="YAML", help="of the model (default: the embedded one)")
    add("--side", type=positive_int, default=64, help="of the window, in latent pixels (default: 64)")
    add("--device", help=DEVICE)
    add("--precision", choices=list(PRECISIONS), default="fp32", help="of the networks (default: fp32)")
    add("--parts", nargs="+", default=[], help="parts of the method to measure (default: all)")
    add("--repeat", type=positive_int, default=2, help="timed runs of each part, the best counts (default: 2)")
    add("--clip", type=Path, help="instead restore this clip by the embedded model; share of time outside networks")
    add("--upscale", type=float, default=4.0, help="of --clip (default: 4)")
    add("--frames", type=positive_int, help="of --clip (default: all)")
    add("-o", "--output", type=Path, help="a JSON file for all figures")
    add_trust(parser)
    args = parser.parse_with_overrides(words, ("parts",))
    if args.output and not args.output.parent.is_dir():
        raise ValueError(f"{args.output}: no such folder; make it first")
    return args


class Machine:
    """A device: seconds and memory of work on it, and its reference rates (FLOP/s, the best so far)."""

    def __init__(self, device: str, precision: str) -> None:
        self.device, self.rates = torch.device(device), {"product": 0.0, "conv": 0.0}
        draw = partial(torch.randn, device=device, dtype=PRECISIONS[precision] or torch.float32)
        square, kernel = draw(2048, 2048), draw(320, 320, 3, 3).to(memory_format=torch.channels_last)
        maps = draw(5, 320, 64, 64).to(memory_format=torch.channels_last)
        self._references = {
            "product": (2 * 2048**3, lambda: square @ square),
            "conv": (2 * 9 * 320 * 320 * maps[:, 0].numel(), lambda: F.conv2d(maps, kernel, padding=1)),
        }

    def measure_rates(self) -> None:
        """Measure the reference rates again, twice each."""
        for name, (flops, work) in self._references.items():
            self.rates[name] = max(self.rates[name], *(flops / seconds_of(work, self.device) for _ in range(2)))

    def peak(self, work: Callable[[], object]) -> int:
        """Return the peak memory during `work()` in bytes: of the GPU, otherwise of this process; weights included."""
        peak = Peak(str(self.device))
        peak.reset()
        seconds_of(work, self.device)
        return peak.read()


def random_method(args: argparse.Namespace, device: str) -> Method:
    """Return the configured method with random weights. Raises ConfigError or ValueError."""
    found = Weights({}, args.config)
    words = [f"+method.params.precision={args.precision}", *args.overrides]
    settings = read_settings(found, overrides=words, trust=args.trust)
    return build_method(settings, found, device=device, unfilled=list(settings["networks"]))


def probes_of(method: Method, names: list[str]) -> dict[str, Callable]:
    """Return the probes of a method, or those with the given names. Raises ValueError for an unknown name."""
    probes = method.probes(method.levers()[0])
    for name in names:
        if name not in probes:
            raise ValueError(f"got part {name!r}, expected {', '.join(probes) or 'none: the method has no probes'}")
    return {name: probes[name] for name in names or probes}


def measure(work: Callable[[], object], machine: Machine, *, repeat: int) -> dict:
    """Return seconds (of the best run), FLOPs and peak memory of a part; counting FLOPs is the warm-up."""
    figures = {"flops": count_flops(work)}
    machine.measure_rates()
    figures["peak_bytes"] = machine.peak(work)
    figures["seconds"] = min(seconds_of(work, machine.device) for _ in range(repeat))
    machine.measure_rates()
    return figures | {"flops_per_second": figures["flops"] / figures["seconds"]}


def profile(args: argparse.Namespace) -> dict:
    """Return all figures, and what was measured on which machine. Raises ValueError."""
    device = usable_device(args.device)
    method = random_method(args, device)
    method.stream(Request((MIN_SIDE, MIN_SIDE)))  # compiles the networks, if asked for
    probes, machine = probes_of(method, args.parts), Machine(device, args.precision)
    parts = {name: measure(partial(run, args.side), machine, repeat=args.repeat) for name, run in probes.items()}
    for figures in parts.values():
        figures |= {f"share_of_{name}": figures["flops_per_second"] / rate for name, rate in machine.rates.items()}
    asked = {name: getattr(args, name) for name in ("overrides", "side", "precision")}
    on = {"device": device, "hardware": hardware(device)["name"], "threads": torch.get_num_threads()}
    on |= {"load": os.getloadavg(), "torch": torch.__version__, "python": platform.python_version()}
    return {"config": str(args.config), **asked, **on, "rates": machine.rates, "parts": parts}


def table(figures: dict) -> list[str]:
    """Return the figures as lines of text."""
    rates = {name: rate / 1e9 for name, rate in figures["rates"].items()}
    row = "{:<10} {:>10} {:>10} {:>10} {:>11} {:>8} {:>9}"
    lines = [
        f"{figures['config']}, latents of {figures['side']}x{figures['side']}, {figures['precision']}",
        f"{figures['hardware']} ({figures['device']}, {figures['threads']} threads), torch {figures['torch']}",
        f"references: matrix product {rates['product']:.0f} GFLOP/s, 3x3 convolution {rates['conv']:.0f} GFLOP/s",
        row.format("part", "seconds", "GFLOP", "GFLOP/s", "of product", "of conv", "peak MB"),
    ]
    for name, its in figures["parts"].items():
        amounts = f"{its['seconds']:.3f}", f"{its['flops'] / 1e9:.1f}", f"{its['flops_per_second'] / 1e9:.1f}"
        shares = f"{its['share_of_product']:.0%}", f"{its['share_of_conv']:.0%}", f"{its['peak_bytes'] / 1e6:.0f}"
        lines.append(row.format(name, *amounts, *shares))
    return lines


def run(args: argparse.Namespace) -> None:
    if args.clip:
        model = model_of(overrides=[f"method.params.precision={args.precision}", *args.overrides], device=args.device)
        figures = host_share(model, args.clip, upscale=args.upscale, frames=args.frames)
        tell(HOST_LINE.format(**figures))
    else:
        figures = profile(args)
        tell(*table(figures))
    if args.output:
        write_atomically(args.output, (json.dumps(figures, indent=2) + "\n").encode())


def explain(error: Exception) -> str | None:
    """Return the message of an error that a user can correct; None for a defect of the code."""
    return "out of memory; choose a smaller --side" if is_out_of_memory(error) else explained(error)


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), explain=explain)


if __name__ == "__main__":
    sys.exit(main())
