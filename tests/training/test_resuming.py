"""N steps, a stop and M further steps equal N + M steps without a stop, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import main
from ldm.weights import checkpoint
from tests.marks import mostly_slow
from tests.training import runs

# Lightning warns about workers, folders and hardware, and uses deprecated parts of torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{stage: overrides that name its data}."""
    root = tmp_path_factory.mktemp("data")
    return {1: runs.write_clips(root / "clips"), 2: runs.write_set(root / "set")}


@mostly_slow(
    ("stage", "words", "later"),
    [
        (2, ["ema=0.5", "model.params.loss.params.form=released", "checkpoints.every=1"], []),
        (2, ["accumulate=2", "model.params.loss.params.start=1"], ["num_workers=2"]),
        (1, ["batch_size=2", "checkpoints.every=1"], ["num_workers=2"]),
        (1, ["accumulate=2", "ema=0.5", "model.params.trained=released"], []),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, data, stage, words, later):
    whole = runs.train(stage, data[stage], *words, "steps=4", folder=tmp_path / "whole")
    parts = runs.train(stage, data[stage], *words, "steps=2", folder=tmp_path / "parts")
    begun = runs.learned(runs.saved(parts))
    state = torch.get_rng_state()
    torch.manual_seed(5)  # whatever a new process has
    assert main.main(["--train", "--resume", str(parts), "steps=4", *later]) == 0
    torch.set_rng_state(state)
    ends = [runs.learned(runs.saved(run)) for run in (whole, parts)]
    assert not runs.differing(*ends)
    assert runs.differing(begun["state_dict"], ends[1]["state_dict"]), "weights did not change"
    if "ema=0.5" in words:
        assert runs.differing(dict(ends[0]["state_dict"]), dict(ends[0]["current_model_state"])), (
            "averaged weights equal the weights"
        )
    curves = runs.rows(parts, "metrics.until_stop_1.csv") + runs.rows(parts)
    assert curves == runs.rows(whole)


@pytest.mark.slow  # two trainings
@pytest.mark.parametrize("workers", [0, 1])
def test_a_new_epoch_repeats_no_sample(tmp_path, data, workers):
    words = [*data[1], "steps=4", f"num_workers={workers}"]
    whole = runs.train(1, words, folder=tmp_path / "whole")
    short = runs.train(1, words, "lightning.limit_train_batches=2", folder=tmp_path / "short")
    assert not runs.differing(*(runs.saved(run)["state_dict"] for run in (whole, short)))


@pytest.mark.slow  # one training
def test_weights_are_averaged_into_the_export(tmp_path, data):
    file = tmp_path / "new" / "one.safetensors"
    run = runs.train(1, data[1], "ema=0.5", "steps=2", f"+export={{file: {file}}}", folder=tmp_path)
    written, last = checkpoint.read(file), runs.saved(run)
    assert not runs.differing(written, dict(last["state_dict"]))
    assert runs.differing(written, dict(last["current_model_state"]))


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path, data):
    words = runs.command(1, data[1], *runs.narrow(1), "checkpoints.every=2", "checkpoints.keep=1", folder=tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on it
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, str(runs.ROOT / "main.py"), *words, "steps=100000"],
        env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("logs/*_toy/checkpoints/last.ckpt")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        log.close()
    run = runs.run_of(tmp_path)
    (run / "checkpoints" / ".last.partial-1.ckpt").write_bytes(b"half")
    done = runs.saved(run)["global_step"]
    assert done >= 2 and done % 2 == 0, (tmp_path / "log").read_text()
    assert runs.rows(run), "metrics.csv is flushed at every step"
    assert main.main(["--train", "--resume", str(run), f"steps={done + 2}"]) == 0
    assert not list((run / "checkpoints").glob(".*"))
    whole = runs.train(1, data[1], f"steps={done + 2}", folder=tmp_path / "whole")
    assert not runs.differing(runs.learned(runs.saved(whole)), runs.learned(runs.saved(run)))


@pytest.mark.slow  # two trainings
def test_a_resumed_run_takes_a_new_learning_rate(tmp_path, data):
    run = runs.train(1, data[1], "steps=1", folder=tmp_path)
    begun = runs.saved(run)
    assert main.main(["--train", "--resume", str(run), "steps=2", "learning_rate=1e-9"]) == 0
    ended = runs.saved(run)
    assert ended["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-9
    moved = [(a - ended["state_dict"][name]).abs().max() for name, a in begun["state_dict"].items()]
    assert 0 < max(moved) < 1e-6, "the saved learning rate was used"


# ---- runs that cannot be resumed


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    return runs.train(1, data[1], "steps=1", folder=tmp_path_factory.mktemp("finished"))


def refused(capsys, *words) -> str:
    capsys.readouterr()
    assert main.main(["--train", *map(str, words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "clips taken" not in line]
    assert all(line.startswith("main.py: ") for line in lines)
    return lines[-1]  # warnings come before it


def tree(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@mostly_slow(
    ("words", "says"),
    [
        ([], "has 1 of 1 steps; raise steps"),
        (["steps=2", "networks.unet.params.num_res_blocks=2"], "do not match this model"),
        (["steps=2", "ema=0.9"], "was trained without ema, got ema=0.9"),
        (["steps=2", "--scale_lr", "True"], "already scaled"),
        (["steps=2", "dataroot_gt=nowhere"], "got nowhere, which is not there"),
        (["steps=2", "+model.params.optimizer.params={schedule: cosine, steps: 2}"], "has no schedule, got a schedule"),
    ],
    fast=2,
)
def test_other_settings_are_refused(finished, capsys, words, says):
    before = tree(finished)
    assert says in refused(capsys, "--resume", finished, *words)
    assert tree(finished) == before


def test_another_batch_size_is_refused(finished, capsys):
    before = (finished / "config.yaml").read_bytes()
    assert "got 2 samples per batch" in refused(capsys, "--resume", finished, "steps=2", "batch_size=2")
    assert (finished / "config.yaml").read_bytes() == before, "a refused run keeps its configuration"


def test_a_path_that_is_not_a_run_is_refused(finished, tmp_path, capsys):
    assert "there is no checkpoint" in refused(capsys, "--resume", tmp_path / "nowhere")
    assert "there is no checkpoint" in refused(capsys, "--resume", tmp_path)
    weights = tmp_path / "weights.ckpt"
    torch.save({"a": torch.zeros(1)}, weights)
    assert "config.yaml" in refused(capsys, "--resume", weights)
    copy = tmp_path / "run" / "checkpoints" / "last.ckpt"
    copy.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], weights.read_bytes()):
        copy.write_bytes(content)
        assert "not a complete training checkpoint" in refused(capsys, "--resume", tmp_path / "run", "steps=2")


@pytest.mark.slow  # two trainings
def test_a_learning_rate_schedule_is_not_extended(tmp_path, data, capsys):
    cosine = "+model.params.optimizer.params={schedule: cosine, steps: 2}"
    run = runs.train(1, data[1], cosine, "steps=1", folder=tmp_path)
    assert "its learning rate ends at step 2" in refused(capsys, "--resume", run, "steps=3")
    assert main.main(["--train", "--resume", str(run), "steps=2"]) == 0
