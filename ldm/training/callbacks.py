"""What happens beside a training: progress, pictures, the batch that broke it, random numbers of a resumed run."""

import signal
import threading
from pathlib import Path
from typing import Any

import cv2
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from ldm.files import partial
from ldm.picture import comparison
from ldm.training.losses import check_gradients


class StepProgress(Callback):
    """A bar of optimizer steps with the loss and the time left; on the first process only."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, _module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
        self._bar = Progress(TextColumn("training"), BarColumn(), MofNCompleteColumn(), *times)
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
    """Every so many optimizer steps one PNG: input, output and truth of the same clip, a detail, an x-t profile.

    Args:
        folder: where `step00000750.png` and so on are written.
        every: optimizer steps between two pictures; there is one after the first step, too.
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
        with partial(path) as temporary:
            if not cv2.imwrite(str(temporary), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
                raise OSError(f"cannot write {path}")


class StepCheckpoint(ModelCheckpoint):
    """Lightning's, which after a resume forgets that the present step is saved, and saves again in mid-accumulation.

    Nor does it say before a validation that there is no such value to choose the best by. Raises ValueError then.
    Of the checkpoints that a saved state names it takes up, and may later remove, only those in its own folder.
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
        """The checkpoint of that name in this folder, an empty word where there is none."""
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
        """Nothing: averaged weights have replaced the model's by now, and `LastCheckpoint` came before."""


class LastCheckpoint(Checkpoint):
    """Writes `path` after the last step where no periodic checkpoint does: the last of all, or that of an early stop.

    A time limit (`lightning.max_time`) or SIGTERM ends the training behind a whole step, never between the batches that
    are accumulated for one. The limit is that of one process: a resumed run has all of it again.
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
        self._let_go()

    def on_exception(self, *_: Any) -> None:
        self._let_go()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._due = self._due or trainer.should_stop or self.terminated
        fresh, self._seen = trainer.global_step != self._seen, trainer.global_step
        ends = trainer.global_step == trainer.max_steps
        trainer.should_stop = self._due and (fresh or ends)
        if (ends or trainer.should_stop) and trainer.global_step % self.every:
            trainer.save_checkpoint(self.path)

    def _terminate(self, *_: Any) -> None:
        self.terminated = True

    def _let_go(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


def early_end(trainer: Trainer, way_on: str) -> str:
    """Words for a training that ended before its last step. Raises KeyboardInterrupt where a signal ended it."""
    line = f"stopped at step {trainer.global_step} of {trainer.max_steps}; {way_on}"
    if any(isinstance(call, LastCheckpoint) and call.terminated for call in trainer.callbacks):
        raise KeyboardInterrupt(line)
    return line


class WholeFiles(TorchCheckpointIO):
    """Checkpoints are written beside their place and then renamed, so that one that is there is whole.

    Lightning's way leads through the folder for temporary files; from another disk that is a copy, which can be cut
    short, and it holds the file in memory first.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # how PyTorch's writer reports a disk that is full
                raise OSError(f"{path}: cannot be written, is the disk full? ({first_words(error)})") from None


def first_words(error: Exception) -> str:
    """The first line of an error, shortened."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:80]


class BadBatch(Callback):
    """Keeps the batch on which a loss or a gradient stopped being a number, as safetensors.

    A gradient that is none stops the training before it reaches the weights and what is saved of them; with a gradient
    scaler (16-mixed) it is in order, and its step left out.
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
            path.parent.mkdir(parents=True, exist_ok=True)  # processes of torchrun may differ in the second of its name
            tensors = {name: value.detach().cpu().contiguous() for name, value in self._batch.items()}
            with partial(path) as temporary:
                save_file(tensors, temporary, {"error": str(exception)})
            exception.args = (f"{exception}; the batch is kept in {path}",)


class GivenRates(Callback):
    """A resumed run learns at the rate, betas and weight decay that it is given now, not at those it was saved with."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            module.optimizer.renew(optimizer)


class RandomState(Callback):
    """Torch's own random numbers go on where they were when a run is resumed.

    Samples do not need them (see `ldm.training.draws`); the dropout of the released perceptual loss does.
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
