"""Train a model described by YAML: python main.py --train --base configs/mgldvsr/....yaml --gpus 0, [key=value ...]

A run writes into LOGDIR/TIME_NAME/: config.yaml, metrics.csv, TensorBoard curves, pictures/, checkpoints/.
"""

import argparse
import contextlib
import datetime
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that an installed main.py finds the scripts beside it

from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EMAWeightAveraging, LambdaCallback
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm import config
from ldm.engine.assemble import CARD
from ldm.engine.device import check_cards, is_out_of_memory
from ldm.engine.export import card_text, write_export
from ldm.files import is_temporary
from ldm.training import preflight
from ldm.training.callbacks import (
    AtomicCheckpoints,
    BadBatch,
    CurrentHyperparameters,
    LastCheckpoint,
    PeriodicPictures,
    RandomState,
    StepCheckpoint,
    StepProgress,
    early_end,
)
from ldm.training.initial import left_random, start_from
from ldm.training.loading import TrainingData
from ldm.training.recompute import prepare_training
from scripts.command import Parser, add_trust, exit_status, tell

PROGRAM = "main.py"
TRUE, FALSE = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")
SWITCHES = ("-t", "--train", "--scale_lr", "--no-test")
HALF_PRECISIONS = ("16-true", "bf16-true")  # weights in half precision: updates of about 5e-5 are rounded away
EXIT_TIMEOUT = 5  # seconds that the other processes have to exit before they are killed
RUN = "MGLDVSR_RUN"  # environment variable: the run folder, for the other processes of a training on several devices


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__.splitlines()[0])
    parser.add_argument("-b", "--base", nargs="+", default=[], metavar="YAML", help="files, merged left to right")
    parser.add_argument("-t", "--train", type=_switch, default=False, help="train; without it, print the model")
    parser.add_argument("-n", "--name", help="name of the run (default: the first YAML's)")
    parser.add_argument("-r", "--resume", type=Path, help="run folder, or one of its checkpoints, to continue from")
    parser.add_argument(
        "-s",
        "--seed",
        type=int,
        help="seed of weights and noise, and of samples where their seed is ${seed} (default: the YAML's, 23)",
    )
    parser.add_argument("--gpus", default="", help="graphics cards: '0' or '0,1'; '' trains on the CPU (default)")
    parser.add_argument("--scale_lr", type=_switch, default=False, help="multiply the learning rate by accumulated "
                        "batches, batch size and processes (default False; the released default is True)")  # fmt: skip
    parser.add_argument("--no-test", type=_switch, default=True, help="accepted and ignored (no test follows)")
    parser.add_argument("-l", "--logdir", default="logs", help="folder of the runs (default logs)")
    add_trust(parser)
    args = parser.parse_with_overrides(_with_values(sys.argv[1:] if words is None else words), ("base",))
    if not args.base and not args.resume:
        parser.error("nothing to train: pass a configuration with --base or a run with --resume")
    return args


def _with_values(words: list[str]) -> list[str]:
    """Rewrite switches as `--train=true`, so that the word after a bare switch is not parsed as its value."""
    out, words = [], list(words)
    while words:
        word = words.pop(0)
        if word in SWITCHES:
            given = words and words[0].lower() in TRUE + FALSE
            word = f"{'--train' if word == '-t' else word}={words.pop(0) if given else 'true'}"
        out.append(word)
    return out


def _switch(word: str) -> bool:
    if word.lower() not in TRUE + FALSE:
        raise argparse.ArgumentTypeError(f"got {word!r}, expected True or False")
    return word.lower() in TRUE


def devices_of(gpus: str) -> dict:
    """Arguments of the Trainer for `--gpus`, a comma-separated list of device numbers; "" is the CPU.

    Raises ValueError if an entry is not a number, or the device is not available.
    """
    numbers = [word.strip() for word in gpus.split(",") if word.strip()]
    if not all(number.isdigit() for number in numbers):
        raise ValueError(f"got --gpus {gpus!r}, expected numbers such as 0, or 0,1 or nothing for the CPU")
    check_cards([int(number) for number in numbers])
    if not numbers:
        return {"accelerator": "cpu", "devices": 1}
    several = {"strategy": "ddp_find_unused_parameters_true"} if len(numbers) > 1 else {}
    return {"accelerator": "gpu", "devices": [int(number) for number in numbers], **several}


