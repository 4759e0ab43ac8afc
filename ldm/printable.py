"""Escape text for messages, since names of files, entries and clips may contain any characters."""

import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # Unicode: control, format (right to left), separators of lines


def printable(text: object, most: int | None = None) -> str:
    """Return text on one line, with control characters escaped as in `\\x1b`, cut to `most` characters."""
    line = "".join(_escaped(letter) for letter in str(text))
    return line if most is None or len(line) <= most else f"{line[: most - 4]} ..."


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) not in HIDDEN:
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
