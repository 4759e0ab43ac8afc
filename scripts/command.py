"""What the commands share: a parser that says what is wrong in one line, whole numbers, errors in one line."""

import argparse
from collections.abc import Iterable

from rich.console import Console
from rich.progress import track


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        raise ValueError(f"{message} (--help lists the options)")


def natural(text: str, least: int = 0) -> int:
    """A whole number of at least `least`, as a type of an argument."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {least}")
    return int(text)


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def followed(items: Iterable, title: str) -> Iterable:
    """The items, with a progress bar on a terminal."""
    console = Console(stderr=True)
    return track(items, description=title, transient=True, console=console, disable=not console.is_terminal)
