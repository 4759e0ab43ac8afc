"""One test for every recorded case in the folder named by $GOLDEN (default tests/golden/)."""

import importlib
from pathlib import Path

import pytest

from tests.golden_checks.case import FOLDER, Case, names


def all_checks() -> dict:
    checks = {}
    for file in sorted((Path(__file__).parent / "golden_checks").glob("*.py")):
        if file.stem not in ("__init__", "case"):
            checks |= importlib.import_module(f"tests.golden_checks.{file.stem}").CHECKS
    return checks


CHECKS = all_checks()
CASES = names()


def test_there_are_cases():
    assert CASES, f"no case in {FOLDER}: set GOLDEN to a folder of NAME.json and NAME.safetensors files"


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_equals_the_recording(name):
    prefixes = [prefix for prefix in CHECKS if name.startswith(prefix)]
    assert prefixes, f"{name}: unknown kind of case, expected a name starting with one of {sorted(CHECKS)}"
    CHECKS[max(prefixes, key=len)](Case.read(FOLDER, name))
