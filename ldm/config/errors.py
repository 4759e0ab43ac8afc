"""The error of a configuration, and helpers for its messages."""

import difflib
from collections.abc import Iterable
from typing import Any

from ldm.printable import printable

LONGEST = 1000  # characters of a message
SHOWN = 80  # characters of a value or a name in a message


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line that names the position."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, LONGEST))


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(name: Any, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the end of a message that suggests the known name most similar to `name`; "" if none is known."""
    close = difflib.get_close_matches(str(name)[:SHOWN], list(known), n=1, cutoff=0.0)
    return f"; the nearest known is {prefix}{close[0]}" if close else ""


def brief(value: Any) -> str:
    """Return a short text for a value in a message; for objects, their type."""
    if isinstance(value, (list, tuple, dict)) and not _is_plain(value):
        return f"a {type(value).__name__} of objects"
    if isinstance(value, (str, int, float, list, tuple, dict, type(None))):
        try:
            text = repr(value)
        except ValueError:  # a whole number of more digits than Python prints
            return "a number of thousands of digits"
        return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
    return f"a {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    """Whether a list or mapping contains only plain values at its first level."""
    children = value.values() if isinstance(value, dict) else value
    return all(isinstance(child, (str, int, float, list, tuple, dict, type(None))) for child in children)
