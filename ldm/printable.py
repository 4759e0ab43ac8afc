"""Words of others for messages: names of files, entries and clips may hold anything."""

import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # Unicode: control, format (right to left), separators of lines


def printable(text: object, most: int | None = None) -> str:
    """Text that stays in its line and sends a terminal no commands: control characters as `\\x1b`; cut to `most`."""
    line = "".join(_escaped(letter) for letter in str(text))
    return line if most is None or len(line) <= most else f"{line[: most - 4]} ..."


def _escaped(letter: str) -> str:
    if unicodedata.category(letter) not in HIDDEN:
        return letter
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
