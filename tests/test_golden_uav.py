"""One test for every recorded case of Upscale-A-Video in the folder named by $GOLDEN_UAV (default tests/golden/uav)."""

import pytest

from tests.golden_checks.uav import networks, pictures, pipeline, sampling
from tests.golden_checks.uav.case import FOLDER, UavCase, names

CHECKS = networks.CHECKS | pictures.CHECKS | pipeline.CHECKS | sampling.CHECKS
CASES = names()


def test_there_are_uav_cases():
    assert CASES, f"no case in {FOLDER}: set GOLDEN_UAV to a folder of NAME.json and NAME.safetensors files"


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_equals_the_uav_recording(name):
    prefixes = [prefix for prefix in CHECKS if name.startswith(prefix)]
    assert prefixes, f"{name}: unknown kind of case, expected a name starting with one of {sorted(CHECKS)}"
    CHECKS[max(prefixes, key=len)](UavCase.read(FOLDER, name))
