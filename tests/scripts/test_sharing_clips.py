"""--shard auto: processes share the clips of a folder, and every clip is made once."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ldm import config
from ldm.engine.claims import take
from ldm.weights import checkpoint
from scripts import upscale
from tests import foreign
from tests.scripts import toy

FAST = ["--trust", "tests.foreign", "--upscale", "2", "--device", "cpu", "--save_every", "2", "--shard", "auto"]
CLIPS, FRAMES = 12, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model of one convolution, which takes next to no time."""
    folder = tmp_path_factory.mktemp("foreign")
    checkpoint.save(folder / "soft.safetensors", {"weight": torch.eye(3)[..., None, None], "bias": torch.zeros(3)})
    config.save(foreign.CARD, folder / "model.yaml")
    return str(folder)


def words_of(folder, model, names):
    for name in names:
        toy.make_clip(folder / "in" / f"{name}.mp4", FRAMES)
    return ["-i", str(folder / "in"), "-o", str(folder / "out"), "--weights", model, *FAST]


def test_clips_of_other_processes_are_left_and_finished_ones_skipped(tmp_path, model, capfd):
    words, out = words_of(tmp_path, model, "abc"), tmp_path / "out"
    out.mkdir()
    with take(out / "b.mp4"):
        assert upscale.main(words) == 0
        said = capfd.readouterr().out
        assert re.search(r"b\.mp4: left to process \d+ on .*, which is working on it", said)
    assert sorted(path.name for path in out.glob("*.mp4")) == ["a.mp4", "c.mp4"]
    assert upscale.main(words) == 0
    said = capfd.readouterr().out
    assert said.count("finished before, from the same input") == 2 and "left to" not in said
    assert toy.left_behind(out) == [f"{name}.mp4{suffix}" for name in "abc" for suffix in ("", ".json")]


def test_a_clip_that_fails_does_not_stop_the_others(tmp_path, model, capfd):
    words = words_of(tmp_path, model, "ac")
    (tmp_path / "in" / "b.mp4").write_bytes(b"nothing")
    assert upscale.main(words) == 2
    error = capfd.readouterr().err
    assert "b.mp4" in error and "1 of 3 inputs failed" in error
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["a.mp4", "c.mp4"]


@pytest.mark.parametrize("change", [["--overwrite"], ["--preview", "1s"], ["--weights", "none.safetensors"]])
def test_what_cannot_be_shared_is_one_line(tmp_path, model, change, capfd):
    assert upscale.main([*words_of(tmp_path, model, "ab"), *change]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_one_clip_is_not_shared(tmp_path, model, capfd):
    words = words_of(tmp_path, model, "a")
    assert upscale.main(["-i", str(tmp_path / "in" / "a.mp4"), *words[2:]]) == 2
    assert "expected a folder of clips" in capfd.readouterr().err


@pytest.mark.slow  # two processes, each of which loads torch, and 12 clips
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_two_processes_one_killed_make_every_clip_once(tmp_path, model):
    names = [f"{number:02d}" for number in range(CLIPS)]
    words, out = words_of(tmp_path, model, names), tmp_path / "out"
    command = [sys.executable, str(Path(upscale.__file__).resolve()), *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **streams) as doomed, subprocess.Popen(command, **streams) as other:
        while len(list(out.glob("*.mp4.json"))) < 3 or not is_working(out, doomed.pid):
            assert other.poll() is None and doomed.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
        doomed.kill()
        first, second = doomed.communicate()[0], other.communicate()[0]
    assert doomed.returncode == -signal.SIGKILL and other.returncode == 0, second
    made = [re.findall(rf"(\d\d)\.mp4: {FRAMES} frames of", said) for said in (first, second)]
    assert sorted(made[0] + made[1]) == names and made[1], (first, second)
    assert toy.left_behind(out) == [f"{name}.mp4{suffix}" for name in names for suffix in ("", ".json")]
    alone = [*words[: words.index("--shard")], "-o", str(tmp_path / "alone")]
    assert upscale.main(alone) == 0
    for name in names:
        assert (out / f"{name}.mp4").read_bytes() == (tmp_path / "alone" / f"{name}.mp4").read_bytes()


def is_working(out: Path, process: int) -> bool:
    """Whether a process has a claim on a clip whose work folder exists."""
    return any(
        f'"process": {process},' in path.read_text() and (out / f"{path.name[1:].partition('.claim')[0]}.work").exists()
        for path in out.glob(".*.claim-*")
    )
