"""The released command of Upscale-A-Video with its flags and defaults; it runs scripts/upscale.py, preset `released`.

A video, a folder of videos or a folder of frames becomes OUTPUT/video/NAME.mp4, NAME ending in the settings; with
--save_image its frames become OUTPUT/frame/NAME instead. Captions are not made: clip.txt beside clip.mp4 holds one, or
--no_llava does without. Differences: frames of any number and size work, where the released script fails or returns
grey, and a part that fails stops the clip and is named.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from ldm import config, video
from ldm.engine.assemble import find_weights
from ldm.engine.captions import caption_beside
from ldm.engine.jobs import Job
from scripts import upscale, upscale_jobs
from scripts.command import DEVICE, Parser, exit_status, non_negative_int, positive_int

PROGRAM = Path(__file__).name
SEED, SCALE = 10, 4  # of the released script
LARGE = 1280  # pixels; frames with both sides so large are shrunk before they are enlarged
COLOR_FIXES = {"None": "nofix", "AdaIn": "adain", "Wavelet": "wavelet"}


def name_part(text: str) -> str:
    if any(separator in text for separator in ("/", "\\", "\0")):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a part of a file's name, without folders")
    return text


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The released flags."""
    parser = Parser(PROGRAM, __doc__, allow_abbrev=False)
    add = parser.add_argument
    add("-i", "--input_path", type=Path, default=Path("inputs"), help="video, or folder of videos or frames (inputs)")
    add("-o", "--output_path", type=Path, default=Path("results"), help="folder to write to (results)")
    add("-n", "--noise_level", type=non_negative_int, default=120, help="0 to 350 (120)")
    add("-g", "--guidance_scale", type=int, default=6, help="weight of the prompts (6)")
    add("-s", "--inference_steps", type=positive_int, default=30, help="sampling steps (30)")
    add("-p", "--propagation_steps", default="", help="steps that propagate, such as 24,26,28 (none)")
    add("--a_prompt", default="best quality, extremely detailed", help="words behind the caption, without a space")
    add("--n_prompt", default="blur, worst quality", help="what the result should not look like")
    add("--use_video_vae", action="store_true", help="decode with vae_video, which sees the input (default: vae_3d)")
    add("--color_fix", choices=list(COLOR_FIXES), default="None", help="take the colours of the input (None)")
    add("--no_llava", action="store_true", help="without captions, except from text files beside clips")
    add("--perform_tile", action="store_true", help="cut small frames, too (default: from 384x384 pixels)")
    add("--tile_size", type=positive_int, default=256, help="side of a crop in pixels of the input (256)")
    add("--save_image", action="store_true", help="write frames instead of a video (default: no)")
    add("--save_suffix", type=name_part, default="", help="behind the name of the output")
    add("--pretrained_model_path", type=Path, default=Path("pretrained_models/upscale_a_video"), help="weights")
    add("--device", help=DEVICE)
    add("--load_8bit_llava", action="store_true", help="accepted, without effect")
    return parser.parse_args(words)


def translate(args: argparse.Namespace, *, scale: float) -> argparse.Namespace:
    """Return the arguments of scripts/upscale.py for the same job."""
    same = ("noise_level", "guidance_scale", "inference_steps")
    words = [word for name in same for word in (f"--{name}", str(getattr(args, name)))]
    words += ["--input", str(args.input_path), "--output", str(args.output_path), "--preset", "released"]
    words += ["--seed", str(SEED), "--upscale", str(scale), "--overwrite"]
    words += ["--vae", "vae_video" if args.use_video_vae else "vae_3d"]
    words += ["--colorfix_type", COLOR_FIXES[args.color_fix], *(["--device", args.device] if args.device else [])]
    settings = {
        "sampling.params.propagation_steps": args.propagation_steps,
        "crop": args.tile_size,
        "always_crop": str(args.perform_tile).lower(),
    }
    words += [f"+method.params.{key}={value}" for key, value in settings.items()]
    translated = upscale.arguments(words)
    prompts = {"ending": args.a_prompt, "negative_prompt": args.n_prompt}
    translated.overrides += [config.Text(f"method.params.words.params.{key}", text) for key, text in prompts.items()]
    return translated


def named(job: Job, args: argparse.Namespace) -> Job:
    """Return the job with the released name of its output."""
    words = [f"n{args.noise_level}", f"g{args.guidance_scale}", f"s{args.inference_steps}"]
    words += [f"p{args.propagation_steps.replace(',', '_')}"] if args.propagation_steps else []
    stem = job.path.stem if job.path.is_file() else job.path.resolve().name
    name = "_".join([stem, *words, *([args.save_suffix] if args.save_suffix else [])])
    folder = args.output_path / ("frame" if args.save_image else "video")
    return replace(job, output=folder / (name if args.save_image else f"{name}.mp4"))


def scale_of(job: Job) -> float:
    """Return the ratio of output to input size; large frames are first shrunk by 4."""
    source = video.probe(job.path)
    return 1 if min(source.width, source.height) >= LARGE else SCALE


def run(args: argparse.Namespace) -> int:
    jobs = [named(job, args) for job in upscale.find_jobs(args.input_path, args.output_path / "video")]
    if not args.no_llava:
        for job in jobs:
            if caption_beside(job.path) is None:
                what = f"{job.path}: got no caption; write {job.path.stem}.txt beside it, or give --no_llava"
                raise ValueError(f"{what} (captions are not made here)")
    status, by_scale = 0, {}
    for job in jobs:
        by_scale.setdefault(scale_of(job), []).append(job)
    for scale, group in by_scale.items():
        words = translate(args, scale=scale)
        status = max(status, upscale_jobs.restore_all(group, lambda: find_weights(args.pretrained_model_path), words))
    return status


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped=upscale.STOPPED, explain=upscale_jobs.explain)


if __name__ == "__main__":
    sys.exit(main())
