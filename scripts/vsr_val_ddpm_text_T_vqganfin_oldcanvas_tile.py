"""The test command of the released MGLD-VSR with its flags and defaults; it runs scripts/upscale.py, preset `released`.

Every folder of frames in --seqs-path becomes OUTDIR/FOLDER/NAME.png; only sequences k with k % n_gpus == select_idx are
restored. Differences: --precision autocast means fp16 on cuda and fp32 on the CPU; any number of frames and any size
are accepted, where the released command fails or leaves its padding in the result. The default number of sampling steps
is 1000, as released. Flags that have no effect in the released command have none here.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from ldm.engine.assemble import CONFIGS, Weights
from ldm.engine.device import usable_device
from ldm.engine.jobs import Job
from ldm.ops.color import COLOR_FIXES
from scripts import upscale, upscale_jobs
from scripts.command import DEVICE, Parser, exit_status, non_negative_int, positive_int

PROGRAM = Path(__file__).name
RELEASED = CONFIGS / "mgldvsr" / "model.yaml"
PRECISIONS = {"full": {}, "autocast": {"cuda": "fp16"}}


def arguments(
    words: list[str] | None = None, *, program: str = PROGRAM, description: str = __doc__, steps: int = 1000
) -> argparse.Namespace:
    """Parse the released flags; unknown ones are stored in `unknown`."""
    parser = Parser(program, description, allow_abbrev=False)
    add = parser.add_argument
    add("--seqs-path", "--seqs_path", type=Path, required=True, help="folder of folders of frames")
    add("--outdir", type=Path, required=True, help="folder to write to")
    add("--latent-dir", "--latent_dir", type=Path, help="folder for latents (only where latents are made)")
    add("--config", default=str(RELEASED), help="model configuration (default: the released model's)")
    add("--ckpt", type=Path, required=True, help="mgldvsr_unet.ckpt: U-Net, condition encoder, autoencoder, text, RAFT")
    add("--vqgan_ckpt", type=Path, required=True, help="video_vae_cfw.ckpt: the sequence decoder")
    add("--ddpm_steps", type=positive_int, default=steps, help=f"sampling steps (default: {steps})")
    add("--dec_w", type=float, default=0.5, help="weight of the input's features in the decoder (default: 0.5)")
    add("--colorfix_type", choices=list(COLOR_FIXES), default="nofix", help="(default: nofix)")
    add("--precision", choices=list(PRECISIONS), default="autocast", help="autocast: fp16 on cuda (default: autocast)")
    add("--n_frames", type=positive_int, default=5, help="frames per segment (default: 5)")
    add("--tile_overlap", type=non_negative_int, default=32, help="in latent pixels (default: 32)")
    add("--vqgantile_size", type=positive_int, default=960, help="patch in pixels (default: 960)")
    add("--vqgantile_stride", type=positive_int, default=750, help="in pixels (default: 750)")
    add("--upscale", type=upscale.positive, default=4.0, help="output size over input size (default: 4)")
    add("--input_size", type=positive_int, default=512, help="least short side to restore at (default: 512)")
    add("--seed", type=non_negative_int, default=42, help="of the noise (default: 42)")
    add("--n_gpus", type=positive_int, default=1, help="in how many parts the work is done (default: 1)")
    add("--select_idx", type=non_negative_int, default=0, help="which part this is, from 0 (default: 0)")
    add("--device", help=DEVICE)
    for name in ("--n_samples", "--n_iter", "--C", "--f"):
        add(name, help="accepted, without effect")
    args, args.unknown = parser.parse_known_args(words)
    return args


def translate(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments of scripts/upscale.py for the same job."""
    device = usable_device(args.device)
    precision = PRECISIONS[args.precision].get(device.partition(":")[0], "fp32")
    if args.precision == "autocast" and precision == "fp32":
        upscale_jobs.log.warning(f"autocast needs cuda, computing in fp32 on {device}")
    ignored = [f"--{name}" for name in ("n_samples", "n_iter", "C", "f") if getattr(args, name) is not None]
    if ignored := [*ignored, *(word for word in args.unknown if word.startswith("-"))]:
        upscale_jobs.log.warning(f"without effect: {' '.join(ignored)}")
    same = ("config", "ddpm_steps", "dec_w", "colorfix_type", "n_frames", "tile_overlap", "vqgantile_size")
    same += ("vqgantile_stride", "upscale", "seed")
    words = [word for name in same for word in (f"--{name}", str(getattr(args, name)))]
    words += ["--input", str(args.seqs_path), "--output", str(args.outdir), "--overwrite"]
    words += ["--preset", "released", "--device", device, "--precision", precision]
    return upscale.arguments([*words, f"+method.params.min_size={args.input_size}"])


def find_jobs(args: argparse.Namespace) -> list[Job]:
    """Return a job per sequence of this part, with its folder in OUTDIR. Raises ValueError."""
    if args.select_idx >= args.n_gpus:
        raise ValueError(f"got --select_idx {args.select_idx}, expected less than --n_gpus {args.n_gpus}")
    return upscale_jobs.sequence_jobs(args.seqs_path, args.outdir)[args.select_idx :: args.n_gpus]


def find_files(args: argparse.Namespace) -> Weights:
    """Return the weight files of the flags."""
    return Weights({"mgldvsr_unet": args.ckpt, "video_vae_cfw": args.vqgan_ckpt}, card=Path(args.config))


def run(args: argparse.Namespace) -> int:
    return upscale_jobs.restore_all(find_jobs(args), lambda: find_files(args), translate(args))


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), explain=upscale_jobs.explain)


if __name__ == "__main__":
    sys.exit(main())
