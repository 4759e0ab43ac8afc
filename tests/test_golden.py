"""One test for every recorded case of MGLD-VSR in the folder named by $GOLDEN (default tests/golden/)."""

import pytest

from tests.golden_checks.case import FOLDER, Case, check_for, checks_of, names

CHECKS = checks_of("tests.golden_checks")
CASES = names()


def test_there_are_cases():
    assert CASES, f"no case in {FOLDER}: set GOLDEN to a folder of NAME.json and NAME.safetensors files"


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_equals_the_recording(name):
    check_for(name, CHECKS)(Case.read(FOLDER, name))
