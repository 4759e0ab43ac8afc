"""Restore the clips of a command line: skip finished outputs, log the failures, and report time and memory."""

import argparse
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ldm import config, video
from ldm.engine.assemble import EMBEDDED, Weights, check_settings, find_weights, read_settings
from ldm.engine.captions import captioned
from ldm.engine.claims import holder, take
from ldm.engine.device import is_out_of_memory
from ldm.engine.finished import is_finished
from ldm.engine.flags import flag_overrides
from ldm.engine.jobs import Job, JobOptions, Model, find_jobs, made_of, prepare, restore_job
from ldm.engine.plan import parse_bytes
from ldm.engine.restoring import model_with
from ldm.engine.resume import folder_beside, remove_partials
from ldm.engine.sharing import share
from ldm.engine.splitting import restore_split, split_folder
from ldm.picture import comparison
from ldm.printable import printable
from scripts.command import explained, progress_bar, tell

log = logging.getLogger("scripts.upscale")
COMPARED = 64  # maximum number of frames, and of bytes, in the picture of --compare
COMPARED_BYTES = 10**9


def choose_settings(weights: Weights, args: argparse.Namespace):
    """Return the configuration with preset, flags and overrides applied, in this order."""
    settings = read_settings(weights, configs=args.config, preset=args.preset, trust=args.trust)
    return check_settings(config.override(settings, [*flag_overrides(settings, args.flags), *args.overrides]))


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
        save_comparison(job)
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
        save_comparison(job)
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


def save_comparison(job: Job) -> None:
    """Write the picture of --compare from the finished files; of a long clip, the middle part is shown."""
    task, (height, width) = job.task, job.task.format.size
    count = max(min(task.frames, COMPARED, COMPARED_BYTES // (height * width * 12)), 1)
    first = (task.frames - count) // 2
    lq = video.read_clip(task.source, start=task.start + first, stop=task.start + first + count)
    picture = comparison(lq, video.read_clip(job.output, start=first, stop=first + count))
    with video.open_writer(compare_path(job.output), size=picture.shape[:2]) as writer:
        writer.write(picture)


def compare_path(output: Path) -> Path:
    return output.with_name(f"{output.stem if output.suffix else output.name}.compare.png")


def sequence_jobs(path: Path, output: Path) -> list[Job]:
    """Return a job for each sequence of a folder, with a folder of frames in `output`, as released commands write."""
    jobs = find_jobs(path, output)
    if jobs[0].path == path:  # one sequence itself
        jobs = [Job(path, output / path.resolve().name)]
    return [replace(job, output=job.output.with_suffix("")) if job.path.is_file() else job for job in jobs]


def weights_of(args: argparse.Namespace) -> Weights:
    return find_weights(*args.weights or (EMBEDDED,), configs=args.config)


def model_for(weights: Weights, args: argparse.Namespace) -> Model:
    """Return the model with the settings of the command line; it is built at first use."""
    return model_with(weights, choose_settings(weights, args), args.device)


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


def status_of(failed: int, count: int) -> int:
    """Return the exit status after so many of the inputs failed, and say so."""
    if failed:
        log.warning(f"{failed} of {count} inputs failed")
    return 2 if failed else 0


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
