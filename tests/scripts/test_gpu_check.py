"""The check of a GPU, on a CPU: it runs to its end at toy size, and whatever a step does, the others have results."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import gpu_check, gpu_steps, gpu_tables

ROOT = Path(__file__).parents[2]
LOADED = """
import sys
sys.modules["av"] = None
import scripts.gpu_check, scripts.gpu_steps, scripts.gpu_tables
import tests.test_golden
"""


def command(path, *more):
    return ["-o", str(path), "--device", "cpu", "--size", "toy", *more]


@pytest.fixture
def steps(monkeypatch):
    """Steps that fail or return figures at once."""

    def broken(check):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    made = {name: lambda check: {"device": str(check.device)} for name in gpu_check.MINUTES}
    monkeypatch.setattr(gpu_steps, "STEPS", made | {"operations": broken})


def start(path, *more):
    args = gpu_check.arguments(command(path, *more))
    gpu_check.Results(path).write(began=time.time())
    gpu_check.work(args)
    return json.loads(path.read_text())["steps"]


def test_a_step_that_fails_is_a_result_and_the_others_follow(steps, tmp_path):
    found = start(tmp_path / "check.json")
    assert list(found) == list(gpu_check.MINUTES)
    assert found["operations"]["error"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert all(found[name]["device"] == "cpu" for name in found if name != "operations")


def test_steps_are_skipped_when_the_time_is_over_and_results_are_kept(steps, tmp_path):
    path = tmp_path / "check.json"
    gpu_check.Results(path).end("rates", {"kept": 1})
    found = start(path, "--minutes", "0.2")  # enough for half of what the operations take
    assert found["rates"] == {"kept": 1} and "error" in found["operations"]
    assert found["stages"]["skipped"].endswith("s were left")


@pytest.mark.parametrize(
    ("code", "why"), [("import os; os.abort()", "status -6"), ("import time; time.sleep(60)", "ended")]
)
def test_a_step_that_ends_or_stops_its_process_is_a_result(monkeypatch, tmp_path, code, why):
    path, real, seen = tmp_path / "check.json", subprocess.Popen, []

    def started(words):
        seen.append(words)
        results = gpu_check.Results(path)
        if len(seen) == 1:
            results.begin("rates")
            return real([sys.executable, "-c", code])
        for step in results.left(["rates", "operations"]):
            results.end(step, {})
        return real([sys.executable, "-c", ""])

    monkeypatch.setattr(gpu_check, "PATIENCE", 0.1)
    monkeypatch.setattr(gpu_check.subprocess, "Popen", started)
    assert gpu_check.main(command(path, "--steps", "rates", "operations")) == 0
    found = json.loads(path.read_text())["steps"]
    assert found["rates"]["error"].startswith(why) and found["operations"] == {} and len(seen) == 2


def test_tables_are_put_between_the_marks_of_a_document(tmp_path):
    results = {"steps": {
        "rates": {"name": "card", "torch": "2", "python": "3", "cuda": "13", "gigabytes_per_second": {"device": 3e3},
                  "tflops": {"bfloat16": 790.0, "tf32": {"error": "x"}}},
        "stages": {"tile": 64, "frame": [96, 160], "gigaflops": {"unet": 4389.0},
                   "configurations": {"bf16, channels_last": {"unet": {"seconds": 0.01, "peak_bytes": 2e9}}}},
        "clip": {"clip": [8, 180, 320], "ways": {"ours": {"per_frame": {"4": 0.5}, "steps": {}}, "ratio_4": 1.5}},
        "training": {"error": "out of memory"},
    }}  # fmt: skip
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{gpu_tables.BEGIN}\nold\n{gpu_tables.END}\nafter\n")
    (tmp_path / "check.json").write_text(json.dumps(results))
    for _ in range(2):
        assert gpu_check.main(["-o", str(tmp_path / "check.json"), "--tables", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| matrix product, bfloat16 | 790 | TFLOP/s |" in text and "| matrix product, tf32 | - | TFLOP/s |" in text
    assert "| bf16, channels_last | unet | 0.01 | 439 | 2.00 |" in text
    assert "1.5 at 4 steps, - at 50 steps" in text and "training: no figures (out of memory)" in text
    document.write_text("nothing")
    assert gpu_check.main(["-o", str(tmp_path / "check.json"), "--tables", str(document)]) == 2


@pytest.mark.slow
def test_it_is_imported_without_av():
    subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, check=True, env={"GOLDEN_DEVICE": "meta", "PATH": ""})


@pytest.mark.slow
def test_every_step_gives_figures_at_toy_size_on_a_cpu(tmp_path):
    """The golden cases are tests of their own."""
    path, steps = tmp_path / "check.json", [step for step in gpu_check.MINUTES if step != "golden"]
    assert gpu_check.main(command(path, "--minutes", "60", "--steps", *steps)) == 0
    results = json.loads(path.read_text())
    assert list(results["steps"]) == steps and "error" not in path.read_text()
    assert results["steps"]["clip"]["ways"]["ratio_50"] > 0
    text = gpu_tables.tables(results)
    assert "released cuts" in text and "stage 1, DDP" in text and "half weights" in text
