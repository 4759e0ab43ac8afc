"""Two processes learn what one does that accumulates twice as many batches."""

import subprocess
import sys

import pytest

from tests.training import runs

# Lightning advises on workers, folders and hardware, and lags behind torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TWO = ["lightning.devices=2", "lightning.strategy=ddp_find_unused_parameters_true"]


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_are_one_with_twice_the_batches(tmp_path, stage):
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
