"""Upscale a video, an image, a folder of images, or a folder of such clips.

python scripts/upscale.py -i clip.mp4 -o results/clip.mp4 --compare
python scripts/upscale.py -i frames/ -o results/frames --weights checkpoints/ --ddpm_steps 50

Words like method.params.windows.params.batch=2 change settings of the model.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while waiting are slow on a busy machine

from ldm.engine import provenance
from ldm.engine.flags import known_flags
from ldm.engine.jobs import Job, find_jobs
from ldm.video.source import DAMAGED
from scripts.command import (
    DEVICE,
    Parser,
    add_trust,
    exit_status,
    log_to_terminal,
    non_negative_int,
    positive_int,
    tell,
)
from scripts.upscale_jobs import explain, restore_all, restore_free, status_of, weights_of

PROGRAM = "upscale.py"
SHARD = "of several clips, do every n-th from the i-th, or auto: all that no other process has taken (default: all)"
STOPPED = "interrupted; the same command resumes"
AUTO = "auto"  # of --shard: clips are shared by claims
SPLITS, ENGINES = ("scenes",), ("ray",)


def positive(text: str) -> float:
    """Argument type: a finite number above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return float(text)


NUMBERS = {"positive_int": positive_int, "non_negative_int": non_negative_int, "number": float}
FLAG_TYPES = {"word": str, "text": str, **NUMBERS}


def seconds(text: str) -> float:
    return positive(text.removesuffix("s"))