def read_settings(args: argparse.Namespace, run: Path | None):
    """Merged configuration with the overrides, seed and scaled learning rate of the command line.

    Raises ValueError if the configuration describes no training, or `--scale_lr` cannot be applied.
    """
    if run is not None:
        preflight.check_run(run)
    # the Trainer checks its own arguments, so those that are not in the YAML need no "+"
    words = [f"+{word}" if word.startswith("lightning.") else word for word in args.overrides]
    settings = config.load(*(args.base or [run / "config.yaml"]), overrides=words, trust=args.trust)
    settings = config.override(settings, [] if args.seed is None else [f"seed={args.seed}"])
    preflight.check_training(config.plain(settings))
    if run is not None and not args.base:
        preflight.check_export(config.plain(settings), run, args.overrides, card=CARD, text=card_text(settings))
    if not args.scale_lr:
        return settings
    if args.resume and not args.base:
        raise ValueError("got --scale_lr True for a resumed run, whose rate is already scaled; omit it")
    count = settings.lightning.get("devices") or len(args.gpus.replace(",", " ").split()) or 1
    if isinstance(count, str):
        raise ValueError(f"got --scale_lr True with lightning.devices={count}, expected devices as a number")
    devices = (count if isinstance(count, int) else len(count)) * (settings.lightning.get("num_nodes") or 1)
    factor = settings.accumulate * settings.batch_size * devices
    return config.override(settings, [f"learning_rate={settings.learning_rate * factor!r}"])


def callbacks_of(settings, run: Path) -> list:
    """Callbacks of the Trainer; those that save checkpoints come after those that change weights."""
    saving = config.plain(settings.checkpoints)
    folder, every = run / "checkpoints", saving["every"]
    written = LambdaCallback(
        on_train_start=lambda trainer, _: trainer.is_global_zero and config.save(settings, run / "config.yaml")
    )
    calls = [written, StepProgress(), BadBatch(run / "bad_batch.safetensors"), RandomState()]
    calls.append(CurrentHyperparameters())
    if settings.get("ema"):
        calls.append(EMAWeightAveraging(decay=settings.ema))
    if settings.pictures.every:
        calls.append(PeriodicPictures(run / "pictures", every=settings.pictures.every))
    calls.append(LastCheckpoint(folder / "last.ckpt", every=every))
    # fixed file names: --resume does not look for last-v1.ckpt beside last.ckpt
    named = {"auto_insert_metric_name": False, "enable_version_counter": False}
    if best := saving.get("best"):  # the name of a logged value
        how = {"monitor": best, "mode": "max" if best.endswith("psnr") else "min"}
        how |= {} if best.startswith("val/") else {"every_n_train_steps": every}
        calls.append(StepCheckpoint(folder, "best", **how, **named))
    how = {"monitor": "step", "mode": "max", "save_top_k": saving.get("keep", 20), "every_n_train_steps": every}
    calls.append(StepCheckpoint(folder, "step{step:08d}", save_last=True, **how, **named))
    return calls


