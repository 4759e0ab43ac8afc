"""Make the HTML report of a benchmark again: one file that needs no network.

python scripts/report.py results/reds4

Reads results.json in the folder and the frames that it refers to, and writes report.html beside it.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from ldm.report.page import MEGABYTES, report_of
from scripts.command import Parser, exit_status, tell, with_bar

PROGRAM = "report.py"


def megabytes(text: str) -> float:
    if not 0.5 <= float(text) <= 100:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0.5 to 100 megabytes")
    return float(text)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("folder", type=Path, help="folder that benchmark.py wrote")
    add("--method", help="method whose worst frames are shown (default: the first that was upscaled)")
    add("--megabytes", type=megabytes, default=MEGABYTES, help=f"size of the page at most (default: {MEGABYTES:g})")
    return parser.parse_args(words)


def run(args: argparse.Namespace) -> None:
    bar = partial(with_bar, title="report")
    tell(report_of(args.folder, method=args.method, megabytes=args.megabytes, bar=bar))


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
