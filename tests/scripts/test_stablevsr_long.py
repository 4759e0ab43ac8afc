"""Long clips through StableVSR in blocks: memory that does not grow, and runs killed at any moment.

KILLS says how often a run is killed (default 3), FRAMES how long the longer clip is (default 180).
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import upscale
from tests.methods.pipeline_folder import make_pipeline
from tests.scripts import toy

KILLS, LONG = int(os.environ.get("KILLS", "3")), int(os.environ.get("FRAMES", "180"))
SHORT = 60
SETTINGS = ["--device", "cpu", "--flow", "dis", "--scenes", "blocks", "--block", "8", "method.params.ahead=4"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "wait4"), reason="the memory of one process is not known on this system"),
]


def start(words):
    script = Path(upscale.__file__).resolve()
    return subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("stablevsr") / "pipeline")


def peak_of(folder, place, frames):
    """The largest resident memory, in KiB, of a process that restores a clip of so many frames of 64x48."""
    toy.make_clip(place / f"{frames}.mp4", frames, size=(48, 64))
    words = ["-i", str(place / f"{frames}.mp4"), "-o", str(place / f"{frames}.out.mp4"), "--weights", str(folder)]
    process = start([*words, *SETTINGS, "--ddpm_steps", "2"])
    errors = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, errors
    return used.ru_maxrss


def test_memory_does_not_grow_with_the_clip(folder, tmp_path):
    short, long = (peak_of(folder, tmp_path, frames) for frames in (SHORT, LONG))
    print(f"{SHORT} frames: {short} KiB, {LONG} frames: {long} KiB, ratio {long / short:.3f}")
    assert long <= 1.05 * short


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(folder, tmp_path):
    toy.make_clip(tmp_path / "clip.mp4", 14, size=(16, 20))
    words = ["-i", str(tmp_path / "clip.mp4"), "--weights", str(folder), *SETTINGS, "--block", "4"]
    words += ["--ddpm_steps", "3", "--save_every", "2"]
    began = time.perf_counter()
    assert start([*words, "-o", str(tmp_path / "whole.mp4")]).wait() == 0
    seconds, moments, output = time.perf_counter() - began, random.Random(15), tmp_path / "out.mp4"
    expected, kills, states = (tmp_path / "whole.mp4").read_bytes(), 0, 0
    while kills < KILLS:
        process = start([*words, "-o", str(output)])
        try:
            process.wait(moments.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            states += (tmp_path / "out.mp4.work" / "state.pt").exists()
            assert not output.exists() or output.read_bytes() == expected
            continue
        assert process.returncode == 0 and output.read_bytes() == expected
        output.unlink()  # finished between two kills: another run
    assert start([*words, "-o", str(output)]).wait() == 0
    assert output.read_bytes() == expected and states, "some run was killed after a state was saved"
    print(f"{kills} kills, {states} of them after a state was saved")
