"""What the commands share: a parser that says what is wrong in one line, whole numbers, errors in one line, bars."""

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn, track


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


@contextlib.contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable[[str, int | None, int | None], None]]:
    """Bars with the time left, on a terminal only; yields report(what, done, total), where done None is one more."""
    console = Console(stderr=True)
    times = (TimeElapsedColumn(), "left", TimeRemainingColumn())
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), *times)
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    with Progress(*columns, speed_estimate_period=600, **options) as bar:
        tasks = {}

        def report(what: str, done: int | None, total: int | None) -> None:
            if done is None:
                bar.update(all_of_it, description=f"{title}: {what}", advance=1)
                return
            if what not in tasks:
                tasks[what] = bar.add_task(f"{title}: {what}", total=None)
            bar.update(tasks[what], completed=done, total=total)

        all_of_it = bar.add_task(title, total=total, visible=total is not None)
        yield report
