"""Convert a .ckpt, .pth, .pt or .bin file to safetensors: weights only, without executing code in the file.

python scripts/convert_checkpoint.py mgldvsr_unet.ckpt [mgldvsr_unet.safetensors] [--half]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import torch
from torch import Tensor

from ldm import __version__
from ldm.weights import checkpoint
from scripts.command import Parser, exit_status, tell

PROGRAM = "convert_checkpoint.py"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    parser.add_argument("source", type=Path, help="file to read; optimizer states in it are left out")
    parser.add_argument("target", type=Path, nargs="?", help="file to write (default: the source's name, .safetensors)")
    parser.add_argument("--half", action="store_true", help="store float16 (not schedules and running statistics)")
    parser.add_argument("--force", action="store_true", help="overwrite the target")
    args = parser.parse_args(words)
    args.target = args.target or args.source.with_suffix(".safetensors")
    return args


def to_half(name: str, value: Tensor) -> Tensor:
    """Convert to float16, except values that need more precision. Raises ValueError for values beyond its range."""
    exact = name in checkpoint.SCHEDULE_BUFFERS or name.endswith(("running_mean", "running_var"))
    if exact or not value.is_floating_point():
        return value
    halved = value.to(torch.float16)
    if not halved.isfinite().all():
        raise ValueError(f"{name} holds {value.abs().max():g}, expected at most 65504 with --half; leave it out")
    return halved


def convert(source: Path, target: Path, *, half: bool = False, force: bool = False) -> str:
    """Write `target` and return a line that describes it. Raises ValueError or OSError."""
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; give another name or --force")
    state = checkpoint.read(source)
    for name, value in state.items():
        checkpoint.require_finite(name, value)
    if half:
        state = {name: to_half(name, value) for name, value in state.items()}
    metadata = {
        "source_name": source.name,
        "source_sha256": checkpoint.sha256(source),
        "tool": f"mgld-vsr {__version__} convert_checkpoint{' --half' if half else ''}",
    }
    checkpoint.save(target, state, metadata)
    kind = checkpoint.recognise(state) or "unknown kind"
    size = target.stat().st_size / 1e6
    return f"{target}: {len(state)} entries, {sum(v.numel() for v in state.values())} numbers, {size:.1f} MB ({kind})"


def run(args: argparse.Namespace) -> None:
    tell(convert(args.source, args.target, half=args.half, force=args.force))


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
