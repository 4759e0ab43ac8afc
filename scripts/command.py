"""What the commands share: arguments, bars with the time left, and errors that are one line with exit status 2."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn, track

from ldm.printable import printable


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        raise ValueError(f"{message} (--help lists the options)")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The flag by which code of the user may be named in configurations."""
    what = "let configurations name the classes of a module of yours as targets: its code runs (default: none)"
    parser.add_argument("--trust", action="append", default=[], metavar="MODULE", help=what)


def natural(text: str, least: int = 0) -> int:
    """A whole number of at least `least`, as a type of an argument."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {least}")
    return int(text)


def tell(line: str) -> None:
    """Print a line; where no one reads the output any more (`| head`), the work continues without."""
    try:
        print(printable(line), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def first_line(error: BaseException) -> str:
    """What an error says, in a line without control characters."""
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__))


def followed(items: Iterable, title: str) -> Iterable:
    """The items, with a progress bar on a terminal."""
    console = Console(stderr=True)
    return track(items, description=title, transient=True, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Bars with the time left, on a terminal only; yields report(what, done, total).

    Every `what` has a line, that of one that is finished where there is one. Without `done` it is one more of `total`.
    """
    console = Console(stderr=True)
    title = escape(printable(title))
    times = (TimeElapsedColumn(), "left", TimeRemainingColumn())
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), *times)
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    with Progress(*columns, speed_estimate_period=600, **options) as bar:
        whole, lines, finished = bar.add_task(title, total=total), {}, []

        def report(what: str, done: int | None = None, total: int | None = None) -> None:
            if done is None:
                bar.update(whole, description=f"{title}: {what}", advance=1)
                return
            if what not in lines:
                bar.update(whole, visible=False)
                lines[what] = lines.pop(finished.pop()) if finished else bar.add_task(title)
                bar.reset(lines[what], description=f"{title}: {what}")
            bar.update(lines[what], completed=done, total=total)
            if done == total and what not in finished:
                finished.append(what)

        yield report


def carry_out(program: str, work: Callable[[], int | None], *, stopped: str = "interrupted") -> int:
    """The exit status: what work() returns; 2 after one line for what a person can cause; 130 after Ctrl-C."""
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(f"{program}: {stopped}", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{program}: {first_line(error)}", file=sys.stderr)
        return 2
