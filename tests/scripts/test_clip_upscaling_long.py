"""Upscale-A-Video in processes of its own: the peak memory of a longer clip, and runs that are killed.

MEMORY_FRAMES (default 40,80) are the lengths that are compared; KILLS (default 2) is the number of kills.
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
from tests.methods import upscale_toy
from tests.scripts import toy

ROOT = Path(__file__).parents[2]
LENGTHS = [int(word) for word in os.environ.get("MEMORY_FRAMES", "40,80").split(",")]
KILLS = int(os.environ.get("KILLS", "2"))
MOST = 1.05  # times the peak of the shorter clip
WORDS = ["--device", "cpu", "--upscale", "1", "--inference_steps", "2", "--propagation_steps", "0,1", "--n_frames", "8"]
WORDS += ["--window_merging", "released", "--guidance_scale", "1", "--memory", "8G", "--save_every", "8"]
WORDS += ["+method.params.sampling.params.context=16", "+method.params.windows.params.frame_overlap=2"]

pytestmark = [
    pytest.mark.slow,  # many frames, and many processes
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command without its output and the number of frames."""
    folder = tmp_path_factory.mktemp("long")
    weights = upscale_toy.write_weights(folder / "weights")
    clip = toy.make_clip(folder / "clip.mp4", max(LENGTHS), size=(48, 64))
    return [sys.executable, str(Path(upscale.__file__)), "-i", str(clip), "--weights", str(weights), *WORDS]


def run(command, output, frames, seconds=None) -> tuple[bool, int]:
    """(whether the command came to its end before it was killed after so many seconds, its peak memory in bytes)."""
    words = [*command, "--max_frames", str(frames), "-o", str(output)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + seconds if seconds else None
    while True:
        gone, status, usage = os.wait4(process.pid, os.WNOHANG)
        if gone:
            break
        if end and time.monotonic() > end:
            process.send_signal(signal.SIGKILL)
            end = None
        time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode == 0, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_memory_does_not_grow_with_the_clip(command, tmp_path):
    peaks = [run(command, tmp_path / f"{frames}.mp4", frames)[1] for frames in LENGTHS]
    print(", ".join(f"{n} frames: {peak / 1e6:.1f} MB" for n, peak in zip(LENGTHS, peaks, strict=True)))
    assert peaks[1] <= MOST * peaks[0]


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(command, tmp_path):
    frames, began = 24, time.monotonic()
    assert run(command, tmp_path / "undisturbed.mp4", frames)[0]
    seconds, expected = time.monotonic() - began, (tmp_path / "undisturbed.mp4").read_bytes()
    moments, kills, finished, killed = random.Random(0), 0, 0, False
    while kills < KILLS or killed:  # the last run that is killed is resumed, too
        output, began = tmp_path / f"{finished}.mp4", time.monotonic()
        killed = not run(command, output, frames, moments.uniform(0.3, 1.1) * seconds if kills < KILLS else None)[0]
        if killed:
            kills += 1
            continue
        assert output.read_bytes() == expected
        finished, seconds = finished + 1, min(seconds, time.monotonic() - began)
    print(f"{kills} kills, {finished} outputs")
    assert all(name.endswith((".mp4", ".mp4.json")) for name in toy.left_behind(tmp_path))
