"""Networks without values: nothing is drawn, and what is slow to import is not imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.weights.blank import without_values

BUILD = """
import sys
from torch import nn
from ldm.weights.blank import without_values
from tests.scripts import toy
from ldm import config
with without_values():
    nets = config.instantiate(toy.settings()["networks"] | {"flow": toy.FLOWS["raft"]})
    nn.Embedding(3, 4)
assert all(value.is_meta for net in nets.values() for value in net.parameters())
assert "torch._dynamo" not in sys.modules
"""


def test_nothing_is_drawn():
    state = torch.random.get_rng_state()
    with without_values():
        layer = nn.Embedding(3, 4)
        nn.init.kaiming_normal_(layer.weight)
        drawn = torch.randn(2, 5)
    assert layer.weight.is_meta and drawn.is_meta and drawn.shape == (2, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.randn(2).is_meta


@pytest.mark.slow  # in a process of its own, which has not imported it
def test_the_compiler_is_not_imported():
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", BUILD], cwd=root, check=True)
