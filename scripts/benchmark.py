"""Measure a method on a test set and put the figures beside the published ones, the protocol beside every number.

python scripts/benchmark.py --dataset reds4 --root REDS/ --weights checkpoints/ --seeds 3
python scripts/benchmark.py --dataset udm10 --root UDM10/ --results ours=results/a dove=results/b -o results/udm10

Upscales the clips (as scripts/upscale.py does), or scores folders of results: frames in folders, or lossless videos,
named like the clips. A set is a file of configs/benchmark. Writes results.json, results.csv and results.md into the
output folder; a stopped run goes on where it was. Words like method.params.sampling.params.steps=8 change the model.
"""

import argparse
import contextlib
import difflib
import importlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait lose most on a busy machine

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from ldm import checkpoint, config
from ldm.engine.assemble import EMBEDDED, FLOW_FILES, ROOT, find_weights
from ldm.engine.device import usable_device
from ldm.metrics.protocol import Options, measures
from scripts import degrade, upscale
from scripts.benchmark_making import Restorer, raft_flow
from scripts.benchmark_run import Run
from scripts.benchmark_sets import GIVEN, Clip, Dataset, check_result, clips_at, looked_at, paired, some
from scripts.command import Parser, first_line

PROGRAM = "benchmark.py"
SETS = ROOT / "configs" / "benchmark"
LISTS = ("weights", "config", "results", "metrics")  # flags that take several words
NAME = re.compile(r"[\w.+-]+")


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; `seeds` and `lq` as given, `words` all of it."""
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the model")
    add_files(parser.add_argument_group("what is measured"))
    add_measures(parser.add_argument_group("how"))
    upscale.add_settings(parser.add_argument_group("settings of the model (default: what its configuration says)"))
    add_running(parser.add_argument_group("running"))
    args = parser.parse_intermixed_args(words)
    for name in LISTS:  # which also catch overrides that follow them
        given = getattr(args, name)
        caught = [w for w in given if w.count("=") and "." in w.split("=")[0] and not Path(w).exists()]
        setattr(args, name, [word for word in given if word not in caught])
        args.overrides += caught
    args.words = sys.argv[1:] if words is None else words
    return args


def add_files(group) -> None:
    add = group.add_argument
    add("--dataset", required=True, help="a name in configs/benchmark, or a YAML file")
    add("--root", type=Path, required=True, help="folder of the test set")
    add("-o", "--output", type=Path, help="folder to write (default: results/DATASET)")
    add("--results", nargs="+", default=[], metavar="[NAME=]DIR", help="score these folders (upscale: with --weights)")
    add("--weights", nargs="+", default=[], metavar="PATH", help="folder or weight files (default: the embedded model)")
    add("--bicubic", action="store_true", help="also score bicubic interpolation (default: no)")
    add("--lq", metavar="KIND", help="given, or a degradation: the folder found, or made (default: the set's)")
    add("--scale", type=upscale.counted, help="sides of the restored frames over those of the LQ (default: the set's)")
    add("--max_clips", type=upscale.counted, help="clips to take at most (default: all)")
    add("--max_frames", type=upscale.counted, help="frames to take of each clip at most (default: all)")


def add_measures(group) -> None:
    add = group.add_argument
    add("--metrics", nargs="+", default=[], metavar="NAME", help="such as psnr psnr:channels=y (default: the set's)")
    add("--published", metavar="TABLE", help="which table of the set to compare with (default: the first that fits)")
    add("--niqe_params", type=Path, metavar="NPZ", help="the official pristine parameters (default: an installed one)")
    add("--raft", type=Path, metavar="FILE", help="raft-things weights for flow=raft (default: in --weights)")
    add("--ffmpeg", type=Path, help="an ffmpeg with libvmaf (default: what is installed)")
    add("--dover", type=Path, metavar="DIR", help="a checkout of DOVER with its weights (default: no DOVER)")
    add("--seeds", type=upscale.counted, default=1, help="seeds of the noise to average over (default: 1)")
    add("--seed", type=upscale.natural, default=42, help="the first of them (default: 42)")
    add("--lq_seed", type=upscale.natural, default=0, help="of the degradation, where LQ is made (default: 0)")


def add_running(group) -> None:
    add = group.add_argument
    add("--config", nargs="+", default=[], metavar="YAML", help="model configuration (default: that of the weights)")
    add("--preset", help="a file of configs/presets merged last, such as released (default: none)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--memory", metavar="SIZE", help="memory to use, such as 12G (default: what is free)")
    add("--compile", action="store_true", help="compile the networks with torch.compile (default: no)")
    add("--save_every", type=upscale.counted, default=16, metavar="N", help="frames between savings (default: 16)")
    add("--no_report", action="store_true", help="leave out the HTML page (default: no)")


def read_set(name: str) -> Dataset:
    """A test set by its name or the path of its YAML. Raises ValueError, naming what there is."""
    path = Path(name)
    if not name.endswith((".yaml", ".yml")):
        known = sorted(file.stem for file in SETS.glob("*.yaml"))
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"got dataset {name!r}, expected a YAML file or one of {', '.join(known)}; {near[0]}?")
        path = SETS / f"{name}.yaml"
    settings = config.load(path)
    config.check_target(settings, "benchmark")
    return config.instantiate(settings.benchmark)


def folders_of(words: list[str]) -> dict[str, Path]:
    """Methods by name from `[name=]DIR` words. Raises ValueError for folders that are not there and names twice."""
    folders, own = {}, ("bicubic", "embedded", "mgld-vsr")
    for word in words:
        name, equals, place = word.partition("=")
        path = Path(place if equals and not Path(word).exists() else word)
        name = name if equals and path == Path(place) else path.resolve().name
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder of results; expected [NAME=]DIR")
        if not NAME.fullmatch(name) or name.casefold() in (*map(str.casefold, folders), *own):
            good = "letters, digits and . + - _" if not NAME.fullmatch(name) else "a name of its own"
            raise ValueError(f"got the method name {name!r} for {path}, expected {good}: write NAME=DIR")
        folders[name] = path
    return folders


# ---- the clips


def choose_lq(dataset: Dataset, found, wanted: str | None) -> str | None:
    """Which kind of LQ is taken: the one wanted, or the first of the set's that is there or can be made."""
    if wanted:
        if wanted == GIVEN and GIVEN not in found.lq:
            raise ValueError(f"got --lq given, but no folder of LQ was found; there is {some(found.lq) or 'none'}")
        if wanted not in found.lq:
            degrade.find_protocol(wanted)
        return wanted
    makeable = [kind for kind in dataset.lq if kind in found.lq or (kind != GIVEN and found.gt)]
    return makeable[0] if makeable else next(iter(found.lq), None)


