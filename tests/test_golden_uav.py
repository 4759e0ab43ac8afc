"""One test for every recorded case of Upscale-A-Video in the folder named by $GOLDEN_UAV (default tests/golden/uav)."""

import pytest

from tests.golden_checks.case import check_for, checks_of, names
from tests.golden_checks.uav.case import FOLDER, UavCase

CHECKS = checks_of("tests.golden_checks.uav")
CASES = names(FOLDER)


def test_there_are_cases():
    assert CASES, f"no case in {FOLDER}: set GOLDEN_UAV to a folder of NAME.json and NAME.safetensors files"


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_equals_the_recording(name):
    check_for(name, CHECKS)(UavCase.read(FOLDER, name))
