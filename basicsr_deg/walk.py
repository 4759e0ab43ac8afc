"""Parameters that are drawn once per clip and then perform a random walk from frame to frame.

All random numbers come from the generator that is passed in, through six of its methods: `random`, `uniform`,
`choice`, `integers`, `standard_normal` and `poisson`.
"""

from collections.abc import Mapping, Sequence

import numpy as np


class Walk:
    """Random walk that starts uniformly in [low, high] and moves by at most `step` per frame, clipped to the range.

    Raises:
        ValueError: low above high, a negative step, or a value that is not finite.
    """

    def __init__(self, low: float, high: float, step: float = 0.0):
        if not (np.isfinite([low, high, step]).all() and low <= high and step >= 0):
            raise ValueError(f"got a walk in [{low}, {high}] by steps of {step}, expected low <= high and step >= 0")
        self.low, self.high, self.step = float(low), float(high), float(step)

    def start(self, rng) -> float:
        """Draw the value for the first frame."""
        return float(rng.uniform(self.low, self.high))

    def moved(self, value: float, rng) -> float:
        """Draw the value for the next frame: a uniform step, clipped to the range."""
        return self.clipped(value + rng.uniform(-self.step, self.step))

    def clipped(self, value: float) -> float:
        """Clip a value to the range."""
        return float(min(max(value, self.low), self.high))


def read_walk(setting: Mapping, name: str) -> Walk:
    """Walk for a configuration value `{range: [low, high], step: s}`. Raises ValueError with `name` in its message."""
    low, high = read_range(setting.get("range") if isinstance(setting, Mapping) else None, name)
    if unknown := set(setting) - {"range", "step"}:
        raise ValueError(f"{name}: got {sorted(unknown)[0]!r}, expected only range and step")
    step = setting.get("step", 0.0)
    if not _is_number(step):
        raise ValueError(f"{name}.step: got {step!r}, expected a number")
    try:
        return Walk(low, high, step)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read_range(pair: Sequence[float], name: str) -> tuple[float, float]:
    """Check a pair [low, high] of numbers. Raises ValueError with `name` in its message."""
    if not (isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_number, pair)) and pair[0] <= pair[1]):
        raise ValueError(f"{name}.range: got {pair!r}, expected two numbers [low, high]")
    return float(pair[0]), float(pair[1])


def read_weights(weights: Mapping[str, float], known: Sequence[str], name: str) -> dict[str, float]:
    """Check a mapping of names to probabilities, for `pick`.

    Raises:
        ValueError: a name that is not in `known`, a negative probability, or only zeros; the message contains `name`.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{name}: got {weights!r}, expected a mapping of {', '.join(known)} to probabilities")
    if unknown := [key for key in weights if key not in known]:
        raise ValueError(f"{name}: got {unknown[0]!r}, expected one of {', '.join(known)}")
    if not (all(_is_number(w) and w >= 0 for w in weights.values()) and sum(weights.values()) > 0):
        raise ValueError(f"{name}: got {dict(weights)}, expected probabilities of at least 0, not all of them 0")
    return {key: float(weight) for key, weight in weights.items()}


def check_probability(prob: float, name: str = "prob") -> float:
    """Check that a number is a probability and return it. Raises ValueError with `name` in its message."""
    if not (_is_number(prob) and 0 <= prob <= 1):
        raise ValueError(f"{name}: got {prob!r}, expected a probability from 0 to 1")
    return float(prob)


def pick(weights: Mapping[str, float], rng) -> str:
    """Draw a name by its weight (weights need not sum to 1), with one call of `rng.random`."""
    edges = np.cumsum(list(weights.values()))
    place = np.searchsorted(edges / edges[-1], rng.random(), side="right")
    return list(weights)[min(int(place), len(weights) - 1)]


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))
