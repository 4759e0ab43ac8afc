"""Callbacks of a training: atomic checkpoints, bad batches, the random state and the progress bar."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm.training.callbacks import AtomicCheckpoints, BadBatch, LastCheckpoint, RandomState, StepProgress, early_end
from ldm.weights import checkpoint

BATCH = {"gt": torch.rand(1, 2, 3, 4, 4), "index": torch.tensor([7])}


def test_an_interrupted_save_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "new" / "last.ckpt"
    AtomicCheckpoints().save_checkpoint({"step": 1}, path)

    def breaks(content, to):
        Path(to).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", breaks)
    with pytest.raises(OSError, match="no space"):
        AtomicCheckpoints().save_checkpoint({"step": 2}, path)
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"] and torch.load(path)["step"] == 1


@pytest.mark.parametrize("begin", ["on_train_batch_start", "on_validation_batch_start"])
def test_the_batch_of_a_bad_loss_is_saved(tmp_path, begin):
    keeper, trainer = BadBatch(tmp_path / "bad.safetensors"), SimpleNamespace(global_rank=3)
    getattr(keeper, begin)(trainer, None, BATCH, 0)
    keeper.on_exception(trainer, None, ValueError("something else"))
    assert not list(tmp_path.iterdir())
    error = FloatingPointError("got a l1 loss of nan")
    keeper.on_exception(trainer, None, error)
    assert str(error) == f"got a l1 loss of nan; the batch is saved in {tmp_path / 'bad_process3.safetensors'}"
    kept = checkpoint.read(tmp_path / "bad_process3.safetensors")
    assert kept.keys() == BATCH.keys() and all(torch.equal(kept[name], value) for name, value in BATCH.items())


def test_the_random_state_is_restored():
    before = torch.get_rng_state()
    torch.manual_seed(3)
    state = RandomState().state_dict()
    expected = torch.rand(4)
    later = RandomState()
    torch.manual_seed(4)
    later.load_state_dict(state)
    later.on_train_start(None, None)
    assert torch.equal(torch.rand(4), expected)
    fresh = torch.get_rng_state()
    RandomState().on_train_start(None, None)
    assert torch.equal(torch.get_rng_state(), fresh), "no state was loaded"
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    ("step", "every", "written"), [(20, 7, True), (20, 10, False), (14, 8, False), (20, 3000, True)]
)
def test_the_last_step_is_saved_unless_a_periodic_checkpoint_is_due(tmp_path, step, every, written):
    saved = []
    trainer = SimpleNamespace(global_step=step, max_steps=20, save_checkpoint=saved.append, should_stop=False)
    LastCheckpoint(tmp_path / "last.ckpt", every=every).on_train_batch_end(trainer)
    assert saved == [tmp_path / "last.ckpt"] * written


def test_an_early_stop_saves_after_a_full_step(tmp_path):
    saved = []
    trainer = SimpleNamespace(
        global_step=3, max_steps=20, save_checkpoint=saved.append, should_stop=False, world_size=1
    )
    keeper = LastCheckpoint(tmp_path / "last.ckpt", every=10)
    keeper.on_train_start(trainer, None)
    try:
        trainer.should_stop = True  # time limit reached between accumulated batches
        keeper.on_train_batch_end(trainer)
        assert not trainer.should_stop and not saved
        trainer.global_step = 4
        keeper.on_train_batch_end(trainer)
        assert trainer.should_stop and saved == [tmp_path / "last.ckpt"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert keeper.terminated
    finally:
        keeper.on_train_end()
    trainer.callbacks = [keeper]
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4 of 20; way"):
        early_end(trainer, "way")


def test_a_resumed_run_has_the_full_time_limit(tmp_path):
    content = {"callbacks": {"Timer": {"time_elapsed": {}}, "RandomState": {}}}
    LastCheckpoint(tmp_path / "last.ckpt", every=10).on_load_checkpoint(None, None, content)
    assert content == {"callbacks": {"RandomState": {}}}


def test_a_full_disk_is_one_line_and_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    AtomicCheckpoints().save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def full(content, to):
        Path(to).write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file\nframe #0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"last\.ckpt: cannot be written, is the disk full\?") as caught:
        AtomicCheckpoints().save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert "\n" not in str(caught.value) and torch.load(tmp_path / "last.ckpt")["step"] == 1


def test_only_the_first_process_shows_a_progress_bar():
    trainer = SimpleNamespace(is_global_zero=False, max_steps=3, global_step=1, callback_metrics={})
    bar = StepProgress()
    bar.on_train_start(trainer, None)
    bar.on_train_batch_end(trainer)
    assert bar._bar is None
    trainer.is_global_zero = True
    bar.on_train_start(trainer, None)
    trainer.callback_metrics = {"train/loss": torch.tensor(0.5), "val/loss": torch.tensor(9.0)}
    bar.on_train_batch_end(trainer)
    (task,) = bar._bar.tasks
    assert (task.completed, task.total, task.fields["loss"]) == (1, 3, "loss 0.5")
    bar.on_exception()
    assert bar._bar is None
