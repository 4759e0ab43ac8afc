"""The method on another device than the frames, without one: no operation mixes the two, nothing is read unasked.

The other device is played by meta tensors, which have no values; copies to the CPU are zeros.
"""

import contextlib
import copy

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.methods.mgld import restoration
from scripts import vsr_val_ddpm_text_T_vqganfin_w_latent as latents
from tests.marks import mostly_slow
from tests.methods.toy import clip, method

MOVES = ("to", "copy_", "__setitem__")  # and other operations that may see two devices
SEEN = {"item": 0.5, "__bool__": True, "equal": True}  # results for values that do not exist


class OtherDevice(TorchFunctionMode):
    """Allow copies of meta tensors to the CPU, and refuse operations that mix devices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and first.is_meta:
            if name == "cpu" or (name == "to" and _target(args[1:], kwargs) == "cpu"):
                return torch.zeros(first.shape, dtype=first.dtype)
            if name in SEEN:
                return SEEN[name]
        lists = [value for value in args if isinstance(value, (list, tuple))]
        given = [x for part in ([*args, *kwargs.values()], *lists) for x in part if isinstance(x, Tensor) and x.ndim]
        assert name in MOVES or len({x.device for x in given}) < 2, f"{name} mixes devices"
        return func(*args, **kwargs)


def _target(args, kwargs) -> str | None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, (Tensor, torch.device, str)):
            return (value.device if isinstance(value, Tensor) else torch.device(value)).type
    return None


class Still(nn.Module):
    """A flow network that returns zero flow."""

    def forward(self, img1, img2):
        return (img2 - img1)[:, :2]


@pytest.fixture
def other_device(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(restoration, "scene_ends", lambda *args, **options: False)  # decided by values


def moved(*words, preset=None):
    toy = copy.deepcopy(method(*words, "sampling.steps=1", preset=preset, flow=Still()))
    for network in toy.networks.values():
        network.to("meta")
    return toy


@mostly_slow(
    ("words", "preset"),
    [
        (("decoding.color_fix=wavelet", "windows.batch=2"), None),
        (("+method.params.decoding.params.norms=frame", "+method.params.decoding.params.hold=0"), None),
        (("patch=64", "stride=44", "min_size=16", "n_frames=2"), "released"),
    ],
)
def test_frames_and_networks_may_be_on_two_devices(other_device, words, preset):
    toy = moved(*words, preset=preset)
    with OtherDevice():
        assert toy.restore(clip(2, 16, 17)).shape == (2, 3, 64, 68)


def test_latents_and_networks_may_be_on_two_devices(other_device):
    toy = moved("patch=64", "stride=44", "min_size=16", "decoding.color_fix=adain", preset="released")
    with OtherDevice():
        z, frames = latents.restore_sequence(toy, clip(2, 16, 16), seed=1, progress=lambda *call: None)
    assert (z.device.type, frames.device.type) == ("cpu", "cpu")
