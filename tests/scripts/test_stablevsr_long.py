"""Long clips through StableVSR in blocks: memory that does not grow, and runs killed at any moment.

KILLS says how often a run is killed (default 2), FRAMES how long the longer clip is (default 96).
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scripts import upscale
from tests.methods.pipeline_folder import make_pipeline
from tests.scripts import toy

KILLS, LONG = int(os.environ.get("KILLS", "2")), int(os.environ.get("FRAMES", "96"))
SHORT = 48
SETTINGS = ["--device", "cpu", "--flow", "dis", "--scenes", "blocks", "--block", "8", "method.params.ahead=4"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "wait4"), reason="the memory of one process is not known on this system"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("stablevsr") / "pipeline")


def peak_of(folder, place, frames):
    """The largest resident memory, in KiB, of a process that restores a clip of so many frames of 64x48."""
    toy.make_clip(place / f"{frames}.mp4", frames, size=(48, 64))
    words = ["-i", str(place / f"{frames}.mp4"), "-o", str(place / f"{frames}.out.mp4"), "--weights", str(folder)]
    command = [sys.executable, str(Path(upscale.__file__).resolve()), *words, *SETTINGS, "--ddpm_steps", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_maxrss


def test_memory_does_not_grow_with_the_clip(folder, tmp_path):
    short, long = (peak_of(folder, tmp_path, frames) for frames in (SHORT, LONG))
    print(f"{SHORT} frames: {short} KiB, {LONG} frames: {long} KiB, ratio {long / short:.3f}")
    assert long <= 1.05 * short


def restore(words):
    """The command in a process that has imported it already."""
    torch.set_num_threads(1)
    sys.exit(upscale.main(words))


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(folder, tmp_path):
    toy.make_clip(tmp_path / "clip.mp4", 9, size=(16, 20))
    words = ["-i", str(tmp_path / "clip.mp4"), "--weights", str(folder), *SETTINGS, "--block", "4"]
    words += ["--ddpm_steps", "3", "--save_every", "2", "-o"]
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["scripts.upscale", "ldm.methods.stablevsr.method"])

    def run(output, seconds=None, *, saved=False):
        """The exit status of the command, killed (-9) after so many seconds; `saved`: from the first saved state on."""
        process = processes.Process(target=restore, args=([*words, str(output)],))
        process.start()
        while (
            saved and process.is_alive() and not output.with_name(f"{output.name}.work").joinpath("state.pt").exists()
        ):
            process.join(0.02)
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode

    run(tmp_path / "first.mp4")  # imports what is imported late, and measures what is kept in a cache
    began = time.perf_counter()
    assert run(tmp_path / "whole.mp4") == 0
    seconds, moments, output = time.perf_counter() - began, random.Random(15), tmp_path / "out.mp4"
    expected, kills, resumed = (tmp_path / "whole.mp4").read_bytes(), 0, 0
    while kills < KILLS:
        saved = kills % 2 == 1  # every other kill at any moment, the others while units are saved
        status = run(output, moments.uniform(0, 0.2 if saved else 0.6) * seconds, saved=saved)
        if status == -signal.SIGKILL:
            kills += 1
            resumed += (tmp_path / "out.mp4.work" / "state.pt").exists()
            assert not output.exists() or output.read_bytes() == expected
        else:  # finished between two kills: another run
            assert status == 0 and output.read_bytes() == expected
            output.unlink()
    assert run(output) == 0
    assert output.read_bytes() == expected and resumed, "some run was killed after a state was saved"
    print(f"{kills} kills, {resumed} of them after a state was saved")
