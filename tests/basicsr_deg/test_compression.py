"""JPEG: colours, loss by quality, and a quality that walks in integer steps."""

import numpy as np
import pytest

from basicsr_deg.compression import JPEG, as_bytes, jpeg


def picture(seed=0, height=40, width=52):
    y, x = np.mgrid[:height, :width]
    wave = np.stack([np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)], -1)
    return np.uint8(127 + 90 * wave + np.random.default_rng(seed).normal(0, 3, wave.shape))


def test_rounding_to_bytes():
    np.testing.assert_array_equal(as_bytes(np.array([-3.0, 0.4, 0.6, 254.7, 300.0])), [0, 0, 1, 255, 255])
    frame = picture()
    assert as_bytes(frame) is frame


def test_red_stays_red():
    red = np.zeros((16, 16, 3), np.uint8) + np.array([220, 10, 20], np.uint8)
    assert np.abs(jpeg(red, 95).astype(int) - red).max() <= 3


def test_a_lower_quality_loses_more():
    frame = picture()
    loss = [np.abs(jpeg(frame, quality).astype(int) - frame).mean() for quality in (100, 90, 60, 30)]
    assert loss == sorted(loss) and 2 * loss[0] < loss[-1]
    assert jpeg(frame.astype(np.float32) + 0.2, 100).dtype == np.uint8


def test_quality_walks_in_integer_steps_within_its_range():
    notes = {}
    clip = [picture(k, 8, 8) for k in range(40)]
    list(JPEG({"range": [50, 60], "step": 3})(clip, np.random.default_rng(0), notes=notes))
    assert len(notes["quality"]) == 40 and all(type(q) is int for q in notes["quality"])
    steps = np.abs(np.diff(notes["quality"]))
    assert steps.max() == 3 and min(notes["quality"]) >= 50 and max(notes["quality"]) <= 60


def test_steps_below_one_half_round_to_zero():
    notes = {}
    list(JPEG({"range": [50, 60], "step": 0.4})([picture(0, 8, 8)] * 30, np.random.default_rng(0), notes=notes))
    assert len(set(notes["quality"])) == 1


def test_frames_are_compressed_with_the_recorded_quality():
    notes, frame = {}, picture()
    out = list(JPEG({"range": [20, 90], "step": 9})([frame] * 4, np.random.default_rng(1), notes=notes))
    for got, quality in zip(out, notes["quality"], strict=True):
        np.testing.assert_array_equal(got, jpeg(frame, quality))


def test_a_quality_out_of_range_is_refused():
    with pytest.raises(ValueError, match="within 0 to 100"):
        JPEG({"range": [50, 120], "step": 3})
