"""One test for every recorded case of StableVSR in $GOLDEN_STABLEVSR (default tests/golden/stablevsr/)."""

import importlib
from pathlib import Path

import pytest

from tests.golden_checks.case import Case
from tests.golden_checks.stablevsr.folder import STABLEVSR, case_names


def all_checks() -> dict:
    checks = {}
    for file in sorted((Path(__file__).parent / "golden_checks" / "stablevsr").glob("*.py")):
        if file.stem not in ("__init__", "folder"):
            checks |= importlib.import_module(f"tests.golden_checks.stablevsr.{file.stem}").CHECKS
    return checks


CHECKS = all_checks()
CASES = case_names()


def kind_of(name: str) -> str | None:
    return max((prefix for prefix in CHECKS if name.startswith(prefix)), key=len, default=None)


def test_there_are_cases():
    assert CASES, f"no case in {STABLEVSR}: set GOLDEN_STABLEVSR to a folder of NAME.json and NAME.safetensors files"


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_equals_the_recording(name):
    kind = kind_of(name)
    assert kind, f"{name}: unknown kind of case, expected a name starting with one of {sorted(CHECKS)}"
    CHECKS[kind](Case.read(STABLEVSR, name))
