"""Callbacks of a training: progress bar, pictures, checkpoints, bad batches and the random state of a resumed run."""

import signal
import threading
from pathlib import Path
from typing import Any

import cv2
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from ldm.files import atomic_file
from ldm.picture import comparison
from ldm.training.losses import check_gradients


class StepProgress(Callback):
    """Show a progress bar of optimizer steps with the losses and the remaining time, in the first process only."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
        console = Console(stderr=True)  # stdout may be a pipe whose reader has exited
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), *times)
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, loss="")
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._bar is not None:
            terms = trainer.callback_metrics.items()
            losses = [f"{k.removeprefix('train/')} {v:.4g}" for k, v in terms if k.startswith("train/")]
            self._bar.update(self._task, completed=trainer.global_step, loss=" ".join(losses[:4]))

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class PeriodicPictures(Callback):
    """Write a PNG of the same clip at regular steps: input, output, ground truth, a detail and an x-t profile.

    Args:
        folder: folder of the files, such as `step00000750.png`.
        every: optimizer steps between two pictures; there is also one after the first step.
    """

    def __init__(self, folder: Path, *, every: int) -> None:
        self.folder, self.every, self._last = Path(folder), every, -1

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        due = step == 1 or step % self.every == 0
        if not due or step == self._last or not trainer.is_global_zero or step == 0:
            return
        self._last = step
        example = trainer.datamodule.example()
        batch = {name: value[None].to(module.device) for name, value in example.items()}
        training, _ = module.training, module.eval()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            output = module.restore(batch)[0]
        module.train(training)
        sheet = comparison(example.get("lq", example["gt"]), output.float().cpu(), truth=example["gt"])
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step{step:08d}.png"
        with atomic_file(path) as temporary:
            if not cv2.imwrite(str(temporary), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
                raise OSError(f"cannot write {path}")


class StepCheckpoint(ModelCheckpoint):
    """ModelCheckpoint of Lightning with three changes.

    After a resume it does not save the current step again in the middle of an accumulation. If no logged value has the
    monitored name it raises ValueError after the first step, not at the first validation. Of the checkpoints that a
    saved state lists it keeps, and may later remove, only those in its own folder.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kept = {self._own(name): value for name, value in state_dict.get("best_k_models", {}).items()}
        kept.pop("", None)
        choose = max if self.mode == "min" else min
        worst = choose(kept, key=kept.get, default="")
        own = {key: self._own(state_dict.get(key)) for key in ("best_model_path", "last_model_path")}
        state = {"best_k_models": kept, "kth_best_model_path": worst, "kth_value": kept.get(worst, self.kth_value)}
        super().load_state_dict({**state_dict, **state, **own, "dirpath": self.dirpath})

    def _own(self, name: Any) -> str:
        """Path of the checkpoint of that name in this folder, or "" if there is none."""
        path = Path(self.dirpath) / Path(name).name if isinstance(name, str) and name.endswith(".ckpt") else None
        return str(path) if path is not None and path.is_file() and not path.is_symlink() else ""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._last_global_step_saved = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        super().on_train_batch_end(trainer, *rest)
        logged = trainer.callback_metrics
        if trainer.global_step and self._every_n_train_steps and self.monitor not in ("step", *logged):
            known = ", ".join(sorted(name for name in logged if "/" in name))
            raise ValueError(f"got checkpoints.best={self.monitor}, expected one of {known}")

    def on_train_end(self, *_: Any) -> None:
        """Save nothing: averaged weights have replaced the model's, and `LastCheckpoint` has already saved them."""


