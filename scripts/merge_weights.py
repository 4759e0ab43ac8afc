"""Merge weights for few-step sampling with Stable Diffusion 2.1 into the published U-Net.

python scripts/merge_weights.py mgldvsr_unet.ckpt --lora tcd_sd21.safetensors -o few/mgldvsr_unet.safetensors
python scripts/merge_weights.py mgldvsr_unet.ckpt --unet sd_turbo.safetensors -o turbo/mgldvsr_unet.safetensors

--lora: low-rank weights for SD 2.1, with the names of diffusers or kohya (TCD-SD21-base). --unet: another SD 2.1 U-Net
(SD-Turbo), whose layers replace those that were frozen in training. SPADE, temporal layers and all other networks are
not changed; with --base, SD 2.1-base itself, neither are layers that differ from it. OUTPUT.json lists every changed
entry with the size of its change, and the hashes of all files. Then:

python scripts/upscale.py -i in.mp4 -o out.mp4 --weights few/ --preset four_steps
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from ldm import __version__
from ldm.files import write_atomically
from ldm.weights import checkpoint
from ldm.weights.merging import Merge, exchange_layers, merge_changes
from scripts.command import Parser, exit_status, tell

PROGRAM = "merge_weights.py"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("weights", type=Path, help="the file of stage 1: mgldvsr_unet")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--lora", type=Path, metavar="FILE", help="low-rank changes")
    what.add_argument("--unet", type=Path, metavar="FILE", help="another U-Net of SD 2.1")
    add("--scale", type=float, default=1.0, help="strength of --lora (default: 1)")
    add("--base", type=Path, metavar="FILE", help="SD 2.1-base: only layers equal to it change (default: all frozen)")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the new file, .safetensors")
    add("--force", action="store_true", help="overwrite the output")
    args = parser.parse_args(words)
    if args.unet and args.scale != 1.0:
        raise ValueError("got --scale with --unet, expected it with --lora alone")
    return args


def merge(args: argparse.Namespace) -> Merge:
    """Read all files and merge them. Raises CheckpointError or OSError."""
    base = checkpoint.read(args.base) if args.base else None
    other, state = checkpoint.read(args.lora or args.unet), checkpoint.read(args.weights)
    for name, value in other.items():
        checkpoint.require_finite(name, value)
    if args.lora:
        return merge_changes(state, other, scale=args.scale, base=base)
    return exchange_layers(state, other, base=base)


def record_of(args: argparse.Namespace, merged: Merge) -> dict:
    """Return the record of a merge: hashes of the files, changed entries, and unchanged ones by reason."""
    files = {name: getattr(args, name) for name in ("weights", "lora", "unet", "base") if getattr(args, name)}
    return {
        "tool": f"mgld-vsr {__version__} merge_weights",
        "files": {name: {"name": path.name, "sha256": checkpoint.sha256(path)} for name, path in files.items()},
        "scale": args.scale,
        "changed": {name: round(change, 6) for name, change in merged.changed.items()},
        "left": {reason: names for reason, names in merged.left.items() if names},
    }


def report(record: dict) -> list[str]:
    """Return lines on changed and unchanged entries."""
    kinds = {"attention": "transformer_blocks", "other convolutions, norms and projections": ""}
    lines, rest = [], dict(record["changed"])
    for kind, part in kinds.items():
        sizes = [rest.pop(name) for name in list(rest) if part in name]
        if sizes:
            by = f"{min(sizes):.4f} to {max(sizes):.4f}"
            lines.append(f"changed {len(sizes)} entries of {kind}: by {by} of their size")
    return lines + [f"left alone: {len(names)} of {reason}" for reason, names in record["left"].items()]


def run(args: argparse.Namespace) -> None:
    beside = args.output.with_name(args.output.name + ".json")
    for path in (args.output, beside):
        if path.exists() and not args.force:
            raise FileExistsError(f"{path} exists; give another name or --force")
    merged = merge(args)
    record = record_of(args, merged)
    hashes = {f"{name}_sha256": its["sha256"] for name, its in record["files"].items()}
    checkpoint.save(args.output, merged.state, hashes | {"tool": record["tool"], "scale": args.scale})
    record["sha256"] = checkpoint.sha256(args.output)
    write_atomically(beside, (json.dumps(record, indent=1) + "\n").encode())
    tell(*report(record), f"{args.output}: {len(merged.state)} entries; {beside.name} lists the changes")


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
