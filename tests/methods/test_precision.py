"""The precision of the networks: chosen by device, with weights of half precision off the CPU."""

import copy

import pytest
import torch
from torch import nn

from ldm.engine.assemble import with_precision
from ldm.methods.words import precision_on
from ldm.nets.layers import half_weights
from tests.fake_device import Counting
from tests.methods.toy import method, settings


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 6), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")]
)
def test_auto_is_the_fastest_safe_precision(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision_on("cuda:1", "auto") == expected
    assert precision_on("cuda:1", "fp32") == "fp32"
    assert precision_on("cpu", "auto") == "fp32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="got precision 'fp8', expected one of fp32, bf16, fp16, auto"):
        method("precision=fp8")


def test_records_hold_the_precision_that_was_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    asked = settings("precision=auto")
    assert with_precision(asked, "cuda").method.params.precision == "fp16"
    assert with_precision(asked, "cpu").method.params.precision == "fp32"


@torch.no_grad()
def test_half_weights_spare_the_casts_of_autocast():
    net = copy.deepcopy(method().networks["unet"])
    maps = [torch.randn(2, net.semb_channels, 8 >> level, 8 >> level) for level in range(net.levels)]
    inputs = torch.randn(2, net.out[2].out_channels, 8, 8), torch.tensor([3]), torch.randn(1, 4, net.context_dim), maps

    def run() -> tuple[torch.Tensor, int]:
        with torch.autocast("cpu", torch.bfloat16), Counting() as counting:
            return net(*inputs, num_frames=2), counting.counts["weight casts"]

    (before, casts), kinds = run(), (nn.GroupNorm, nn.LayerNorm)
    half_weights(net, torch.bfloat16)
    after, left = run()
    assert casts > 100 and left < 10  # what is left blends the frames of temporal layers
    assert (after - before).abs().max() < 0.05 * before.abs().max()
    assert all(part.weight.dtype == torch.float32 for part in net.modules() if isinstance(part, kinds))
