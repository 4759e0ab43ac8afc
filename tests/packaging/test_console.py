"""The console commands find the package of this project, or name the one in its place."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import console

ROOT = Path(__file__).parents[2]


def test_the_package_of_this_project_is_not_foreign():
    assert console.foreign_package() is None
    assert console.PRODUCT == ROOT and console.OURS == ROOT / "ldm"


@pytest.mark.parametrize("kept", ["__init__.py", "util.py"])  # as a package, and as stable-diffusion has it
def test_a_foreign_package_is_named_in_one_line(tmp_path, kept):
    (tmp_path / "ldm").mkdir()
    (tmp_path / "ldm" / kept).write_text("raise RuntimeError('is not run')")
    places = [str(tmp_path)] + [str(ROOT / "scripts")] + ([str(ROOT)] if kept == "__init__.py" else [])
    code = (
        f"import sys; sys.path[:0] = {places}; sys.argv = ['vsr-upscale']; import console; sys.exit(console.upscale())"
    )
    command = [sys.executable, "-S", "-P" if sys.version_info >= (3, 11) else "-s", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and f"got the package ldm of {tmp_path / 'ldm'}, expected" in done.stderr


@pytest.mark.parametrize("command", ["upscale", "train", "benchmark", "doctor"])
def test_every_command_runs_a_script_of_the_clone(monkeypatch, command):
    started = []
    monkeypatch.setattr(console.runpy, "run_path", lambda path, run_name: started.append((Path(path), run_name)))
    assert getattr(console, command)() == 0
    ((path, name),) = started
    assert path.is_file() and name == "__main__"
