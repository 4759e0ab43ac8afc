"""Which parameters of a test are run by `make test`, and which by `make test-all` alone."""

from collections.abc import Iterable

import pytest


def mostly_slow(names: str | tuple[str, ...], values: Iterable, *, fast: int = 1) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize` with all values but the first `fast` marked as slow."""
    values = list(values)
    several = isinstance(names, tuple)
    slow = [pytest.param(*(value if several else (value,)), marks=pytest.mark.slow) for value in values[fast:]]
    return pytest.mark.parametrize(names, values[:fast] + slow)
