"""What a method does on a device: how often the host waits for it, what is copied, how many kernels start.

The device is played by meta tensors (`tests.fake_device`). More tiles must not mean more waiting or copying.
"""

import contextlib
import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch

from ldm import config
from ldm.methods.contract import Request
from ldm.nets.raft import RAFT
from ldm.streaming.pipeline import Frame
from scripts.clip_flops import SIZES
from tests.fake_device import DEVICE, Counting
from tests.methods.toy import pixelwise

FRAMES = 5
WINDOWS = 2  # of 3 frames that share one


@pytest.fixture(autouse=True)
def plain_types(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)


def counts_of(*words: str) -> Counter:
    """Counts of restoring a clip of 16x16 pixels in one step, from the frames of a reader to pictures on the host."""
    toy = pixelwise("sampling.steps=1", "windows.scene_cut=null", *words)
    networks = {**toy.networks, "flow": RAFT(model="small", iterations=1)}
    networks = {name: copy.deepcopy(network).to(DEVICE) for name, network in networks.items()}
    toy = replace(toy, networks=networks)
    with Counting() as counting:
        run, restored = toy.stream(Request((16, 16), FRAMES)), []
        for number in range(FRAMES):
            run.push(Frame(number, {"lq": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}))
            restored += [frame["sr"].cpu() for frame in run.pull()]
        restored += [frame["sr"].cpu() for frame in run.pull(finish=True)]
    assert len(restored) == FRAMES
    return counting.counts


@pytest.mark.slow  # some ten thousand operations without values, each through Python
def test_the_host_waits_once_per_window_and_copies_a_handful():
    counts = counts_of("windows.tile=32", "decoding.windows.tile=32")
    guided = 2  # three frames, then the others
    # a frame is encoded and compared with the one before, a window sampled and decoded
    assert counts["reads"] <= 2 * FRAMES - 1 + 2 * WINDOWS + guided
    assert counts["to host"] == FRAMES
    # pixels and two draws of noise for a frame, one draw for a window
    assert counts["to device"] <= 3 * FRAMES + WINDOWS
    tiled = counts_of("windows.tile=16", "windows.tile_overlap=8", "decoding.windows.tile=32")
    tiles = 9
    assert tiled["reads"] == counts["reads"] and tiled["to host"] == FRAMES
    assert tiled["to device"] == counts["to device"] + tiles  # their weights, once


@pytest.mark.parametrize(("network", "most"), [("unet", 1200), ("structure", 280), ("flow", 1100)])
def test_calls_of_full_size_start_few_kernels(network, most):
    settings = config.load(SIZES["full"])
    with torch.device("meta"):
        net = config.instantiate(settings.networks[network]).to("meta").eval()
    z, step = torch.empty(5, 4, 64, 64, device="meta"), torch.empty(1, device="meta")
    with torch.no_grad(), Counting() as counting:
        if network == "unet":
            maps = [torch.empty(5, net.semb_channels, 64 >> k, 64 >> k, device="meta") for k in range(net.levels)]
            net(z, step, torch.empty(1, 77, net.context_dim, device="meta"), maps, num_frames=5)
        elif network == "structure":
            net(z, step)
        else:
            pictures = torch.empty(2, 3, 128, 128, device="meta")
            net(pictures, pictures)
    assert counting.counts["to device"] == counting.counts["reads"] == 0
    assert counting.counts["operations"] <= most
