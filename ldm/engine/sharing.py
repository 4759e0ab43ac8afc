"""Distribute jobs among independent processes that share only a folder."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from ldm.engine.claims import Claim, take

Item = TypeVar("Item")


def share(items: Iterable[Item], work: Callable[[Item, Claim], bool], *, place: Callable) -> tuple[int, list[Item]]:
    """Work on every item that no other process has claimed, until none is free.

    Items whose process was killed meanwhile are free again and taken in the next pass. `work(item, claim)` must check
    first whether the item is finished, since another process may have done it, and returns whether it succeeded.

    Args:
        place: place(item) -> the path of its output, beside which the claim is.
    Returns:
        The number of items that failed, and the items that other processes have.
    """
    left, failed, progress = list(items), 0, True
    while left and progress:
        progress = False
        for item in list(left):
            claim = take(place(item))
            if claim is None:
                continue
            with claim:
                progress = True
                left.remove(item)
                failed += not work(item, claim)
    return failed, left