def look(dataset: Dataset, found, kind: str | None, args, bar) -> list[Clip]:
    """All clips, checked against each other and against the set; what is odd is raised, all of it told before."""
    names = found.names[: args.max_clips]
    paths = {"gt": found.gt, "lq": found.lq.get(kind, {})}
    absent = [name for name in names if paths["lq"] and name not in paths["lq"]]
    if absent:
        raise ValueError(f"{args.root}: {some(absent)} is in the truth, not in the LQ ({kind}); expected both")
    sources, lines = {}, []
    with bar("looking at clips", 2 * len(names)) as report:
        for part, clips in paths.items():
            chosen = {name: clips[name] for name in names if name in clips}
            sources[part] = looked_at(chosen, lambda name: report(name, None, None))
            lines += dataset.problems(sources[part])
    raise_first(lines)
    clips, scale = [], args.scale or dataset.scale
    for name in names:
        try:
            gt, lq = (sources[part].get(name) for part in ("gt", "lq"))
            clips.append(paired(name, gt, lq, scale, args.max_frames))
        except ValueError as error:
            lines.append(str(error))
    raise_first(lines)
    return clips


def raise_first(lines: list[str]) -> None:
    """Say every line but the last, and raise that: each a clip that is not whole."""
    for line in lines[:-1]:
        say(line)
    if lines:
        raise ValueError(lines[-1])


