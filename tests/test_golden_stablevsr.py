"""One test for every recorded case of StableVSR in $GOLDEN_STABLEVSR (default tests/golden/stablevsr/)."""

import pytest

from tests.golden_checks.case import Case, check_for, checks_of
from tests.golden_checks.stablevsr.folder import STABLEVSR, case_names

CHECKS = checks_of("tests.golden_checks.stablevsr")
CASES = case_names()


def test_there_are_cases():
    assert CASES, f"no case in {STABLEVSR}: set GOLDEN_STABLEVSR to a folder of NAME.json and NAME.safetensors files"


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_equals_the_recording(name):
    check_for(name, CHECKS)(Case.read(STABLEVSR, name))
