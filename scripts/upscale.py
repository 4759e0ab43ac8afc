"""Upscale a video, an image, a folder of images, or a folder of such clips.

python scripts/upscale.py -i clip.mp4 -o results/clip.mp4 --compare
python scripts/upscale.py -i frames/ -o results/frames --weights checkpoints/ --ddpm_steps 50

Words like method.params.windows.params.batch=2 change settings of the model.
"""

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while waiting are slow on a busy machine

from ldm import config, video
from ldm.engine import provenance
from ldm.engine.assemble import EMBEDDED, Weights, check_settings, find_weights, read_settings, with_precision
from ldm.engine.captions import captioned
from ldm.engine.claims import holder, take
from ldm.engine.device import is_out_of_memory, usable_device
from ldm.engine.finished import is_finished
from ldm.engine.flags import flag_words, known_flags
from ldm.engine.jobs import Job, JobOptions, Model, find_jobs, made_of, prepare, restore_job
from ldm.engine.plan import parse_bytes
from ldm.engine.restoring import rounding_of
from ldm.engine.resume import folder_beside, remove_partials
from ldm.engine.sharing import share
from ldm.engine.splitting import restore_split, split_folder
from ldm.picture import comparison
from ldm.printable import printable
from ldm.video.source import DAMAGED
from scripts.command import (
    Parser,
    add_trust,
    exit_status,
    explained,
    log_to_terminal,
    non_negative_int,
    positive_int,
    progress_bar,
    tell,
)

PROGRAM = "upscale.py"
SHARD = "of several clips, do every n-th from the i-th, or auto: all that no other process has taken (default: all)"
log = logging.getLogger("scripts.upscale")
STOPPED = "interrupted; the same command resumes"
AUTO = "auto"  # of --shard: clips are shared by claims
SPLITS, ENGINES = ("scenes",), ("ray",)
COMPARED = 64  # maximum number of frames, and of bytes, in the picture of --compare
COMPARED_BYTES = 10**9


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0")
    return float(text)


FLAG_TYPES = {"word": str, "positive_int": positive_int, "non_negative_int": non_negative_int, "number": float}


def seconds(text: str) -> float:
    return positive(text.removesuffix("s"))


def part_of(text: str) -> tuple[int, int] | str:
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
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--memory", metavar="SIZE", help="memory to use, such as 12G (default: what is free)")
    add("--preview", type=seconds, metavar="2s", help="restore only this much, to OUTPUT.preview, estimate the rest")
    add("--shard", type=part_of, default=(1, 1), metavar="i/n", help=SHARD)
    add("--split", choices=SPLITS, help="share parts of a film with processes that run the same command (default: no)")
    add("--engine", choices=ENGINES, help="ray: one worker per GPU or machine of a Ray cluster (default: this process)")
    add("--save_every", type=positive_int, default=16, metavar="N", help="frames between savings (default: 16)")
    add("--keep-work", action="store_true", help="keep the work folder OUTPUT.work when all is done (default: no)")
    add("--verbose", action="store_true", help="print more messages, and tracebacks of errors (default: no)")


def choose_settings(weights: Weights, args: argparse.Namespace):
    """Return the configuration with preset, flags and overrides applied, in this order."""
    settings = read_settings(weights, configs=args.config, preset=args.preset, trust=args.trust)
    return check_settings(config.override(settings, [*flag_words(settings, args.flags), *args.overrides]))


def options_of(args: argparse.Namespace) -> JobOptions:
    """Return the options of all clips."""
    names = ("upscale", "seed", "start", "max_frames", "crf", "lossless", "codec", "depth", "overwrite", "keep_work")
    return JobOptions(
        **{name: getattr(args, name) for name in (*names, "damaged", "save_every")},
        memory=parse_bytes(args.memory) if args.memory else None,
        preview=args.preview,
        skip_finished=not args.overwrite and args.preview is None,
    )


def is_up_to_date(job: Job, model: Model) -> bool:
    """Whether the output of a clip is the one that this command writes, and was not interrupted."""
    begun = folder_beside(job.output).exists() or split_folder(job.output).exists()
    return not begun and is_finished(job.output, made_of(job, model, "format"))


def skip_clip(job: Job, args: argparse.Namespace) -> Job:
    """Report that a clip is finished, and draw its picture of --compare if it is missing."""
    tell(f"{job.output}: finished before, from the same input, weights and settings (--overwrite makes it again)")
    if args.compare and not compare_path(job.output).exists():
        save_picture(compared(job), compare_path(job.output))
    return job


def restore_clip(job: Job, model: Model, args: argparse.Namespace, *, check: Callable[[], None] = lambda: None) -> Job:
    """Restore a clip, and print the time and memory that it took. The output is written atomically.

    `check()` is called after each network call and may raise an error.
    """
    began = time.perf_counter()
    with progress_bar(job.path.name) as bar:

        def report(*progress) -> None:
            check()
            bar(*progress)

        restore = restore_split if args.split else restore_job
        done = restore(job, model, report=report, warn=log.warning, log=tell)
    if done is None:  # others work on it
        return job
    if args.compare:
        save_picture(compared(job), compare_path(job.output))
    seconds, frames = time.perf_counter() - began, done["frames"]
    height, width = job.task.format.size
    took = f"{seconds:.1f} s, {seconds / frames:.2f} s per frame, peak memory {done['memory']['peak'] / 1e9:.2f} GB"
    tell(f"{job.output}: {frames} frame{'s' * (frames > 1)} of {width}x{height}, {took}")
    if job.options.preview is not None:
        tell(estimate(job, seconds / frames))
    return job


