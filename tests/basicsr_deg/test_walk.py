"""Draws by probability, and walks within their range with bounded steps."""

import numpy as np
import pytest

from basicsr_deg.walk import Walk, check_probability, pick, read_range, read_walk, read_weights


def test_a_walk_starts_uniformly_and_moves_by_at_most_a_step():
    rng, walk = np.random.default_rng(0), Walk(2, 3, 0.1)
    starts = np.array([walk.start(rng) for _ in range(2000)])
    assert starts.min() < 2.01 and starts.max() > 2.99 and abs(starts.mean() - 2.5) < 0.03
    values = [2.5]
    for _ in range(2000):
        values.append(walk.moved(values[-1], rng))
    steps = np.abs(np.diff(values))
    assert 0.09 < steps.max() <= 0.1 and min(values) == 2 and max(values) == 3  # clipped at both ends


def test_a_walk_without_steps_is_constant():
    rng = np.random.default_rng(0)
    assert Walk(1, 5).moved(3.25, rng) == 3.25


def test_pick_follows_the_weights_and_draws_one_number():
    rng, weights = np.random.default_rng(0), {"a": 1.0, "b": 0.0, "c": 3.0}
    drawn = [pick(weights, rng) for _ in range(4000)]
    assert drawn.count("b") == 0 and abs(drawn.count("c") / 4000 - 0.75) < 0.02
    rng, other = np.random.default_rng(1), np.random.default_rng(1)
    pick(weights, rng)
    other.random()
    assert rng.random() == other.random()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Walk(3, 2), "low <= high"),
        (lambda: Walk(0, 1, -0.1), "step >= 0"),
        (lambda: Walk(0, float("nan")), "low <= high"),
        (lambda: read_walk({"range": [2, 1], "step": 1}, "sigma"), "sigma.range: got"),
        (lambda: read_walk({"range": [1, 2], "stop": 1}, "sigma"), "sigma: got 'stop'"),
        (lambda: read_walk({"range": [1, 2], "step": "x"}, "sigma"), "sigma.step: got 'x'"),
        (lambda: read_walk({"range": [1, 2], "step": -1}, "sigma"), "sigma: got a walk"),
        (lambda: read_walk(3, "sigma"), "sigma.range: got None"),
        (lambda: read_range([1, 2, 3], "rate"), "rate.range: got"),
        (lambda: read_range([True, 2], "rate"), "rate.range: got"),
        (lambda: read_weights({"up": 1}, ("down",), "modes"), "modes: got 'up', expected one of down"),
        (lambda: read_weights({"down": 0}, ("down",), "modes"), "not all of them 0"),
        (lambda: read_weights({"down": -1}, ("down",), "modes"), "at least 0"),
        (lambda: read_weights([], ("down",), "modes"), "expected a mapping"),
        (lambda: check_probability(1.5), "prob: got 1.5"),
        (lambda: check_probability(True), "prob: got True"),
    ],
)
def test_invalid_values_are_refused(make, why):
    with pytest.raises(ValueError, match=why.replace("[", r"\[")):
        make()
