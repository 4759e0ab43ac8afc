"""The profiler at toy size: every part of a method is measured, FLOPs equal those counted by hand."""

import json
import time

import pytest
import torch
from torch.nn import functional as F

from ldm import video
from ldm.engine.device import count_flops
from ldm.nets.attention import CrossAttention
from scripts import profile_upscale
from scripts.host_share import NetworkTime
from tests.methods.toy import TOY

SMALL = ["--config", str(TOY), "--side", "16", "--device", "cpu", "--repeat", "1"]


@pytest.fixture(autouse=True)
def small_rates(monkeypatch):
    """Reference rates of small maps, to save time."""
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: real(*(min(length, 64) for length in size), **how))


@pytest.mark.slow  # every part, several times
def test_every_part_is_measured(tmp_path, capsys):
    out = tmp_path / "profile.json"
    assert profile_upscale.main([*SMALL, "--precision", "bf16", "-o", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert list(figures["parts"]) == ["sampling", "encoding", "decoding", "maps"]
    for its in figures["parts"].values():
        assert its["seconds"] > 0 and its["peak_bytes"] > 10e6 and its["flops"] > 0
        assert its["flops_per_second"] == pytest.approx(its["flops"] / its["seconds"])
        assert its["share_of_conv"] == pytest.approx(its["flops_per_second"] / figures["rates"]["conv"])
    assert (figures["device"], figures["precision"], figures["torch"]) == ("cpu", "bf16", torch.__version__)
    assert len(capsys.readouterr().out.splitlines()) == 4 + 4


def test_parts_and_settings_can_be_chosen(tmp_path):
    out = tmp_path / "profile.json"
    assert profile_upscale.main([*SMALL, "-o", str(out), "--parts", "encoding", "method.params.min_size=64"]) == 0
    figures = json.loads(out.read_text())
    assert list(figures["parts"]) == ["encoding"] and figures["overrides"] == ["method.params.min_size=64"]


def test_flops_are_twice_the_multiplications():
    x, kernel = torch.zeros(2, 8, 5, 6), torch.zeros(16, 8, 3, 3)
    assert count_flops(lambda: F.conv2d(x, kernel, padding=1)) == 2 * (2 * 5 * 6) * (16 * 8 * 9)
    layer, tokens = CrossAttention(12, heads=3, dim_head=4), torch.zeros(2, 10, 12)
    products, attention = 4 * (2 * 2 * 10 * 12 * 12), 2 * (2 * 2 * 10 * 10 * 12)
    with torch.no_grad():
        assert count_flops(lambda: layer(tokens)) == products + attention


def test_the_peak_falls_when_memory_is_freed():
    machine = profile_upscale.Machine("cpu", "fp32")
    large = machine.peak(lambda: torch.ones(50_000_000))
    assert large > 200e6
    if profile_upscale.Path("/proc/self/clear_refs").exists():
        assert machine.peak(lambda: None) < large - 100e6


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--side", "0"], "got '0', expected a whole number from 1"),
        (["--device", "abacus"], "got device 'abacus'"),
        (["--parts", "sing"], "got part 'sing', expected sampling, "),
        (["networks.unet.params.no_such=1"], "no_such"),
        (["-o", "no/such/folder.json"], "no such folder"),
    ],
)
def test_errors_are_one_line(capsys, words, expected):
    assert profile_upscale.main([*SMALL, *words]) == 2
    line = capsys.readouterr().err
    assert expected in line and line.startswith("profile_upscale.py: ") and line.count("\n") == 1


def test_the_time_of_networks_is_that_of_their_outermost_calls():
    inner = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.Linear(400, 400))
    net, x, spent = torch.nn.Sequential(inner, torch.nn.ReLU()), torch.ones(4000, 400), NetworkTime()
    with spent.counted():
        began = time.thread_time()
        net(x)
        most = time.thread_time() - began
        x @ x.t()  # not in a network
    assert 0 < spent.seconds <= most
    kept = spent.seconds
    net(x)
    assert spent.seconds == kept


def test_an_error_in_a_network_ends_its_call():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise ValueError

    spent = NetworkTime()
    with spent.counted():
        with pytest.raises(ValueError):
            Broken()(0)
        began = spent.seconds
        torch.nn.Identity()(0)
    assert spent.seconds > began


@pytest.mark.slow  # a whole run
def test_the_share_outside_of_networks_is_measured_on_a_whole_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MGLDVSR_CACHE", str(tmp_path / "cache"))
    with video.open_writer(tmp_path / "in.mp4", size=(16, 16)) as writer:
        for _ in range(2):
            writer.write(torch.zeros(3, 16, 16))
    out = tmp_path / "share.json"
    words = ["--clip", str(tmp_path / "in.mp4"), "--upscale", "1", "--device", "cpu", "-o", str(out)]
    assert profile_upscale.main([*words, "method.params.sampling.params.steps=1"]) == 0
    figures = json.loads(out.read_text())
    assert figures["frames"] == 2 and 0 < figures["networks"] < figures["seconds"]
    assert figures["share"] == pytest.approx(1 - figures["networks"] / figures["seconds"])
    assert "outside" in capsys.readouterr().out
