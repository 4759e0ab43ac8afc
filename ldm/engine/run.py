"""Checks before a training run: valid settings and a compatible checkpoint."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

from ldm.engine.assemble import CARD
from ldm.printable import printable
from ldm.weights.safe import check_nested

MAPPINGS = ("model", "data", "lightning", "checkpoints", "pictures")
MINIMUM = {"steps": 1, "accumulate": 1, "batch_size": 1, "seed": 0, "checkpoints.every": 1, "pictures.every": 0}
MAX_SEED = 2**32 - 1  # numpy's


def check_training(settings: Mapping) -> None:
    """Raise ValueError with the key for a configuration that is not valid for a training."""
    for key in MAPPINGS:
        if not isinstance(settings.get(key), Mapping):
            raise ValueError(f"config.{key}: got {settings.get(key)!r}, expected a mapping")
    for key, least in MINIMUM.items():
        group, _, name = key.rpartition(".")
        got = (settings[group] if group else settings).get(name)
        if not _is_int(got) or got < least:
            raise ValueError(f"config.{key}: got {got!r}, expected a whole number from {least}")
    if settings["seed"] > MAX_SEED:
        raise ValueError(f"config.seed: got {settings['seed']}, expected at most {MAX_SEED}")
    if not _is_number(settings.get("learning_rate")) or not settings["learning_rate"] > 0:
        raise ValueError(f"config.learning_rate: got {settings.get('learning_rate')!r}, expected a number above 0")
    ema = settings.get("ema")
    if ema is not None and not (_is_number(ema) and 0 < ema < 1):
        raise ValueError(f"config.ema: got {ema!r}, expected a decay between 0 and 1, or null")
    if not isinstance(settings.get("checkpointing") or False, bool):
        raise ValueError(f"config.checkpointing: got {settings['checkpointing']!r}, expected true or false")
    _check_kept(settings)
    _check_files(settings)


def _check_kept(settings: Mapping) -> None:
    keep, best = settings["checkpoints"].get("keep", 1), settings["checkpoints"].get("best")
    if not _is_int(keep) or (keep < 1 and keep != -1):
        raise ValueError(f"config.checkpoints.keep: got {keep!r}, expected a whole number from 1, or -1 for all")
    if best is not None and not isinstance(best, str):
        raise ValueError(f"config.checkpoints.best: got {best!r}, expected the name of a logged value, or null")
    if best and best.startswith("val/") and (settings["data"].get("params") or {}).get("validation") is None:
        raise ValueError(f"config.checkpoints.best: got {best!r} without data.params.validation, expected both")


def _check_files(settings: Mapping) -> None:
    if not isinstance(settings.get("init") or [], list):
        raise ValueError(f"config.init: got {settings['init']!r}, expected a list of {{file, modules}}")
    export = settings.get("export")
    if export is None:
        return
    if not isinstance(export, Mapping) or not {"file"} <= export.keys() <= {"file", "half", "drop"}:
        raise ValueError(f"config.export: got {export!r}, expected file, and optionally half and drop")
    if not str(export["file"]).endswith(".safetensors"):
        raise ValueError(f"config.export.file: got {export['file']!r}, expected a name ending in .safetensors")


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_run(run: Path) -> None:
    """Raise ValueError if the folder of a run contains links: a training writes only inside its folder."""
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            if (path := Path(folder) / name).is_symlink():
                raise ValueError(f"{printable(path)}: is a link; remove it, or replace it by its target")


def check_export(settings: Mapping, run: Path, words: Iterable[str]) -> None:
    """Raise ValueError if an export from a run's own configuration would replace a file or lie outside its folder.

    `words` are the overrides of the command line; an export named there is accepted.
    """
    export = settings.get("export")
    if export is None or any(word.lstrip("+").startswith("export") for word in words):
        return
    file = Path(export["file"])
    inside = file.resolve().is_relative_to(run.resolve().parent)
    if not inside or any(os.path.lexists(place) for place in (file, file.with_name(CARD))):
        what = "would replace a file" if inside else f"is not in {run.parent}"
        raise ValueError(
            f"{run}: its export {printable(file)} {what}; name export.file=... to allow it, or export=null"
        )


def check_checkpoint(path: Path, model: nn.Module, *, steps: int, ema: float | None, scheduled: bool) -> None:
    """Raise ValueError for a checkpoint from which `model` cannot continue to `steps`.

    `scheduled`: whether the learning rate follows a schedule in this run.
    """
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        check_nested(saved)
        weights, done, rates = saved["state_dict"], saved["global_step"], saved["lr_schedulers"]
        if not (isinstance(weights, dict) and _is_int(done) and all(isinstance(rate, dict) for rate in rates)):
            raise TypeError("unexpected types of values")
        if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
            raise TypeError("unexpected types of weights")
    except Exception as error:  # a damaged file can raise any error
        what = f"{path}: not a complete checkpoint of a training ({type(error).__name__})"
        raise ValueError(f"{what}; name another one with --resume") from None
    if done >= steps:
        raise ValueError(f"{path}: has {done} of {steps} steps; raise steps to continue")
    if ("current_model_state" in saved) != bool(ema):
        raise ValueError(f"{path}: was trained {'without' if ema else 'with'} ema, got ema={ema}; keep it as it was")
    own = model.state_dict()
    if odd := sorted(name for name in {*own, *weights} if _form(own, name) != _form(weights, name)):
        what = f"{len(odd)} weights are not those of this model, such as {printable(odd[0])}"
        raise ValueError(f"{path}: {what}; keep its settings")
    if bool(rates) != scheduled:
        was, now = (("a schedule" if some else "no schedule") for some in (rates, scheduled))
        raise ValueError(f"{path}: its learning rate has {was}, got {now}; keep it as it was")
    for rate in rates:  # a schedule of fixed length cannot be extended
        if steps + 1 > rate.get("total_steps", steps + 1):
            last = rate["total_steps"] - 1
            raise ValueError(f"{path}: its learning rate ends at step {last}, got steps={steps}; keep steps={last}")


@contextlib.contextmanager
def in_use(run: Path, *, new: bool) -> Iterator[None]:
    """Hold a run's folder, made here if it is `new`, for one training. Raises ValueError where another holds it."""
    run.mkdir(parents=True, exist_ok=not new)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{run}: another training is writing there; wait for it, or stop it") from None
    try:
        yield
    finally:
        lock.release()


def way_on(run: Path) -> str:
    """How a stopped training can go on, in words."""
    if (run / "checkpoints" / "last.ckpt").is_file():
        return f"--resume {run} continues from its last checkpoint"
    return "there is no checkpoint yet, so the same command starts again"


def _form(state: Mapping, name: str) -> tuple | None:
    return tuple(state[name].shape) if name in state else None
