"""The profiler at toy size: every stage is there, FLOPs are those one can count by hand, errors are one line."""

import json

import pytest
import torch
from torch.nn import functional as F

from ldm.nets.attention import CrossAttention
from scripts import profile_upscale

SMALL = ["--size", "toy", "--latent", "16x16", "--frames", "2", "--device", "cpu", "--repeat", "1"]


@pytest.fixture(autouse=True)
def small_rates(monkeypatch):
    """The bare rates of maps that a test can wait for."""
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, **how: real(*(min(length, 64) for length in size), **how))


def test_every_stage_is_measured(tmp_path, capsys):
    out = tmp_path / "profile.json"
    assert profile_upscale.main([*SMALL, "--steps", "50", "4", "--precision", "bf16", "-o", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert list(figures["stages"]) == ["flow", "encode", "structure", "unet", "decode"]
    for stage, its in figures["stages"].items():
        assert its["seconds"] > 0 and its["peak_bytes"] > 10e6
        assert (its["flops"] > 0) == (stage != "flow"), "DIS computes outside torch"
        assert its["flops_per_second"] == pytest.approx(its["flops"] / its["seconds"])
        assert its["share_of_conv"] == pytest.approx(its["flops_per_second"] / figures["rates"]["conv"])
    assert (figures["device"], figures["precision"], figures["torch"]) == ("cpu", "bf16", torch.__version__)
    seconds = {stage: its["seconds"] for stage, its in figures["stages"].items()}
    once = seconds["flow"] + seconds["encode"] + seconds["decode"]
    step = seconds["structure"] + seconds["unet"]
    assert figures["seconds_per_frame"] == pytest.approx({"50": (once + 50 * step) / 2, "4": (once + 4 * step) / 2})
    assert "4 steps" in capsys.readouterr().out


def test_some_stages_and_settings_of_the_configuration(tmp_path):
    out = tmp_path / "profile.json"
    words = [*SMALL, "--latent", "32x32", "-o", str(out), "flow=raft", "--stages", "flow", "encode"]
    assert profile_upscale.main(words) == 0
    figures = json.loads(out.read_text())
    assert list(figures["stages"]) == ["flow", "encode"] and figures["stages"]["flow"]["flops"] > 0
    assert figures["seconds_per_frame"] == {"50": None, "4": None}


def test_flops_are_twice_the_multiplications():
    x, kernel = torch.zeros(2, 8, 5, 6), torch.zeros(16, 8, 3, 3)
    assert profile_upscale.count_flops(lambda: F.conv2d(x, kernel, padding=1)) == 2 * (2 * 5 * 6) * (16 * 8 * 9)
    layer, tokens = CrossAttention(12, heads=3, dim_head=4), torch.zeros(2, 10, 12)
    products, attention = 4 * (2 * 2 * 10 * 12 * 12), 2 * (2 * 2 * 10 * 10 * 12)
    with torch.no_grad():
        assert profile_upscale.count_flops(lambda: layer(tokens)) == products + attention


def test_the_peak_falls_when_memory_is_given_back():
    machine = profile_upscale.Machine("cpu", "fp32")
    large = machine.peak(lambda: torch.ones(50_000_000))
    assert large > 200e6
    if profile_upscale.Path("/proc/self/clear_refs").exists():
        assert machine.peak(lambda: None) < large - 100e6


def test_a_network_that_cannot_be_compiled_runs_as_it_is(monkeypatch, capsys):
    def fails(*args):
        raise RuntimeError("no compiler\nhere")

    net = torch.nn.Linear(2, 2)
    monkeypatch.setattr(net, "compile", lambda: setattr(net, "_compiled_call_impl", fails))
    assert not profile_upscale.compiled(net, lambda: net(torch.zeros(1, 2)))
    assert net(torch.zeros(1, 2)).shape == (1, 2) and net._compiled_call_impl is None
    assert capsys.readouterr().err == "profile_upscale.py: not compiled: no compiler\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--latent", "16"], "got '16', expected HEIGHTxWIDTH"),
        (["--latent", "16x15"], "got latents of 16x15"),
        (["--frames", "0"], "got '0', expected a whole number from 1"),
        (["--device", "abacus"], "got device 'abacus'"),
        (["--stages", "sing"], "invalid choice: 'sing'"),
        (["networks.unet.params.no_such=1"], "no_such"),
        (["-o", "no/such/folder.json"], "no such folder"),
    ],
)
def test_errors_are_one_line(capsys, words, expected):
    assert profile_upscale.main([*SMALL, *words]) == 2
    line = capsys.readouterr().err
    assert expected in line and line.startswith("profile_upscale.py: ") and line.count("\n") == 1