class LastCheckpoint(Checkpoint):
    """Save a checkpoint to `path` after the last step, unless a periodic one is due (every `every` steps).

    The last step may be an early one: a time limit (`lightning.max_time`) or SIGTERM stops the training after a full
    optimizer step, never between accumulated batches. The time limit applies to each run of the command; a resumed run
    starts with the full limit.

    Attributes:
        terminated: whether SIGTERM was received.
    """

    def __init__(self, path: Path, *, every: int) -> None:
        self.path, self.every = Path(path), every
        self.terminated = False
        self._due, self._seen, self._before = False, 0, None

    def on_load_checkpoint(self, _trainer: Trainer, _module: LightningModule, checkpoint: dict) -> None:
        for name in [name for name in checkpoint.get("callbacks") or () if name.startswith("Timer")]:
            del checkpoint["callbacks"][name]

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        self._seen = trainer.global_step
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._terminate)

    def on_train_end(self, *_: Any) -> None:
        self._restore_handler()

    def on_exception(self, *_: Any) -> None:
        self._restore_handler()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._due = self._due or trainer.should_stop or self.terminated
        fresh, self._seen = trainer.global_step != self._seen, trainer.global_step
        ends = trainer.global_step == trainer.max_steps
        trainer.should_stop = self._due and (fresh or ends)
        if (ends or trainer.should_stop) and trainer.global_step % self.every:
            trainer.save_checkpoint(self.path)

    def _terminate(self, *_: Any) -> None:
        self.terminated = True

    def _restore_handler(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


def early_end(trainer: Trainer, hint: str) -> str:
    """Message for a training that stopped before its last step, ending with `hint`.

    Raises:
        KeyboardInterrupt: a signal stopped it; with the same message.
    """
    line = f"stopped at step {trainer.global_step} of {trainer.max_steps}; {hint}"
    if any(isinstance(call, LastCheckpoint) and call.terminated for call in trainer.callbacks):
        raise KeyboardInterrupt(line)
    return line


class AtomicCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically: to a temporary file in the same folder, which is then renamed.

    Lightning builds the file in memory and moves it from the folder for temporary files; across disks that is a copy,
    which an interruption leaves incomplete.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # PyTorch's writer raises this for a full disk
                why = next(iter(str(error).splitlines()), type(error).__name__)[:80]
                raise OSError(f"{path}: cannot be written, is the disk full? ({why})") from None


class BadBatch(Callback):
    """Save the batch for which a loss or a gradient is not finite, as a safetensors file.

    A gradient that is not finite raises FloatingPointError before the optimizer step, so that neither weights nor
    checkpoints are affected. With a gradient scaler (16-mixed) such gradients are normal and the scaler skips the step.
    The file of process n is `path` with `_process{n}` appended to its stem.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._batch = Path(path), {}

    def on_train_batch_start(self, _trainer: Trainer, _module: LightningModule, batch: dict, _number: int) -> None:
        self._batch = batch

    def on_validation_batch_start(self, _trainer: Trainer, _module: LightningModule, batch: dict, *_: int) -> None:
        self._batch = batch

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            check_gradients(module, trainer.global_step)

    def on_exception(self, trainer: Trainer, _module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, FloatingPointError):
            path = self.path.with_stem(f"{self.path.stem}_process{trainer.global_rank}")
            path.parent.mkdir(parents=True, exist_ok=True)  # run folders of torchrun processes can differ by a second
            tensors = {name: value.detach().cpu().contiguous() for name, value in self._batch.items()}
            with atomic_file(path) as temporary:
                save_file(tensors, temporary, {"error": str(exception)})
            exception.args = (f"{exception}; the batch is saved in {path}",)


class CurrentHyperparameters(Callback):
    """Apply the current learning rate, betas and weight decay to a resumed run, in place of those in its checkpoint."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            module.optimizer.apply_to(optimizer)


class RandomState(Callback):
    """Save and restore the state of torch's global random number generator.

    Samples do not use it (see `ldm.training.draws`); the dropout of the released perceptual loss does.
    """

    def __init__(self) -> None:
        self._loaded: Tensor | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._loaded = state["torch"]

    def on_train_start(self, _trainer: Trainer, _module: LightningModule) -> None:
        if self._loaded is not None:
            torch.set_rng_state(self._loaded.cpu())
