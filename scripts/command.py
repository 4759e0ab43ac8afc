"""Shared by all commands: arguments, logging, progress bars, and errors as one line with exit status 2.

Imports only the standard library until a bar is shown, so that `scripts/doctor.py` always starts.
"""

import argparse
import contextlib
import difflib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ldm.printable import printable

DEVICE = "cpu, cuda, cuda:1 ... (default: cuda where there is one)"  # help of --device
REPORTED = (ValueError, OSError, FloatingPointError, MemoryError)  # errors that a user can correct


class Parser(argparse.ArgumentParser):
    """An argument parser that prints its description unchanged and raises ValueError for invalid arguments."""

    def __init__(self, prog: str, description: str, **options):
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, **options}
        super().__init__(prog=prog, description=description, **options)

    def error(self, message):
        raise ValueError(f"{message} (--help lists the options)")

    def parse_with_overrides(
        self, words: list[str] | None, lists: Sequence[str] = (), *, named: Sequence[str] = ()
    ) -> argparse.Namespace:
        """Parse arguments that end in `key.sub=value` overrides.

        An option with several values also takes the overrides after it: for the options of `lists` and `named`, those
        are moved to `overrides`. Options of `named` have values such as NAME=FOLDER. `words` in the result are the
        arguments as given.
        """
        self.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the configuration")
        args = self.parse_intermixed_args(words)
        for name in (*lists, *named):
            values, is_moved = getattr(args, name), is_dotted_override if name in named else is_override
            moved = [value for value in values if is_moved(str(value))]
            setattr(args, name, [value for value in values if value not in moved])
            args.overrides += map(str, moved)
        args.words = list(sys.argv[1:] if words is None else words)
        return args


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the flag that allows configurations to use code of the user."""
    what = "let configurations name the classes of a module of yours as targets: its code runs (default: none)"
    parser.add_argument("--trust", action="append", default=[], metavar="MODULE", help=what)


def is_override(word: str) -> bool:
    """Whether an argument is `key=value` or `key.sub=value`, and not an existing path."""
    return re.match(r"[^=/\\]+=", word) is not None and not os.path.exists(word)


def is_dotted_override(word: str) -> bool:
    """Whether an argument is `key.sub=value`, and not NAME=FOLDER or an existing path."""
    key, _, value = word.partition("=")
    names = key.lstrip("+").split(".")
    return is_override(word) and len(names) > 1 and all(map(str.isidentifier, names)) and not os.path.exists(value)


def integer_from(least: int) -> Callable[[str], int]:
    """Return an argument type: an integer of at least `least`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from {least}")
        return int(text)

    return parse


non_negative_int, positive_int = integer_from(0), integer_from(1)


def size_from(least: int, form: str) -> Callable[[str], tuple[int, int]]:
    """Return an argument type: two sides such as 64x48, each at least `least`; `form` describes them in messages."""

    def parse(text: str) -> tuple[int, int]:
        sides = text.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) >= least for side in sides):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {form}")
        return int(sides[0]), int(sides[1])

    return parse


def find_named(name: str, folder: Path, what: str) -> Path:
    """Return a YAML file by its path, or by its name in a folder. Raises ValueError with the known names."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        near = "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(name, known, n=1))
        raise ValueError(f"got {what} {name!r}, expected a YAML file or one of {', '.join(known)}{near}")
    return folder / f"{name}.yaml"


def tell(*lines: object, to: TextIO | None = None) -> None:
    """Print lines without control characters, to stdout by default.

    If the reader of a pipe has exited (`| head`), these and all later lines are discarded; the work continues.
    """
    stream = to or sys.stdout
    try:
        print("\n".join(map(printable, lines)), file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def first_line(error: BaseException) -> str:
    """Return the first line of an error message without control characters, or the name of its type."""
    return printable(next(iter(str(error).strip().splitlines()), type(error).__name__))


class Terminal(logging.Handler):
    """Prints INFO to stdout, and every other level to stderr with the program's name and the traceback, if any."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.program = program

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            tell(record.getMessage())
            return
        trace = traceback.format_exception(*record.exc_info) if record.exc_info else []
        tell(f"{self.program}: {record.getMessage()}", *"".join(trace).splitlines(), to=sys.stderr)


def log_to_terminal(program: str, level: int) -> None:
    """Print what the product logs from `level` on, in place of the handler of an earlier command."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, Terminal)]:
        root.removeHandler(handler)
    root.addHandler(Terminal(program))
    for name in ("ldm", "basicsr_deg", "scripts"):
        logging.getLogger(name).setLevel(level)


def with_bar(items: Iterable, title: str) -> Iterable:
    """Iterate over items with a progress bar, on a terminal only."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, description=title, transient=True, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Progress bars with the remaining time, on a terminal only; yields `report(what, done, total)`.

    Each `what` has its own line; finished lines are reused. Without `done`, the overall count increases by one.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    console, title = Console(stderr=True), escape(printable(title))
    times = (TimeElapsedColumn(), "left", TimeRemainingColumn())
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), *times)
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    with Progress(*columns, speed_estimate_period=600, **options) as bar:
        overall, lines, finished = bar.add_task(title, total=total), {}, []

        def report(what: str, done: int | None = None, total: int | None = None) -> None:
            if done is None:
                bar.update(overall, description=f"{title}: {what}", advance=1)
                return
            if what not in lines:
                bar.update(overall, visible=False)
                lines[what] = lines.pop(finished.pop()) if finished else bar.add_task(title)
                bar.reset(lines[what], description=f"{title}: {what}")
            bar.update(lines[what], completed=done, total=total)
            if done == total and what not in finished:
                finished.append(what)

        yield report


def explained(error: Exception) -> str | None:
    """Return the message of an error that a user can correct; None for a defect of the code."""
    return first_line(error) if isinstance(error, REPORTED) else None


def exit_status(
    program: str,
    work: Callable[[], int | None],
    *,
    stopped: str = "interrupted",
    explain: Callable[[Exception], str | None] = explained,
    level: int = logging.WARNING,
) -> int:
    """Run a command and return its exit status.

    Args:
        program: name of the command, printed before errors and warnings.
        work: the command; returns its exit status, or None for 0.
        stopped: message after Ctrl-C, unless the KeyboardInterrupt has one. The status is 130.
        explain: returns the message of an error that a user can correct (the status is 2), or None for a defect of
            the code, which is raised with its traceback.
        level: least severe level of logged messages that are printed.
    """
    log_to_terminal(program, level)
    try:
        return work() or 0
    except KeyboardInterrupt as interrupt:
        line, status = str(interrupt) or stopped, 130
    except Exception as error:
        line, status = explain(error), 2
        if line is None:
            raise
    tell(f"{program}: {line}", to=sys.stderr)
    return status
