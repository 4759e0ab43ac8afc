"""One test for every recorded case of MGLD-VSR in the folder named by $GOLDEN (default tests/golden/).

With $GOLDEN_DEVICE, such as cuda, those that networks and operations on latents compute run there.
"""

import pytest
import torch

from ldm.engine.device import exact_float32
from tests.golden_checks.case import DEVICE, FOLDER, Case, check_for, checks_of, names

ON_A_DEVICE = ("unet", "structure", "autoencoder", "flow", "sampling", "colour", "end_to_end", "blocks")
CHECKS = checks_of("tests.golden_checks", None if DEVICE == "cpu" else ON_A_DEVICE)
# Slow, and other cases compare the same functions: f_canvas_guided, a_unet_mc32_T5, f_guided, h_decoder_loss, and one
# for each stage of k_e2e.
LONG = ("f_canvas", "a_unet_T3", "a_unet_T5", "f_guided_50", "h_decoder_loss_spynet", "k_e2e")
CASES = names() if DEVICE == "cpu" else [name for name in names() if name.startswith(tuple(CHECKS))]


def test_there_are_cases():
    assert CASES, f"no case in {FOLDER}: set GOLDEN to a folder of NAME.json and NAME.safetensors files"


@pytest.mark.golden
@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if x in LONG else x for x in CASES])
def test_equals_the_recording(name):
    check = check_for(name, CHECKS)
    if DEVICE == "cpu" or name.startswith("k_"):  # that one moves its networks itself
        check(Case.read(FOLDER, name))
        return
    exact_float32()
    with torch.device(DEVICE):
        check(Case.read(FOLDER, name))
