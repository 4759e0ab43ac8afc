"""A measure keeps count of its frames, its means, and its reason when there is no figure."""

import math

import numpy as np
import pytest
import torch

from ldm.metrics.measure import Measure, Recipe, SharedFrame
from ldm.metrics.scored_frame import Unavailable

BLACK = np.zeros((8, 8, 3), np.uint8)


def grey(value):
    return np.full((8, 8, 3), value, np.uint8)


def brightness(before, current):
    return float(current.frame.mean())


def step(before, current):
    return float(current.frame.mean() - before.frame.mean()), float(current.truth.mean() - before.truth.mean())


def measure(score=brightness, *, reference=False, **recipe):
    return Measure("m", Recipe("words", score, **recipe), better="higher", reference=reference)


def test_a_measure_of_frames():
    m = measure()
    for value in (10, 20, 60):
        m.push(grey(value))
    assert m.figures() == {"m": 30}
    assert m.per_frame() == [10, 20, 60]
    assert (m.protocol, m.better, m.reference, m.missing) == ("words", "higher", False, None)


def test_a_measure_of_pairs_and_the_truths_own():
    m = measure(step, span="pair", series=("", "_truth"))
    for value in (10, 20, 60):
        m.push(grey(value), grey(2 * value))
    assert m.figures() == {"m": 25, "m_truth": 50}
    assert math.isnan(m.per_frame()[0]) and m.per_frame()[1:] == [10, 40]


def test_one_buffer_may_serve_for_all_frames():
    m, buffer = measure(step, span="pair", series=("", "_truth")), BLACK.copy()
    for value in (10, 20, 60):
        buffer[:] = value
        m.push(buffer, buffer)
    assert m.figures() == {"m": 25, "m_truth": 25}


def test_what_says_nothing_does_not_count():
    values = iter([1.0, math.nan, 4.0])
    m = measure(lambda before, current: next(values))
    for _ in range(3):
        m.push(BLACK)
    assert m.figures() == {"m": 2.5}
    assert math.isnan(measure().figures()["m"])
    perfect = measure(lambda before, current: math.inf)
    perfect.push(BLACK)
    assert perfect.figures() == {"m": math.inf}


def test_chosen_frames_and_their_pairs():
    m = measure()
    m.chosen = lambda number: number in (1, 2)
    pairs = measure(step, span="pair", series=("", "_truth"))
    pairs.chosen = m.chosen
    for value in (10, 20, 60, 61):
        m.push(grey(value))
        pairs.push(grey(value), grey(value))
    assert m.figures() == {"m": 40}
    assert [math.isnan(v) for v in m.per_frame()] == [True, False, False, True]
    assert pairs.figures()["m"] == 40  # of 20 to 60 alone


def test_a_reason_instead_of_a_figure():
    def fails(before, current):
        raise Unavailable("no weights")

    m = measure(fails, series=("", "_truth"))
    m.push(BLACK)
    m.push(BLACK)
    assert m.missing == "no weights"
    assert all(math.isnan(value) for value in m.figures().values()) and len(m.figures()) == 2
    blind = measure(reference=True)
    blind.push(BLACK)
    assert blind.missing == "there is no truth to compare with"


def test_figures_that_are_known_at_the_end():
    seen, asked = [], []

    def finish():
        asked.append(True)
        return [7.0], [float(value) for value in seen]

    m = measure(lambda before, current: seen.append(int(current.frame[0, 0, 0])), finish=finish)
    m.chosen = lambda number: number != 1
    for value in (10, 20, 60):
        m.push(grey(value))
    assert m.figures() == m.figures() == {"m": 7}
    assert m.per_frame()[::2] == [10, 60] and math.isnan(m.per_frame()[1])
    assert len(asked) == 1
    with pytest.raises(ValueError, match="after its figures"):
        m.push(BLACK)


def test_an_end_that_fails_is_a_reason():
    def finish():
        raise Unavailable("ffmpeg failed")

    m = measure(lambda before, current: None, finish=finish)
    m.push(BLACK)
    assert math.isnan(m.figures()["m"])
    assert m.missing == "ffmpeg failed"


def test_sizes_that_change_are_named():
    m = measure()
    m.push(BLACK)
    with pytest.raises(ValueError, match="neighbouring frames of 8x8 and 4x8"):
        m.push(BLACK[:, :4])
    with pytest.raises(ValueError, match="got frames of 8x8 and 8x4"):
        measure(reference=True).push(BLACK, BLACK[:4])


def test_a_moment_is_prepared_once_for_all():
    shared, frame = SharedFrame(), torch.rand(3, 8, 8)
    first = shared.scored(0, frame, None)
    assert shared.scored(0, frame, None) is first
    assert shared.scored(1, frame, None) is not first


def test_an_end_with_another_number_of_values_is_a_reason():
    m = measure(lambda before, current: None, finish=lambda: ([7.0], [1.0]))
    for value in (10, 20):
        m.push(grey(value))
    assert math.isnan(m.figures()["m"]) and m.missing == "1 values came back for 2 frames"