def build_trainer(settings, model: LightningModule, run: Path, hardware: dict) -> Trainer:
    """Trainer with the settings under `lightning`, the devices of `hardware` and the values that main.py sets.

    Raises ValueError if `lightning` sets one of those values, or a precision or strategy that cannot work.
    """
    accumulate, held_out = settings.accumulate, settings.data.params.get("validation") is not None
    every = min(settings.checkpoints.every, settings.steps) * accumulate
    own = {
        "max_steps": settings.steps,
        "max_epochs": -1,
        "logger": loggers_of(run),
        "callbacks": callbacks_of(settings, run),
        "plugins": [AtomicCheckpoints()],
        "accumulate_grad_batches": accumulate if model.automatic_optimization else 1,
        "val_check_interval": every if held_out else 1.0,
        "check_val_every_n_epoch": None if held_out else 1,
        **{key: False for key in ("use_distributed_sampler", "enable_progress_bar", "enable_model_summary")},
        "num_sanity_val_steps": 0,
    }
    params = {**hardware, **config.plain(settings.lightning)}
    if twice := [key for key in params if key in own]:
        raise ValueError(f"config.lightning.{twice[0]} is set by main.py; use steps, accumulate, checkpoints or ema")
    trainer = config.instantiate({"target": "pytorch_lightning.Trainer", "params": params}, "config.lightning", **own)
    if trainer.precision in HALF_PRECISIONS:
        wanted = "expected 32 or bf16-mixed; such weights round most updates away"
        raise ValueError(f"got precision {trainer.precision}, {wanted}")
    preflight.check_strategy(trainer.strategy, config.plain(settings))
    return trainer


def loggers_of(run: Path) -> list:
    """Loggers of the curves: CSV, flushed at every step, and TensorBoard."""
    curves = CSVLogger(run, name="", version="", flush_logs_every_n_steps=1)
    return [curves, TensorBoardLogger(run, name="", version="tensorboard")]


def is_first() -> bool:
    """Whether this is the first process of the training: not started by another one, and of rank 0 (torchrun, srun)."""
    return RUN not in os.environ and rank_zero_only.rank == 0


def run_folder(args: argparse.Namespace) -> Path:
    """Folder that a new run writes into, the same in all its processes."""
    if RUN in os.environ:
        return Path(os.environ[RUN])
    name = args.name or Path(args.base[0]).stem
    return Path(args.logdir) / f"{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}_{name}"


def prepare_folder(run: Path, settings, resumed: Path | None) -> None:
    """Create the run folder with its configuration; for a resumed run, rename the earlier curves.

    The configuration of a resumed run is replaced only when training starts (see `callbacks_of`), since the new one may
    not fit the checkpoint.
    """
    if not is_first():
        return
    for path in run.glob("checkpoints/.*"):  # of a run that was killed while it saved
        if is_temporary(path.name):
            path.unlink()
    if resumed is None:
        config.save(settings, run / "config.yaml")
    elif (run / "metrics.csv").exists():
        parts = len(list(run.glob("metrics.until_stop_*.csv")))
        os.replace(run / "metrics.csv", run / f"metrics.until_stop_{parts + 1}.csv")


def train(args: argparse.Namespace) -> None:
    """Build the model and train it; without `--train`, print the model."""
    run, resumed = preflight.find_checkpoint(args.resume) if args.resume else (None, None)
    settings = read_settings(args, run)
    hardware = devices_of(args.gpus)
    seed_everything(settings.seed, workers=True, verbose=False)
    model = built(settings.model, "config.model", LightningModule)
    if resumed is None:
        entries = config.plain(settings).get("init") or []
        lines = [*start_from(model, entries), *left_random(model, entries)]
        if is_first() and lines:
            tell(*lines)
    prepare_training(model, recompute=bool(settings.get("checkpointing")), last=bool(settings.get("channels_last")))
    if not args.train:
        tell(*str(model).splitlines())
        return
    data = built(settings.data, "config.data", TrainingData)
    data.check(model.needs)
    if resumed is not None:
        scheduled = model.optimizer.schedule != "none"
        preflight.check_checkpoint(resumed, model, steps=settings.steps, ema=settings.get("ema"), scheduled=scheduled)
    run = run or run_folder(args)
    trainer = build_trainer(settings, model, run, hardware)
    if settings.get("export"):
        Path(settings.export.file).parent.mkdir(parents=True, exist_ok=True)
    with preflight.lock_run(run, new=resumed is None) if is_first() else contextlib.nullcontext():
        prepare_folder(run, settings, resumed)
        if is_first():
            tell(f"{run}: {settings.steps} steps, learning rate {settings.learning_rate:g}")
        fit(trainer, model, data, run=run, resumed=resumed)
    if trainer.global_step < settings.steps:
        tell(f"{run}: {early_end(trainer, preflight.resume_hint(run))}")
    elif settings.get("export") and trainer.is_global_zero:
        tell(write_export(model, settings))


