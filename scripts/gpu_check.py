"""Check this code on a GPU in a few minutes: exactness, rates, time of networks, of clips and of training steps.

python scripts/gpu_check.py -o check.json
python scripts/gpu_check.py -o check.json --device cuda:1 --minutes 12 --steps stages clip
python scripts/gpu_check.py -o check.json --tables docs/PERFORMANCE.md      (only writes the tables of a finished check)

Networks have the published size and random weights, so that no weight files are needed. Results are written after
every step. The failure of a step is recorded as its result, and the other steps run in a new process. A step is skipped
if less than half of its usual time is left. Missing packages such as omegaconf are imported from wheels in the folder
.whl of this clone; av is not needed. The exit status is 0 if all steps were tried.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

from ldm.files import write_atomically
from scripts.command import Parser, exit_status, first_line, tell

PROGRAM = "gpu_check.py"
ROOT = Path(__file__).resolve().parents[1]
MINUTES = {  # of each step on an H100
    "rates": 0.5,
    "operations": 0.3,
    "embedded": 1.0,
    "golden": 0.7,
    "stages": 2.5,
    "clip": 2.5,
    "faster": 1.5,
    "training": 1.5,
}
PATIENCE = 2.0  # times the usual minutes, and then a step is ended
POLL = 0.2  # seconds


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="JSON", help="the results; those in it are kept")
    add("--device", help="cuda, cuda:1, cpu ... (default: cuda where there is one)")
    add("--size", choices=("full", "toy"), default="full", help="of the networks (default: full, the published ones)")
    add("--minutes", type=float, default=12.0, help="in all (default: 12)")
    add("--steps", nargs="+", choices=MINUTES, default=list(MINUTES), metavar="STEP", help=", ".join(MINUTES))
    add("--tables", type=Path, metavar="MD", help="write the tables into this document, between its marks")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if not 0 < args.minutes < 1e4:
        raise ValueError(f"got --minutes {args.minutes}, expected a number above 0")
    return args


class Results:
    """The JSON file of results: "steps" by name, and the "running" step; written atomically after every change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"steps": {}}

    def write(self, **values) -> None:
        self.content |= values
        write_atomically(self.path, (json.dumps(self.content, indent=1) + "\n").encode())

    def begin(self, step: str) -> None:
        self.write(running={"step": step, "since": time.time()})

    def end(self, step: str, result: dict) -> None:
        self.content["steps"][step] = result
        self.write(running=None)

    def left(self, steps: list[str]) -> list[str]:
        return [step for step in steps if step not in self.content["steps"]]


def work(args: argparse.Namespace) -> None:
    """Run the steps that have no result yet."""
    sys.path.extend(map(str, sorted((ROOT / ".whl").glob("*.whl"))))
    from scripts.gpu_steps import STEPS, Check

    results, check = Results(args.output), Check(args.device, args.size)
    for step in results.left(args.steps):
        seconds = args.minutes * 60 - (time.time() - results.content["began"])
        if seconds < MINUTES[step] * 30:
            results.end(step, {"skipped": f"{seconds:.0f} s were left"})
            continue
        results.begin(step)
        began = time.perf_counter()
        try:
            result = STEPS[step](check)
        except Exception as error:  # whatever a device raises is a result
            result = {"error": f"{type(error).__name__}: {first_line(error)}"}
        results.end(step, result | {"step_seconds": round(time.perf_counter() - began, 2)})


def supervise(args: argparse.Namespace) -> None:
    """Run one worker process after another until every step has a result; an error of a device can end a process."""
    results = Results(args.output)
    if results.left(args.steps):
        results.write(began=time.time(), minutes=args.minutes, size=args.size, running=None)
    while Results(args.output).left(args.steps):
        command = [sys.executable, __file__, "--worker", "-o", str(args.output), "--size", args.size]
        command += ["--minutes", str(args.minutes), "--steps", *args.steps]
        command += ["--device", args.device] if args.device else []
        why = watch(subprocess.Popen(command), args)
        results = Results(args.output)
        running = results.content.get("running")
        if running:
            results.end(running["step"], {"error": why})
        elif why != "status 0":
            raise ValueError(f"{PROGRAM}: the check did not start: {why}")


def watch(process: subprocess.Popen, args: argparse.Namespace) -> str:
    """Wait for a worker, which is killed if a step takes too long; returns how it ended."""
    try:
        while process.poll() is None:
            time.sleep(POLL)
            running = Results(args.output).content.get("running")
            if running and time.time() - running["since"] > PATIENCE * 60 * MINUTES[running["step"]]:
                return f"ended after {time.time() - running['since']:.0f} s"
    finally:
        process.kill()
        process.wait()
    return f"status {process.returncode}"


def run(args: argparse.Namespace) -> None:
    if args.tables:
        from scripts.gpu_tables import put_into

        put_into(args.tables, Results(args.output).content)
        return
    if args.worker:
        work(args)
        return
    supervise(args)
    for step, result in Results(args.output).content["steps"].items():
        word = next((word for word in ("error", "skipped") if word in result), None)
        tell(f"{step}: {'done' if word is None else word + ', ' + result[word]}")


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)))


if __name__ == "__main__":
    sys.exit(main())
