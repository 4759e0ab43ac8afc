"""Count the FLOPs of restoring a clip with the windows and tiles of the method, without computing it.

python scripts/clip_flops.py 320x180
python scripts/clip_flops.py 320x180 --preset released --steps 50 4
python scripts/clip_flops.py 320x180 +method.params.windows.params.tile_overlap=16

Networks and frames are on the meta device. FLOPs are those of the networks as defined (see
scripts/profile_upscale.py); feature maps that consecutive windows share are counted for each window. Optical flow is
not counted: RAFT needs about 0.15 TFLOP per frame of 1280x720.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import torch
from torch import nn

from ldm import config
from ldm.engine.assemble import find_preset
from ldm.engine.device import count_flops
from ldm.files import write_atomically
from ldm.methods.mgld.method import MGLD
from ldm.methods.mgld.released import ReleasedMGLD
from ldm.ops.tiling import splitter_starts
from scripts.command import Parser, exit_status, positive_int, size_from, tell

PROGRAM = "clip_flops.py"
ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "toy": ROOT / "tests" / "methods" / "toy.yaml",  # the smallest networks of the tests
    "tiny": ROOT / "assets" / "tiny" / "model.yaml",  # the embedded model
    "full": ROOT / "configs" / "mgldvsr" / "mgldvsr_512_realbasicvsr_deg.yaml",  # the published one
}
TOKENS = 77  # of a prompt
UPSCALE = 4.0


class Work(NamedTuple):
    """Calls of a network for a clip: number of calls, frames per call, and height and width in latent pixels."""

    calls: int
    frames: int
    latent: tuple[int, int]


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("frame", type=size_from(16, "WIDTHxHEIGHT like 320x180"), help="of the input, which is enlarged 4 times")
    add("--size", choices=SIZES, default="full", help="of the networks (default: full, the published ones)")
    add("--preset", help="released: its segments and patches")
    add("--frames", type=positive_int, default=1000, help="of the clip, one scene (default: 1000)")
    add("--steps", nargs="+", type=positive_int, default=[50, 4], help="sampling steps (default: 50 4)")
    add("-o", "--output", type=Path, help="a JSON file for the figures")
    return parser.parse_with_overrides(words)


def method_of(args: argparse.Namespace) -> MGLD:
    """Build the method without weights, on the meta device. Raises ConfigError or ValueError."""
    settings = config.load(SIZES[args.size])
    if args.preset:
        settings = config.merge(settings, find_preset(settings, args.preset))
    settings = config.override(settings, args.overrides)
    with torch.device("meta"):
        networks = {name: config.instantiate(node) for name, node in settings.networks.items()}
        for name, network in networks.items():
            if network.state_dict():
                networks[name] = network.to("meta")
    return config.instantiate(settings.method, networks=networks)


def work_of(method: MGLD, size: tuple[int, int], frames: int, *, steps: int) -> dict[str, Work]:
    """Return the calls of each network except optical flow for a clip of `size` (h, w) in pixels of the input."""
    latent, pieces, count = method.geometry(size, UPSCALE).latent, 1, frames
    f = method.networks["autoencoder"].downsampling
    if isinstance(method, ReleasedMGLD):
        count, pieces = method.n_frames, math.ceil(frames / method.n_frames)
        pieces *= math.prod(len(splitter_starts(side * f, method.patch, method.stride)) for side in latent)
        latent = tuple(min(side, method.patch // f) for side in latent)
    windows, decoding = method.windows, method.decoding.windows
    tile = tuple(min(windows.side(side), side) for side in latent)
    sampling = Work(pieces * windows.calls(count, *latent, steps=steps), min(windows.n_frames, count), tile)
    cut = method.decoding.norms == "tile"
    part = tuple(min(decoding.side(side), side) for side in latent) if cut else latent
    return {
        "encode": Work(pieces * count * (decoding.calls(1, *latent) if cut else 1), 1, part),
        "structure": sampling,
        "unet": sampling,
        "decode": Work(
            pieces * decoding.calls(count, *(latent if cut else (1, 1))), min(decoding.n_frames, count), part
        ),
    }


def flops_of(networks: Mapping[str, nn.Module], stage: str, work: Work) -> int:
    """Return the FLOPs of one call of a stage: "encode", "structure", "unet" or "decode"."""
    (h, w), f, n = work.latent, networks["autoencoder"].downsampling, work.frames
    z = torch.empty(n, networks["autoencoder"].post_quant_conv.in_channels, h, w, device="meta")
    frames, step = torch.empty(n, 3, h * f, w * f, device="meta"), torch.empty(1, device="meta")
    unet, decoder = networks["unet"], networks["sequence_decoder"]
    maps = [torch.empty(n, unet.semb_channels, h >> k, w >> k, device="meta") for k in range(unet.levels)]
    context = torch.empty(1, TOKENS, unet.context_dim, device="meta")
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: networks["autoencoder"].encode(frames),
        "structure": lambda: networks["structure"](z, step),
        "unet": lambda: unet(z, step, context, maps, num_frames=n),
        "decode": lambda: decoder.decode(z, decoder.encode(frames)[1], num_frames=n),
    }
    with torch.no_grad():
        return count_flops(calls[stage])


def count(args: argparse.Namespace) -> dict:
    """Return TFLOP per frame for each number of sampling steps, by stage and in total."""
    method, size = method_of(args), args.frame[::-1]
    figures = {"frame": args.frame, "frames": args.frames, "preset": args.preset, "overrides": args.overrides}
    known = {}
    for steps in args.steps:
        stages = {}
        for stage, work in work_of(method, size, args.frames, steps=steps).items():
            key = (stage, work.frames, work.latent)
            known[key] = known[key] if key in known else flops_of(method.networks, stage, work)
            stages[stage] = work.calls * known[key] / args.frames / 1e12
        figures[str(steps)] = {"stages": stages, "total": sum(stages.values())}
    return figures


def run(args: argparse.Namespace) -> None:
    figures = count(args)
    for steps in args.steps:
        its = figures[str(steps)]
        parts = ", ".join(f"{stage} {value:.2f}" for stage, value in its["stages"].items())
        tell(f"{steps} steps: {its['total']:.1f} TFLOP a frame ({parts})")
    if args.output:
        write_atomically(args.output, (json.dumps(figures, indent=1) + "\n").encode())


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
