"""Frames by the names of their files: which number each has, which is missing, whether two folders hold the same."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

DIGITS = re.compile("([0-9]+)")


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The number of every frame: the digits in which names of one pattern differ; None where names tell nothing.

    Raises ValueError for a file that is not named like the others, and for two of one number.
    """
    parts = [DIGITS.split(Path(name).stem.casefold()) for name in names]
    patterns = ["#".join(words[::2]) for words in parts]
    usual, count = Counter(patterns).most_common(1)[0] if names else ("", 0)
    if "#" not in usual or (count < len(names) and count * 2 <= len(names)):
        return None
    if odd := next((name for name, pattern in zip(names, patterns, strict=True) if pattern != usual), None):
        raise ValueError(f"{odd} is not named like the other frames, such as {names[patterns.index(usual)]}")
    groups = [*zip(*([int(digits) for digits in words[1::2]] for words in parts), strict=True)]
    differing = [group for group in groups if len(set(group)) > 1] or groups[-1:]
    counting = [group for group in differing if len(set(group)) == len(names)]
    if not counting and len(differing) == 1:
        twice = next(number for number in differing[0] if differing[0].count(number) > 1)
        both = [name for name, number in zip(names, differing[0], strict=True) if number == twice]
        raise ValueError(f"{both[0]} and {both[1]} have one number")
    return list(counting[-1]) if counting else None


def gap_in(names: Sequence[str]) -> str | None:
    """What is missing in a folder of frames, or is not one of them, in words."""
    try:
        numbers = numbers_of(names)
    except ValueError as error:
        return str(error)
    step = step_of(numbers or ())
    if step is None or step == 0:
        return None
    lost = next(number + step for number, after in pairwise(numbers) if after - number != step)
    before = names[numbers.index(lost - step)]
    return f"frame {_renumbered(before, lost - step, lost)} is missing ({len(names)} are there)"


def step_of(numbers: Sequence[int]) -> int | None:
    """By how much numbers would grow if none were missing; 0 where none is, None where that cannot be told."""
    steps = [after - before for before, after in pairwise(numbers)]
    if not steps or min(steps) < 1 or any(one % min(steps) for one in steps):
        return None
    return 0 if len(set(steps)) == 1 else min(steps)


def _renumbered(name: str, old: int, new: int) -> str:
    """A name with another number, as many digits wide."""
    path = Path(name)
    words = DIGITS.split(path.stem)
    place = next(k for k in range(len(words) - 2, 0, -2) if int(words[k]) == old)
    return "".join([*words[:place], str(new).zfill(len(words[place])), *words[place + 1 :]]) + path.suffix


def other_frames(names: Sequence[str], reference: Sequence[str]) -> str | None:
    """In what frames are not those of a reference, in words: with fewer of them, its first ones.

    Both may count from another number; folders without gaps are of the same frames if they have as many.
    """
    ours, theirs = numbers_of(names), numbers_of(reference)
    if not ours or not theirs:
        return None
    offsets = {one - other for one, other in zip(ours, theirs, strict=False)}
    if len(ours) == len(theirs):
        same = len(offsets) == 1 or step_of(ours) == 0
    else:
        same = len(offsets) == 1 and max(offsets) <= 0
    told = [", ".join(map(str, numbers[:3])) for numbers in (ours, theirs)]
    return None if same else f"its frames are numbered {told[0]} ..., the clip's {told[1]} ...; expected the same"
