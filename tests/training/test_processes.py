"""Two processes equal one that accumulates twice as many batches; an error in one stops all."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import main
from basicsr_deg.training_clips import shuffled
from tests.training import runs

# Lightning warns about workers, folders and hardware, and uses deprecated parts of torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TWO = ["lightning.devices=2", "lightning.strategy=ddp_find_unused_parameters_true"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_equal_one_with_twice_the_batches(tmp_path, stage):
    data = runs.write_clips(tmp_path / "data") if stage == 1 else runs.write_set(tmp_path / "data")
    more = ["steps=3", *(["model.params.loss.params.start=1"] if stage == 2 else [])]
    words = runs.command(stage, data, *runs.narrow(stage), *more, *TWO, folder=tmp_path)
    done = subprocess.run(
        [sys.executable, str(runs.ROOT / "main.py"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 steps, learning rate") == 1
    two = runs.rows(runs.run_of(tmp_path))
    one = runs.rows(runs.train(stage, data, *more, "accumulate=2", folder=tmp_path / "one"))
    assert len(two) == len(one) == 3
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_bad_batch_in_one_process_stops_all(tmp_path, process):
    data = runs.write_set(tmp_path / "set", count=4)
    clip = shuffled(23, 0, 4)[2 + process]  # clip of the second step in this process
    for path in (tmp_path / "set" / "latent" / f"clip{clip}").iterdir():
        np.save(path, np.full_like(np.load(path), 1e38))
    words = runs.command(2, data, *runs.narrow(2), *TWO, folder=tmp_path)
    done = subprocess.run(
        [sys.executable, str(runs.ROOT / "main.py"), *words], capture_output=True, text=True, check=False, timeout=120
    )  # waits for all processes that hold its output
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    kept = runs.run_of(tmp_path) / f"bad_batch_process{process}.safetensors"
    assert kept.exists() and f"at step 1, expected a number; lower lr; the batch is saved in {kept}" in done.stderr


def test_other_processes_are_stopped_and_no_longer_watched(monkeypatch):
    monkeypatch.setattr(main, "EXIT_TIMEOUT", 0.3)
    commands = ["raise SystemExit(3)", "import time; time.sleep(60)"]
    started = [subprocess.Popen([sys.executable, "-S", "-c", command]) for command in commands]
    watched = list(started)
    main.end_others(SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=watched))))
    assert started[1].wait(5) != 0 and started[0].poll() is not None and watched == []
    main.end_others(SimpleNamespace(strategy=SimpleNamespace(launcher=None)))
