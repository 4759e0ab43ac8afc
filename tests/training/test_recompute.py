"""Gradient checkpointing: the same output, gradients and names with less memory."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.structure import StructureEncoder
from ldm.nets.unet import UNet
from ldm.training.recompute import recompute_blocks
from tests.methods.toy import randomise

SIZES = {"num_res_blocks": 1, "attention_resolutions": [1], "channel_mult": [1]}


def unet():
    net = UNet(model_channels=32, num_head_channels=16, context_dim=8, semb_channels=32, **SIZES)
    g = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 4, 8, 8, generator=g), torch.randn(1, 3, 8, generator=g)
    maps = [torch.randn(2, 32, 8, 8, generator=g)] if net.downsampling == 1 else None
    return net, lambda model: model(x, torch.tensor([3, 9]), context, maps, num_frames=2)


def structure():
    net = StructureEncoder(model_channels=32, out_channels=32, num_heads=2, **SIZES)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return net, lambda model: sum(m.square().sum() for m in _values(model(x, torch.tensor([3, 9]))))


def autoencoder():
    net = AutoencoderKL(ch=32, ch_mult=[1, 1], num_res_blocks=1)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return net, lambda model: model.decode(model.posterior(model.encode(x)).mean)


def _values(maps):
    return maps.values() if isinstance(maps, dict) else maps


def grown(net, run):
    """Output, gradients and bytes saved for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    own = {p.data_ptr() for p in net.parameters()}
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(net)
    size = sum(bytes_ for place, bytes_ in kept.items() if place not in own)
    out.square().sum().backward()
    return out.detach(), {name: p.grad for name, p in net.named_parameters()}, size


@pytest.mark.parametrize("make", [unet, structure, autoencoder])
def test_checkpointing_keeps_gradients_and_saves_memory(make):
    net, run = make()
    randomise(net)
    other = copy.deepcopy(net)
    names = list(other.state_dict())
    assert recompute_blocks(other) > 1
    assert list(other.state_dict()) == names
    (out, gradients, size), (out2, gradients2, size2) = grown(net, run), grown(other, run)
    assert torch.equal(out, out2)
    for name, gradient in gradients.items():
        assert (gradient is None) == (gradients2[name] is None), name
        assert gradient is None or torch.equal(gradient, gradients2[name]), name
    assert size2 < 0.7 * size
