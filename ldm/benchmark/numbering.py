"""Frame numbers in file names: find missing frames, and compare the frames of two folders."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

DIGITS = re.compile("([0-9]+)")


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """Return the number of every frame, from the digits in which names of one pattern differ; None without an order.

    Raises ValueError for a name of another pattern and for a repeated number.
    """
    patterns = [_pattern(name) for name in names]
    usual, count = Counter(patterns).most_common(1)[0] if names else ("", 0)
    if count < len(names) and count * 2 <= len(names):
        _refuse_disorder(names)
        return None
    if odd := next((name for name, pattern in zip(names, patterns, strict=True) if pattern != usual), None):
        raise ValueError(f"{odd} is not named like the other frames, such as {names[patterns.index(usual)]}")
    groups = [*zip(*map(_numbers, names), strict=True)]
    differing = [group for group in groups if len(set(group)) > 1] or groups[-1:]
    rising = [group for group in differing if all(after > before for before, after in pairwise(group))]
    if not rising and len(differing) == 1 and (twice := [n for n, k in Counter(differing[0]).items() if k > 1]):
        both = [name for name, number in zip(names, differing[0], strict=True) if number == twice[0]]
        raise ValueError(f"{both[0]} and {both[1]} have the same number")
    steady = [group for group in rising if len({after - before for before, after in pairwise(group)}) < 2]
    return list((steady or rising)[0]) if rising else None


def _pattern(name: str) -> str:
    return DIGITS.sub("#", Path(name).stem.casefold())


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in DIGITS.findall(Path(name).stem)]


def _refuse_disorder(names: Sequence[str]) -> None:
    """Raise ValueError for names of several patterns if only some have numbers, or the numbers do not increase."""
    last = [numbers[-1] if (numbers := _numbers(name)) else None for name in names]
    if all(number is None for number in last):
        return
    if None in last:
        raise ValueError(f"{names[last.index(None)]} has no number, others have one")
    for (before, one), (after, other) in pairwise(zip(names, last, strict=True)):
        if other <= one:
            raise ValueError(f"{before} comes before {after}, so frames are not in the order of their numbers")


def gap_in(names: Sequence[str]) -> str | None:
    """Return a line about the first missing or foreign frame of a folder.

    Returns None if no frame is missing, or if the numbers have no regular step.
    """
    try:
        numbers = numbers_of(names)
    except ValueError as error:
        return str(error)
    steps = [after - before for before, after in pairwise(numbers or ())]
    step = min(steps, default=0)
    is_regular = step > 0 and not any(one % step for one in steps) and steps.count(step) * 2 >= len(steps)
    if not is_regular or len(set(steps)) == 1:
        return None
    lost = next(number + step for number, after in pairwise(numbers) if after - number != step)
    before = names[numbers.index(lost - step)]
    return f"frame {_renumbered(before, lost - step, lost)} is missing ({len(names)} exist)"


def _renumbered(name: str, old: int, new: int) -> str:
    """Return a name with a number replaced by another, padded to the same number of digits."""
    path = Path(name)
    words = DIGITS.split(path.stem)
    place = next(k for k in range(1, len(words), 2) if int(words[k]) == old)
    return "".join([*words[:place], str(new).zfill(len(words[place])), *words[place + 1 :]]) + path.suffix


def other_frames(names: Sequence[str], reference: Sequence[str]) -> str | None:
    """Return a line on how frames differ from the (first) frames of a reference; None if they match.

    Numbers must be equal, or start at 0 or 1. If there are fewer frames than in the reference, numbers that start again
    also need another pattern of names.
    """
    stems = [[Path(name).stem.casefold() for name in each] for each in (names, reference)]
    if len(reference) < 2 or stems[0] == stems[1][: len(names)]:
        return None
    ours, theirs = numbers_of(names), numbers_of(reference)
    if not ours or not theirs:
        return None
    both = min(len(ours), len(theirs))
    offsets = {one - other for one, other in zip(ours[:both], theirs[:both], strict=True)}
    restarted = ours[0] in (0, 1) and (len(ours) == 1 or {b - a for a, b in pairwise(ours)} == {1})
    if len(ours) < len(theirs):
        restarted = restarted and theirs[0] in (0, 1) and _pattern(names[0]) != _pattern(reference[0])
    if offsets == {0} or restarted or (len(ours) == 1 and theirs[0] in _numbers(names[0])):
        return None
    shown = [", ".join(map(str, numbers[:3])) for numbers in (ours, theirs)]
    return f"its frames are numbered {shown[0]} ..., the clip's {shown[1]} ...; expected the same numbers"