def built(node, place: str, kind: type):
    """Build the object that a node of the configuration describes. Raises ValueError if it is not a `kind`."""
    made = config.instantiate(node, place)
    if not isinstance(made, kind):
        raise ValueError(f"{place}: got a {type(made).__name__}, expected a {kind.__name__}")
    return made


def fit(trainer: Trainer, model: LightningModule, data: TrainingData, *, run: Path, resumed: Path | None) -> None:
    """Train the model; a new run that fails before its first step leaves no folder.

    Raises KeyboardInterrupt on Ctrl-C, with the run folder in its message, and ValueError if `resumed` does not fit.
    """
    first, started, begun = is_first(), RUN in os.environ, []
    trainer.callbacks.append(LambdaCallback(on_train_batch_start=lambda *_: begun.append(True)))
    os.environ[RUN] = str(run)
    try:
        trainer.fit(model, data, ckpt_path=resumed and str(resumed), weights_only=True)
    except BaseException as error:
        end_others(trainer)
        wrong = isinstance(error, (ValueError, MisconfigurationException))
        if wrong and first and resumed is None and trainer.global_step == 0:
            shutil.rmtree(run, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty: there are other runs
                run.parent.rmdir()
        if isinstance(error, SystemExit):  # Lightning turns Ctrl-C into SystemExit
            raise KeyboardInterrupt(f"interrupted; {preflight.resume_hint(run)}") from error
        if resumed is not None and not begun and is_unfit(error):
            raise ValueError(f"{resumed}: does not fit this training ({type(error).__name__})") from error
        raise
    finally:
        if not started:
            del os.environ[RUN]


def is_unfit(error: BaseException) -> bool:
    """Whether an error may come from a checkpoint whose state differs in form from what a training writes now."""
    if is_out_of_memory(error) or lost_others(error) or "DataLoader" in str(error):
        return False
    return isinstance(error, (KeyError, TypeError, AttributeError, IndexError, AssertionError, RuntimeError))


def end_others(trainer: Trainer) -> None:
    """Stop the processes that this one started; they would otherwise wait for its gradients and occupy their GPUs.

    They have `EXIT_TIMEOUT` seconds to exit, in which they may save a bad batch of their own.
    """
    watched = getattr(trainer.strategy.launcher, "procs", [])
    processes, deadline = list(watched), time.monotonic() + EXIT_TIMEOUT
    watched.clear()  # Lightning's observer would kill this process when one of them exits, before it reports its error
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()


def lost_others(error: RuntimeError) -> bool:
    """Whether an error reports that another process of the training has exited."""
    return type(error).__name__ == "DistBackendError" or "gloo" in str(error)


def in_one_line(error: BaseException) -> str:
    """Message of an error, without the traceback that a data loader worker puts before it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if not lines[0].startswith("Caught "):
        return lines[0]
    return lines[-1].partition(": ")[2] or lines[-1]


def explain(error: Exception) -> str | None:
    """Return the message of an error that a user can correct; None for a defect of the code."""
    if isinstance(error, (ValueError, OSError, FloatingPointError, MisconfigurationException)):
        return in_one_line(error)
    if is_out_of_memory(error):
        return "out of memory: lower batch_size or the crop, or set checkpointing=true"
    if isinstance(error, RuntimeError) and lost_others(error):
        return "another process of this training stopped and reported why; this one stops too"
    return in_one_line(error) if str(error).startswith("DataLoader worker") else None


def main(words: list[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for an error, 130 for an interruption."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):  # hints, and devices it did not find
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")
    # the learning rate of the discriminator is stepped before its optimizer's first step
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    return exit_status(PROGRAM, lambda: train(arguments(words)), explain=explain, level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
