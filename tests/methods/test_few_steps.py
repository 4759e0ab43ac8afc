"""Samplers for few steps and alternating windows within the method: results do not depend on windows."""

import pytest

from ldm.methods.mgld.settings import Sampling
from ldm.methods.windows import Windows
from tests.marks import mostly_slow
from tests.methods.toy import clip, pixelwise

CUTS = [
    ["windows.tile=7", "windows.tile_overlap=0", "windows.n_frames=2", "windows.frame_overlap=0"],
    ["windows.tile=16", "windows.tile_overlap=3", "windows.n_frames=4", "windows.frame_overlap=3", "windows.batch=64"],
    ["windows.frame_overlap=0", "windows.alternate=true", "windows.n_frames=3"],
    ["windows.frame_overlap=1", "windows.sharing_steps=2", "windows.alternate=true", "windows.n_frames=3"],
]


def difference(a, b) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@mostly_slow("sampler", ["tcd", "unipc", "lcm", "dpmpp_2m"], fast=2)
def test_every_sampler_gives_the_same_for_all_windows(sampler):
    """Noise is addressed by step and frame, and clean samples of earlier steps stay with their frames."""
    words = [f"sampling.sampler={sampler}", "sampling.steps=3", "sampling.guidance=none"]
    whole = pixelwise(*words, "windows.tile=1000", "windows.n_frames=1000").restore(clip(7, 16, 21), upscale=2)
    for more in CUTS:
        assert difference(pixelwise(*words, *more).restore(clip(7, 16, 21), upscale=2), whole) < 1e-5


def test_alternating_windows_meet_at_other_frames_in_every_step():
    windows = Windows(n_frames=5, frame_overlap=0, alternate=True)
    assert windows.frame_starts(21, 0) == [0, 5, 10, 15, 16] and windows.frame_starts(21, 1) == [0, 2, 7, 12, 16]
    assert windows.calls(1002, 8, 8, steps=2) == 402
    assert Windows(n_frames=5, frame_overlap=0).frame_starts(21, 1) == [0, 5, 10, 15, 16]


def test_windows_share_frames_in_the_last_steps_alone():
    windows = Windows(n_frames=5, frame_overlap=2, sharing_steps=1, alternate=True)
    assert [windows.frame_starts(11, step) for step in (0, 1, 2)] == [[0, 3, 6], [0, 2, 6], [0, 5, 6]]
    assert windows.calls(11, 8, 8, steps=3) == 9
    assert Windows(n_frames=5, frame_overlap=2, sharing_steps=0).frame_starts(11) == [0, 5, 6]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"sampler": "euler"}, "got sampler 'euler', expected one of ddpm, ddim, lcm, tcd, dpmpp_2m, unipc"),
        ({"spacing": "leading"}, "got spacing 'leading', expected one of even, trailing"),
        ({"spacing": "trailing", "arithmetic": "released"}, "expected float64"),
        ({"initial": "lr"}, "got initial 'lr', expected one of noised, lq"),
        ({"initial": "lq", "level": 1000}, "got level 1000, expected 0 to 999"),
        ({"sampler": "tcd", "gamma": 2.0}, "got gamma 2.0, expected 0 to 1"),
        ({"initial": "lq", "level": 9, "steps": 20}, "20 steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        Sampling(**settings)


def test_time_steps_of_few_steps():
    assert Sampling(steps=4, spacing="trailing").schedule.t.tolist() == [249, 499, 749, 999]
    assert Sampling(steps=4).schedule.t.tolist() == [0, 333, 666, 999]
    assert Sampling(steps=2, spacing="trailing", initial="lq", level=399).schedule.t.tolist() == [199, 399]
