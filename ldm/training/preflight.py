"""Checks before a training starts: settings, run folder, export, strategy and the checkpoint that it resumes from."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pytorch_lightning.strategies import Strategy
from torch import nn

from ldm.printable import printable
from ldm.weights.safe import check_nested, refuse_bombs

MAPPINGS = ("model", "data", "lightning", "checkpoints", "pictures")
MINIMUM = {"steps": 1, "accumulate": 1, "batch_size": 1, "seed": 0, "checkpoints.every": 1, "pictures.every": 0}
MAX_SEED = 2**32 - 1  # numpy's


def check_training(settings: Mapping) -> None:
    """Check the values of a training configuration, given as plain mappings and lists.

    Raises:
        ValueError: a value is missing, has the wrong type or is out of range; the message names its key.
    """
    for key in MAPPINGS:
        if not isinstance(settings.get(key), Mapping):
            raise ValueError(f"config.{key}: got {settings.get(key)!r}, expected a mapping")
    for key, least in MINIMUM.items():
        group, _, name = key.rpartition(".")
        got = (settings[group] if group else settings).get(name)
        if not _is_integer(got) or got < least:
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
    _check_checkpoints(settings)
    _check_files(settings)


def _check_checkpoints(settings: Mapping) -> None:
    keep, best = settings["checkpoints"].get("keep", 1), settings["checkpoints"].get("best")
    if not _is_integer(keep) or (keep < 1 and keep != -1):
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
        raise ValueError(f"config.export: got {export!r}, expected file, optionally half and drop")
    if not str(export["file"]).endswith(".safetensors"):
        raise ValueError(f"config.export.file: got {export['file']!r}, expected a name ending in .safetensors")


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """Run folder and checkpoint for `--resume`, which names either one.

    Raises FileNotFoundError if the checkpoint or the config.yaml of the run is missing.
    """
    run = path if path.is_dir() else path.resolve().parent.parent
    found = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(f"--resume {path}: there is no checkpoint {found}; pass a run folder or a .ckpt file")
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"--resume {path}: there is no {run / 'config.yaml'}; is this a checkpoint of a run?")
    return run, found


def check_run(run: Path) -> None:
    """Check that a run folder holds no symbolic links, so that a training writes only inside it.

    Raises:
        ValueError: names the first link.
    """
    for folder, folders, files in os.walk(run):
        for name in (*folders, *files):
            if (path := Path(folder) / name).is_symlink():
                raise ValueError(f"{printable(path)}: is a link; remove it, or replace it by the file it points to")


def check_export(settings: Mapping, run: Path, words: Iterable[str], *, card: str, text: str) -> None:
    """Check that a resumed run exports into the folder of its runs and replaces no file.

    The configuration of a run folder may come from someone else. An export named on the command line is not checked.

    Args:
        settings: configuration, as plain mappings and lists.
        run: folder of the run.
        words: `key=value` overrides of the command line.
        card: name of the model description that is written beside the weights.
        text: its content. The stages of a training share a folder, so a file that holds the same text may exist.
    Raises:
        ValueError: the export is outside the folder above `run`, its file exists, or another model description does.
    """
    export = settings.get("export")
    if export is None or any(word.lstrip("+").startswith("export") for word in words):
        return
    file = Path(export["file"])
    if not file.resolve().is_relative_to(run.resolve().parent):
        what = f"is not in {run.parent}"
    elif os.path.lexists(file):
        what = "exists"
    elif os.path.lexists(file.with_name(card)) and not _holds(file.with_name(card), text):
        what = f"would replace {card}, which describes another model"
    else:
        return
    raise ValueError(f"{run}: its export {printable(file)} {what}; pass export.file=... to allow it, or export=null")


def _holds(path: Path, text: str) -> bool:
    """Whether a file, and no link, holds exactly this text."""
    content = text.encode()
    if path.is_symlink() or not path.is_file() or path.stat().st_size != len(content):
        return False
    return path.read_bytes() == content


def check_strategy(strategy: Strategy, settings: Mapping) -> None:
    """Check that nothing needs the full weights in one process where the strategy shards them (FSDP).

    Raises:
        ValueError: pictures or an export are set for such a strategy.
    """
    if strategy.restore_checkpoint_after_setup and (settings["pictures"]["every"] or settings.get("export")):
        what = f"got {type(strategy).__name__}, which shards the weights, with pictures or an export of the full ones"
        raise ValueError(f"{what}; set pictures.every=0 and export=null")


def check_checkpoint(path: Path, model: nn.Module, *, steps: int, ema: float | None, scheduled: bool) -> None:
    """Check that a checkpoint fits the model and the settings of a resumed training.

    Args:
        path: checkpoint file of Lightning; read without running code from it.
        model: must have weights of the same names and shapes.
        steps: optimizer steps of the whole training; more than the checkpoint has.
        ema: decay of the averaged weights, None for none; averaged weights are in the checkpoint exactly if it is set.
        scheduled: whether the learning rate follows a schedule; must be as in the checkpoint.
    Raises:
        ValueError: the file is damaged or does not fit; the message names it.
    """
    try:
        refuse_bombs(path)
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        check_nested(saved)
        weights, done, rates = saved["state_dict"], saved["global_step"], saved["lr_schedulers"]
        if not (isinstance(weights, dict) and _is_integer(done) and all(isinstance(rate, dict) for rate in rates)):
            raise TypeError("values of an unexpected type")
        if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
            raise TypeError("weights of an unexpected type")
    except Exception as error:  # a damaged file can raise any exception in the reader
        what = f"{path}: not a complete training checkpoint ({type(error).__name__})"
        raise ValueError(f"{what}; pass another one to --resume") from None
    if done >= steps:
        raise ValueError(f"{path}: has {done} of {steps} steps; raise steps to continue")
    if ("current_model_state" in saved) != bool(ema):
        raise ValueError(f"{path}: was trained {'without' if ema else 'with'} ema, got ema={ema}; keep that setting")
    own = model.state_dict()
    if odd := sorted(name for name in {*own, *weights} if _shape(own, name) != _shape(weights, name)):
        what = f"{len(odd)} weights do not match this model, such as {printable(odd[0])}"
        raise ValueError(f"{path}: {what}; keep its settings")
    if bool(rates) != scheduled:
        was, now = (("a schedule" if some else "no schedule") for some in (rates, scheduled))
        raise ValueError(f"{path}: its learning rate has {was}, got {now}; keep that setting")
    for rate in rates:  # a schedule of fixed length cannot be extended
        if steps + 1 > rate.get("total_steps", steps + 1):
            last = rate["total_steps"] - 1
            raise ValueError(f"{path}: its learning rate ends at step {last}, got steps={steps}; keep steps={last}")


@contextlib.contextmanager
def lock_run(run: Path, *, new: bool) -> Iterator[None]:
    """Lock a run folder for one training, and create it if it is `new`.

    Raises:
        ValueError: another training has locked it.
    """
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


def resume_hint(run: Path) -> str:
    """Message that tells how to continue a stopped training."""
    if (run / "checkpoints" / "last.ckpt").is_file():
        return f"--resume {run} continues from its last checkpoint"
    return "there is no checkpoint yet, so the same command starts again"


def _shape(state: Mapping, name: str) -> tuple | None:
    return tuple(state[name].shape) if name in state else None
