"""Restore a file or frames from Python, for the web page and the ComfyUI node."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ldm.engine.assemble import EMBEDDED, Weights, find_weights, read_settings, with_precision
from ldm.engine.captions import captioned
from ldm.engine.device import is_out_of_memory, return_memory, usable_device
from ldm.engine.finished import unchanged
from ldm.engine.jobs import Job, JobOptions, Log, Model, made_of, prepare, restore_job
from ldm.methods.contract import Method, Progress, Request, restore_clip

ROUNDING = {
    "nearest": lambda frame: frame,  # the writer rounds to the nearest
    "truncate": lambda frame: (frame * 255).to(torch.uint8).permute(1, 2, 0).numpy(),  # as the released code does
}


class Cancelled(Exception):
    """A restoration was stopped on request. Its finished parts are kept, unless it was a preview."""


def rounding_of(settings) -> Callable:
    """Return the function that converts a frame (3, h, w) in [0, 1] for the writer. Raises ValueError."""
    word = str((settings.get("output") or {}).get("rounding", "nearest"))
    if word not in ROUNDING:
        raise ValueError(f"got output.rounding {word!r}, expected one of {', '.join(ROUNDING)}")
    return ROUNDING[word]


def model_of(
    *weights: str | Path, preset: str | None = None, overrides: Iterable[str] = (), device: str | None = None
) -> Model:
    """Find a model and read its settings; its networks are built at first use.

    Args: as those of `ldm.engine.assemble.load_method`; `device` None: CUDA where there is one.

    Raises FileNotFoundError, CheckpointError, ConfigError or ValueError. Each message is one line with a remedy.
    """
    found = find_weights(*weights or (EMBEDDED,))
    return model_with(found, read_settings(found, preset=preset, overrides=overrides), device)


def model_with(found: Weights, settings, device: str | None) -> Model:
    """Return the model of weight files and settings on a device (None: CUDA where there is one). Raises ValueError."""
    device = usable_device(device)
    return Model(found, with_precision(settings, device), device, rounding_of(settings))


def restore_file(
    path: Path,
    output: Path,
    model: Model,
    options: JobOptions,
    *,
    report: Progress,
    warn: Log,
    log: Log,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Job, dict]:
    """Restore one clip into a file, which appears with its record when it is complete. Returns the job and the record.

    An output that the same input, weights and settings made is kept, and an interrupted one is resumed. `stop()` is
    asked after each network call. Raises Cancelled, VideoError, ValueError, OSError or FloatingPointError.
    """
    job = captioned(prepare(Job(path, output), options, warn=warn), model)
    if options.preview is None and (record := unchanged(job.output, made_of(job, model))):
        return job, record
    return job, restore_job(job, model, report=_stopped_by(stop, report), warn=warn, log=log)


def _stopped_by(stop: Callable[[], bool], report: Progress) -> Progress:
    """Return `report` that raises Cancelled once `stop()` is true."""

    def report_or_stop(stage: str, done: int, total: int | None) -> None:
        if stop():
            raise Cancelled("cancelled")
        report(stage, done, total)

    return report_or_stop


def restore_frames(
    method: Method, lq: Tensor, request: Request, *, report: Progress, stop: Callable[[], bool] = lambda: False
) -> Tensor:
    """Restore a clip (T, 3, h, w) in [0, 1] that is in memory -> (T, 3, H, W) in [0, 1], on the CPU.

    Starts with the best levers of the method and continues with smaller ones if memory runs out. Raises Cancelled, and
    the errors of `ldm.methods.contract.restore_clip`.
    """
    report = _stopped_by(stop, report)
    *better, least = method.levers()
    for levers in better:
        try:
            return restore_clip(method, lq, request, report, levers=levers)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return_memory()
    return restore_clip(method, lq, request, report, levers=least)