def part_of(text: str) -> tuple[int, int] | str:
    """Argument type of --shard: (i, n), or "auto"."""
    if text == AUTO:
        return text
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected i/n with i from 1 to n, such as 1/4, or auto")
    return int(index), int(count)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `flags` are the given flags of the model by name."""
    parser = Parser(PROGRAM, __doc__)
    add_trust(parser)
    add_files(parser.add_argument_group("files"))
    add_flags(parser.add_argument_group("settings of the model (default: its configuration); in brackets: families"))
    add_running(parser.add_argument_group("running"))
    args = parser.parse_with_overrides(words, ("weights", "config"))
    args.flags = given_flags(args)
    return args


def add_files(group) -> None:
    add = group.add_argument
    add("-i", "--input", type=Path, help="video, image, folder of images, or folder of such clips")
    add("-o", "--output", type=Path, help=".mp4 .mkv .mov .png; no suffix: a folder (of PNGs, of clips)")
    add("--weights", nargs="+", default=[], metavar="PATH", help="folder or weight files (default: the embedded model)")
    add("--config", nargs="+", default=[], metavar="YAML", help="model configuration (default: that of the weights)")
    add("--preset", help="a file of configs/presets merged last, such as released (default: none)")
    add("--crf", type=non_negative_int, default=18, help="H.264 quality, 0 (best) to 51 (default: 18)")
    add("--lossless", action="store_true", help="store every pixel of a video exactly, as RGB (default: no)")
    add("--codec", help="h264, hevc, prores or ffv1 (default: what keeps the most of the input)")
    add("--depth", type=positive_int, help="bits per sample: 8, 10, 12 or 16 (default: those of the input)")
    add("--start", type=non_negative_int, default=0, help="frames to leave out at the beginning (default: 0)")
    add("--max_frames", type=positive_int, help="frames to restore at most (default: all)")
    add("--damaged", choices=DAMAGED, default="stop", help="at a damaged frame: stop, or repeat the one before (stop)")
    add("--compare", action="store_true", help="also draw input and output into OUTPUT.compare.png (default: no)")
    add("--verify", type=Path, metavar="JSON", help="only check the hashes in the JSON file beside an output")
    add("--overwrite", action="store_true", help="replace a folder that holds PNGs; files always are (default: no)")


def add_flags(group) -> None:
    """Add the flags that the families declare in their YAML files."""
    for name, flag in known_flags().items():
        families = f"{flag.help} [{', '.join(flag.families)}]"
        if flag.kind == "switch":
            group.add_argument(f"--{name}", action="store_true", help=families)
        else:
            group.add_argument(f"--{name}", type=FLAG_TYPES[flag.kind], choices=flag.choices or None, help=families)


def given_flags(args: argparse.Namespace) -> dict:
    """Remove the flags of the model from parsed arguments, and return those that were given."""
    flags = {name: vars(args).pop(name) for name in known_flags()}
    return {name: value for name, value in flags.items() if value is not None and value is not False}


def add_running(group) -> None:
    add = group.add_argument
    add("--upscale", type=positive, default=4.0, help="output size over input size (default: 4)")
    add("--seed", type=non_negative_int, default=42, help="of the noise (default: 42)")
    add("--device", help=DEVICE)
    add("--memory", metavar="SIZE", help="memory to use, such as 12G (default: all free memory)")
    add("--preview", type=seconds, metavar="2s", help="restore only this much, to OUTPUT.preview, estimate the rest")
    add("--shard", type=part_of, default=(1, 1), metavar="i/n", help=SHARD)
    add("--split", choices=SPLITS, help="share parts of a film with processes that run the same command (default: no)")
    add("--engine", choices=ENGINES, help="ray: one worker per GPU or machine of a Ray cluster (default: this process)")
    add("--save_every", type=positive_int, default=16, metavar="N", help="frames between savings (default: 16)")
    add("--keep-work", action="store_true", help="keep the work folder OUTPUT.work when all is done (default: no)")
    add("--verbose", action="store_true", help="print more messages, and tracebacks of errors (default: no)")


def check_sharing(args: argparse.Namespace) -> None:
    """Raise ValueError for arguments with which several processes would do the same work."""
    shared = {"--engine ray": args.engine, "--split scenes": args.split, "--shard auto": args.shard == AUTO}
    how = next((word for word, given in shared.items() if given), None)
    for name in ("overwrite", "preview"):
        if how and getattr(args, name):
            raise ValueError(f"got --{name} with {how}, expected it without: every process would make everything")
    if args.engine and args.split and args.keep_work:
        raise ValueError(
            "got --keep-work with --engine ray and --split, expected it without: its folder means work left"
        )


def restore_on_cluster(jobs: list[Job], args: argparse.Namespace) -> int:
    """Restore all jobs on a Ray cluster, and return the exit status."""
    for name in ("weights", "config"):  # workers may start in other folders
        words = getattr(args, name)
        setattr(args, name, [str(Path(word).absolute()) if Path(word).exists() else word for word in words])
    try:
        from scripts.ray_workers import restore_all_on_ray
    except ImportError:
        raise ValueError("got --engine ray without Ray, expected it: pip install -c constraints.txt '.[ray]'") from None
    return status_of(len(restore_all_on_ray(jobs, args, log=tell)), len(jobs))


def verify(path: Path) -> int:
    """Compare the files of a record with it, print the results, and return the exit status."""
    results = provenance.verify(path)
    for what, result in results:
        tell(f"{what}: {result}")
    return 0 if all(result == "as recorded" for _, result in results) else 2


def run(args: argparse.Namespace) -> int:
    if args.verbose:
        log_to_terminal(PROGRAM, logging.DEBUG)
    if args.verify:
        return verify(args.verify)
    if args.input is None or args.output is None:
        raise ValueError("got no -i/--input and -o/--output, expected both (--help lists the options)")
    check_sharing(args)
    jobs = find_jobs(args.input, args.output, shard=(1, 1) if args.shard == AUTO else args.shard)
    if args.engine:
        return restore_on_cluster(jobs, args)
    if args.shard == AUTO and not args.split:
        return restore_free(jobs, args)
    return restore_all(jobs, lambda: weights_of(args), args)


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped=STOPPED, explain=explain)


if __name__ == "__main__":
    sys.exit(main())
