"""The predicted peak against the measured one, in processes of their own, for settings that move every term of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import toy

ROOT = Path(__file__).parents[2]
MOST = 1.5  # times the real peak that may be predicted
CLIP = (96, 128)
SETTINGS = {
    "defaults": [],
    "more steps": ["--ddpm_steps", "6"],
    "one step, long windows": ["--ddpm_steps", "1", "--n_frames", "9", "--max_frames", "9"],
    "tiles": ["--ddpm_steps", "1", "method.params.windows.params.tile=32",
              "method.params.decoding.params.windows.params.tile=48", "method.params.decoding.params.norms=shared"],
    "blended tiles": ["--ddpm_steps", "1", "--n_frames", "2", "method.params.decoding.params.norms=tile",
                      "method.params.decoding.params.windows.params.tile=48"],
    "smaller frames": ["--upscale", "2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return toy.make_clip(tmp_path_factory.mktemp("in") / "clip.mp4", 9, size=CLIP)


@pytest.mark.slow
@pytest.mark.parametrize("words", SETTINGS.values(), ids=SETTINGS)
def test_the_peak_is_predicted(clip, tmp_path, words):
    command = [sys.executable, "scripts/upscale.py", "-i", clip, "-o", tmp_path / "out.mp4", "--device", "cpu"]
    command += ["--max_frames", "5", *words]
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "MGLDVSR_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    memory = json.loads((tmp_path / "out.mp4.json").read_text())["memory"]
    ratio = memory["predicted peak"] / memory["peak"]
    print(f"predicted {memory['predicted peak'] / 1e9:.2f} GB, measured {memory['peak'] / 1e9:.2f}: {ratio:.2f}")
    assert 1 <= ratio <= MOST
