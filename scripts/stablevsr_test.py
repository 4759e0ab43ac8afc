"""The test command of the released StableVSR with its flags and defaults; it runs scripts/upscale.py.

Every folder of frames in --in_path becomes OUT_PATH/FOLDER/NAME.png with preset `released`, every sequence with noise
of its own: the released command seeds once for the whole run. --weights is the folder of the released model, which
that command fetches itself, with torchvision's raft_large_C_T_SKHT_V2-ff5fadd5.pth in it. Words like key=value change
settings, such as flow=dis.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from ldm.engine.assemble import Weights, find_weights
from scripts import upscale, upscale_jobs
from scripts.command import DEVICE, Parser, exit_status, positive_int

PROGRAM = Path(__file__).name
CONTROL = "controlnet"  # the sub-folder of --controlnet_ckpt


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The released flags, with the weights and the settings that this command takes beside."""
    parser = Parser(PROGRAM, __doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--in_path", type=Path, required=True, help="folder of folders of frames")
    add("--out_path", type=Path, default=Path("StableVSR_results"), help="(default: StableVSR_results)")
    add("--num_inference_steps", type=positive_int, default=50, help="sampling steps (default: 50)")
    add("--controlnet_ckpt", type=Path, help="folder that holds controlnet/ (default: that of the weights)")
    add("--weights", type=Path, default=Path("StableVSR"), help="the released pipeline's folder (default: StableVSR)")
    add("--device", help=DEVICE)
    return parser.parse_with_overrides(words)


def translate(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of scripts/upscale.py for the same job."""
    words = ["--input", str(args.in_path), "--output", str(args.out_path), "--weights", str(args.weights)]
    words += ["--ddpm_steps", str(args.num_inference_steps), "--preset", "released", "--overwrite"]
    words += ["--device", args.device] if args.device else []
    return upscale.arguments([*args.overrides, *words])


def find_files(args: argparse.Namespace) -> Weights:
    """Return the released weights, with the control network of --controlnet_ckpt. Raises FileNotFoundError."""
    found = find_weights(args.weights)
    if args.controlnet_ckpt is None:
        return found
    folder = args.controlnet_ckpt / CONTROL
    files = sorted(folder.glob("diffusion_pytorch_model.*"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no diffusion_pytorch_model.safetensors; name the folder that holds {CONTROL}/"
        )
    documents = {
        key: folder / path.name if path.parent.name == CONTROL else path for key, path in found.documents.items()
    }
    return replace(found, files={**found.files, CONTROL: files[-1]}, documents=documents)


def run(args: argparse.Namespace) -> int:
    jobs = upscale_jobs.sequence_jobs(args.in_path, args.out_path)
    return upscale_jobs.restore_all(jobs, lambda: find_files(args), translate(args))


def main(words: Sequence[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped=upscale.STOPPED, explain=upscale_jobs.explain)


if __name__ == "__main__":
    sys.exit(main())
