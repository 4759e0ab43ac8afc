"""Checks for values that are not finite, with one transfer to the host for many of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_waiting: ContextVar[list[tuple[Tensor, Callable[[], str]]] | None] = ContextVar("waiting", default=None)


def checked_finite(x: Tensor, message: Callable[[], str]) -> Tensor:
    """Return x. Raises FloatingPointError with `message()` if it has NaN or infinite values.

    Within `one_check`, the error is raised at its end.
    """
    finite, waiting = torch.isfinite(x).all(), _waiting.get()
    if waiting is not None:
        waiting.append((finite, message))
    elif not finite:
        raise FloatingPointError(message())
    return x


@contextmanager
def one_check() -> Iterator[None]:
    """Collect the checks within, and read their results together at the end, so that the host waits once.

    Raises FloatingPointError with the message of the first check that failed.
    """
    checks: list[tuple[Tensor, Callable[[], str]]] = []
    token = _waiting.set(checks)
    try:
        yield
    finally:
        _waiting.reset(token)
    if checks and not torch.stack([finite for finite, _ in checks]).all():
        raise FloatingPointError(next(message() for finite, message in checks if not finite))