def results_of(folders: dict[str, Path], clips: list[Clip], bar) -> dict[str, dict]:
    """Sources of every method by clip. Raises ValueError, naming the first that is missing or does not fit."""
    found, lines = {}, []
    for method, folder in folders.items():
        there = clips_at(folder, ".")
        if absent := [clip.name for clip in clips if clip.name not in there]:
            raise ValueError(f"{folder}: no result of clip {some(absent)}; expected folders or videos of these names")
        with bar(f"looking at {method}", len(clips)) as report:
            found[method] = looked_at({clip.name: there[clip.name] for clip in clips}, lambda n: report(n, None, None))
        for clip in clips:
            try:
                whole = (clip.gt or clip.lq).frames
                check_result(clip, found[method][clip.name], whole)
            except ValueError as error:
                lines.append(str(error))
    raise_first(lines)
    return found


# ---- the run


def options_of(args: argparse.Namespace) -> Options:
    """What measures need besides frames. Raises ValueError for files that are not there."""
    for path in (args.niqe_params, args.raft, args.ffmpeg, args.dover):
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    device, raft = usable_device(args.device), args.raft
    if raft is None and args.weights:
        with contextlib.suppress(FileNotFoundError):
            raft = checkpoint.find(args.weights[0], FLOW_FILES["raft"])
    flows = {"raft": raft_flow(raft, device)} if raft else {}
    return Options(flows, niqe_params=args.niqe_params, ffmpeg=args.ffmpeg, dover=args.dover, device=device)


@contextlib.contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Callable]:
    """A bar with the time left, on a terminal only; yields report(what, done, total), where done None is one more."""
    console = Console(stderr=True)
    times = (TimeElapsedColumn(), "left", TimeRemainingColumn())
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), *times)
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    with Progress(*columns, speed_estimate_period=600, **options) as bar:
        task = bar.add_task(title, total=total)

        def report(what: str, done: int | None, total: int | None) -> None:
            bar.update(task, description=f"{title}: {what}", advance=None if done is not None else 1)
            if done is not None:
                bar.update(task, completed=done, total=total)

        yield report


def run(args: argparse.Namespace) -> int:
    dataset, folders = read_set(args.dataset), folders_of(args.results)
    args.output = args.output or Path("results") / Path(args.dataset).stem
    names, options = args.metrics or list(dataset.metrics), options_of(args)
    measures(names, options=options, count=1)  # a wrong name shows here
    found = dataset.find(args.root)
    kind = choose_lq(dataset, found, args.lq)
    for line in found.lines:
        tell(line)
    clips = look(dataset, found, kind, args, progress_bar)
    odd = dataset.differences(clips)
    tell(f"{len(clips)} clips, {sum(clip.frames for clip in clips)} frames; LQ: {describe_lq(kind, found)}")
    for line in odd:
        tell(f"not the published set: {line}")
    results = results_of(folders, clips, progress_bar)
    upscaling = bool(args.weights) or not folders
    if (upscaling or args.bicubic) and kind not in found.lq and not found.gt:
        raise ValueError(
            f"{args.root}: no LQ ({kind}) and no truth to make it from; there is {some(found.lq) or 'none'}"
        )
    files = find_weights(*args.weights or (EMBEDDED,)) if upscaling else None
    restorer = Restorer(args, files, say, tell) if upscaling else None
    work = Run(args, dataset, names, options, (say, tell, progress_bar))
    work.take(found, kind, clips, odd)
    work.score_folders(folders, results)
    if args.bicubic:
        work.score_bicubic()
    if upscaling:
        work.score_upscaled(restorer)
    work.write(shlex.join(["python", "scripts/benchmark.py", *args.words]))
    if not args.no_report:
        make_report(args.output)
    return 0


def describe_lq(kind: str | None, found) -> str:
    if kind is None:
        return "none"
    return f"{kind}, in {found.folders[kind]}" if kind in found.lq else f"{kind}, made from the truth where needed"


def make_report(folder: Path) -> None:
    """The HTML page, where what draws it is installed."""
    try:
        tell(str(importlib.import_module("scripts.report").report_of(folder)))
    except (ImportError, ValueError) as error:
        say(f"no HTML page: {first_line(error)}")


def say(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr, flush=True)


def tell(line: str) -> None:
    print(line, flush=True)


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(message)s")
    try:
        return run(arguments(words))
    except KeyboardInterrupt:
        say("interrupted; the same command goes on")
        return 130
    except (ValueError, OSError, FloatingPointError) as error:
        say(first_line(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
