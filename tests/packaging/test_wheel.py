"""The wheel: what it holds, and that it works from any folder."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # builds and installs the package
ROOT = Path(__file__).parents[2]
PACKED = ("ldm", "basicsr_deg", "scripts", "configs", "assets")
FILES = ("main.py", "setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def run(command, folder, **variables):
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=kept | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_below(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the clone, built without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PACKED:
        shutil.copytree(ROOT / name, source / name)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    run([*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(out), str(source)], source)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    run([*PIP, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)], folder)
    return folder


def test_it_holds_all_code_and_the_files_of_the_product(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {f"{top}/{name}" for top in ("ldm", "basicsr_deg") for name in files_below(ROOT / top)}
    product = {f"{top}/{name}" for top in ("configs", "assets") for name in files_below(ROOT / top)}
    product |= {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")} | {"main.py", "constraints.txt"}
    assert names == expected | {f"mgld_vsr/product/{name}" for name in product} | {"mgld_vsr/__init__.py"}


def test_its_metadata_name_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    said = email.message_from_bytes(zipfile.ZipFile(wheel).read(metadata))
    assert said["License-Expression"] == "Apache-2.0" and said["Name"] == "mgld-vsr"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_embedded_model_loads_from_any_folder(installed, tmp_path):
    code = "from ldm.engine.assemble import load_method; import ldm; load_method(); print(ldm.__file__)"
    found = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed))
    assert Path(found.strip()) == installed / "ldm" / "__init__.py"


@pytest.mark.parametrize("command", ["upscale", "train", "benchmark", "doctor", "weights", "demo"])
def test_commands_start(installed, tmp_path, command):
    words = [sys.executable, str(installed / "bin" / f"vsr-{command}"), "--help"]
    assert "usage:" in run(words, tmp_path, PYTHONPATH=str(installed))