def estimate(job: Job, each: float) -> str:
    """Estimate the time of a whole clip from its preview. Memory does not depend on the number of frames."""
    whole = max(job.whole_clip * each, 1)
    time_taken = f"{whole / 60:.0f} min" if whole >= 120 else f"{whole:.0f} s"
    frames = f"all {job.whole_clip} frames" if job.whole_clip > 1 else "its one frame"
    return f"{job.path}: {frames} would take about {time_taken} at this rate, and the same memory"


def compared(job: Job):
    """Return the picture of --compare from the finished files; of a long clip, the middle part is shown."""
    task, (height, width) = job.task, job.task.format.size
    count = max(min(task.frames, COMPARED, COMPARED_BYTES // (height * width * 12)), 1)
    first = (task.frames - count) // 2
    lq = video.read_clip(task.source, start=task.start + first, stop=task.start + first + count)
    return comparison(lq, video.read_clip(job.output, start=first, stop=first + count))


def compare_path(output: Path) -> Path:
    return output.with_name(f"{output.stem if output.suffix else output.name}.compare.png")


def save_picture(picture, path: Path) -> None:
    with video.open_writer(path, size=picture.shape[:2]) as writer:
        writer.write(picture)


def weights_of(args: argparse.Namespace) -> Weights:
    return find_weights(*args.weights or (EMBEDDED,), configs=args.config)


def model_for(weights: Weights, args: argparse.Namespace) -> Model:
    """Return the model with the settings of the command line; it is built at first use."""
    device = usable_device(args.device)
    settings = with_precision(choose_settings(weights, args), device)
    return Model(weights, settings, device, rounding_of(settings))


def clip_restorer(args: argparse.Namespace) -> Callable[..., bool]:
    """Return restore(job, check) -> whether a clip was made, now or before; errors of a clip are logged.

    Everything about a clip is checked when its turn comes, since another process may have written its output.
    """
    options, model = options_of(args), model_for(weights_of(args), args)
    attempt = partial(attempt_all, alone=False)

    def restore(job: Job, check: Callable[[], None]) -> bool:
        good = attempt([job], lambda job: captioned(prepare(job, options, warn=log.warning), model))
        if good and is_up_to_date(good[0], model):
            if not args.split:  # this process has the claim on it
                remove_partials(job.output)
            return bool(attempt(good, partial(skip_clip, args=args)))
        if good:
            model.build()  # outside of the attempt: invalid weights end the command
        return bool(attempt(good, partial(restore_clip, model=model, args=args, check=check)))

    return restore


def restore_free(jobs: list[Job], args: argparse.Namespace) -> int:
    """Restore every clip that no other process has taken, and return the exit status."""
    if [job.path for job in jobs] == [args.input]:
        raise ValueError(f"got --shard auto for one clip, {args.input}, expected a folder of clips, or --split scenes")
    restore = clip_restorer(args)
    args.output.mkdir(parents=True, exist_ok=True)
    failed, left = share(jobs, lambda job, claim: restore(job, claim.check), place=lambda job: job.output)
    for job in left:
        tell(f"{job.output}: left to {holder(job.output)}, which is working on it")
    return status_of(failed, len(jobs))


def restore_claimed(path: Path, output: Path, args: argparse.Namespace, restore: Callable[..., bool]) -> str:
    """Restore a clip, or free parts of it, unless another process has it; return "made", "failed" or "left"."""
    claim = None if args.split else take(output)
    if claim is None and not args.split:
        return "left"
    with claim or contextlib.nullcontext():
        made = restore(Job(path, output), claim.check if claim else lambda: None)
    if args.split and made and split_folder(output).exists():
        return "left"
    return "made" if made else "failed"


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


def status_of(failed: int, count: int) -> int:
    """Return the exit status after so many of the inputs failed, and say so."""
    if failed:
        log.warning(f"{failed} of {count} inputs failed")
    return 2 if failed else 0


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


def restore_all(jobs: list[Job], find_files: Callable[[], Weights], args: argparse.Namespace) -> int:
    """Restore all jobs and return the exit status; weights are only searched for after the inputs are checked."""
    options = options_of(args)
    if not args.split and [job.path for job in jobs] == [args.input]:  # a single clip is always made again
        options = replace(options, skip_finished=False)
    attempt = partial(attempt_all, alone=len(jobs) == 1)
    good = attempt(jobs, partial(prepare, options=options, warn=log.warning))
    if good:
        model = model_for(find_files(), args)
        good = attempt(good, partial(captioned, model=model))
        done = [job for job in good if job.options.skip_finished and is_up_to_date(job, model)]
        for job in done:
            skip_clip(job, args)
        if left := [job for job in good if job not in done]:
            model.build()  # before any clip, so that invalid weights are reported once
            good = done + attempt(left, partial(restore_clip, model=model, args=args))
    return status_of(len(jobs) - len(good), len(jobs))


def verify(path: Path) -> int:
    """Compare the files of a record with it, print the results, and return the exit status."""
    results = provenance.verify(path)
    for what, result in results:
        tell(f"{what}: {result}")
    return 0 if all(result == "as recorded" for _, result in results) else 2


def attempt_all(jobs: list[Job], action: Callable[[Job], Job], *, alone: bool) -> list[Job]:
    """Return the jobs for which `action` succeeds; a failure is logged, or raised if there is only one job."""
    done = []
    for job in jobs:
        try:
            done.append(action(job))
        except Exception as error:
            if alone or (line := explain(error)) is None:
                raise
            log.warning("%s", line if printable(job.path) in line else f"{printable(job.path)}: {line}")
    return done


def explain(error: Exception) -> str | None:
    """Return the message of an error that a user can correct; None for a defect of the code."""
    log.debug("where the error arose", exc_info=error)
    if is_out_of_memory(error):
        return "out of memory with the smallest tiles; try --n_frames 3, --precision bf16 or a lower --upscale"
    return explained(error)


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
