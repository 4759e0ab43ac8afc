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
import hashlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait lose most on a busy machine

from rich import box
from rich.console import Console
from rich.table import Table

from ldm import config
from ldm.benchmark.flows import paper_flow
from ldm.benchmark.looking import Report, Talk, look, look_at_results
from ldm.benchmark.making import Restorer
from ldm.benchmark.run import Asked, Run
from ldm.benchmark.scores import Scores
from ldm.benchmark.sets import GIVEN, Dataset, Found, first_few
from ldm.benchmark.tables import clip_cells, main_cells, markdown
from ldm.engine.assemble import EMBEDDED, FLOW_FILES, ROOT, build_method, find_weights
from ldm.engine.device import usable_device
from ldm.engine.jobs import JobOptions, Model
from ldm.metrics.protocol import Options, measures
from ldm.printable import printable
from ldm.report.page import report_of
from ldm.weights import checkpoint
from scripts import degrade, upscale
from scripts.command import Parser, add_trust, carry_out, first_line, followed, progress_bar

PROGRAM = "benchmark.py"
SETS = ROOT / "configs" / "benchmark"
LISTS = ("weights", "config", "results", "metrics")  # flags that take several words
MODEL = (  # flags that say something to a model only
    *("config", "preset", "memory", "compile", "seeds", "ddpm_steps", "colorfix_type", "dec_w", "n_frames"),
    *("tile_overlap", "vqgantile_size", "vqgantile_stride", "flow", "guidance", "precision"),
)
NAME = re.compile(r"[\w.+-]*\w[\w.+-]*")
LONG = {"protocol": 3, "measured": 2}  # columns that fold on a terminal


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; `seeds` and `lq` as given, `words` all of it."""
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the model")
    add_trust(parser)
    add_files(parser.add_argument_group("what is measured"))
    add_measures(parser.add_argument_group("how"))
    upscale.add_settings(parser.add_argument_group("settings of the model (default: what its configuration says)"))
    add_running(parser.add_argument_group("running"))
    args = parser.parse_intermixed_args(words)
    for name in LISTS:  # which also catch overrides that follow them
        given = getattr(args, name)
        caught = [word for word in given if is_override(word)]
        setattr(args, name, [word for word in given if word not in caught])
        args.overrides += caught
    args.words = sys.argv[1:] if words is None else words
    args.idle = [f"--{name}" for name in MODEL if getattr(args, name) != parser.get_default(name)]
    return args


def is_override(word: str) -> bool:
    """Whether a word is key.key=value and not NAME=DIR or a path."""
    key, equals, value = word.partition("=")
    names = key.lstrip("+").split(".")
    return (
        bool(equals)
        and len(names) > 1
        and all(map(str.isidentifier, names))
        and not any(map(os.path.exists, (word, value)))
    )


def add_files(group) -> None:
    add = group.add_argument
    add("--dataset", required=True, help="a name in configs/benchmark, or a YAML file")
    add("--root", type=Path, required=True, help="folder of the test set")
    add("-o", "--output", type=Path, help="folder to write (default: results/DATASET)")
    add(
        "--results",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]DIR",
        help="score these folders (upscale: with --weights)",
    )
    add(
        "--weights",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="folder or weight files (default: the embedded model)",
    )
    add("--bicubic", action="store_true", help="also score bicubic interpolation (default: no)")
    add("--lq", metavar="KIND", help="given, or a degradation: the folder found, or made (default: the set's)")
    add("--scale", type=upscale.counted, help="sides of the restored frames over those of the LQ (default: the set's)")
    add("--max_clips", type=upscale.counted, help="clips to take at most (default: all)")
    add("--max_frames", type=upscale.counted, help="frames to take of each clip at most (default: all)")


def add_measures(group) -> None:
    add = group.add_argument
    add(
        "--metrics",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="such as psnr psnr:channels=y (default: the set's)",
    )
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
    add(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="YAML",
        help="model configuration (default: that of the weights)",
    )
    add("--preset", help="a file of configs/presets merged last, such as released (default: none)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--memory", metavar="SIZE", help="memory to use, such as 12G (default: what is free)")
    add("--compile", action="store_true", help="compile the networks with torch.compile (default: no)")
    add("--save_every", type=upscale.counted, default=16, metavar="N", help="frames between savings (default: 16)")
    add("--no_report", action="store_true", help="leave out the HTML page (default: no)")


def read_set(name: str, *, trust: Sequence[str] = ()) -> Dataset:
    """A test set by its name or the path of its YAML. Raises ValueError, naming what there is."""
    path = Path(name)
    if not name.endswith((".yaml", ".yml")):
        known = sorted(file.stem for file in SETS.glob("*.yaml"))
        if name not in known:
            near = "".join(f"; did you mean {one}?" for one in difflib.get_close_matches(name, known, n=1))
            raise ValueError(f"got dataset {name!r}, expected a YAML file or one of {', '.join(known)}{near}")
        path = SETS / f"{name}.yaml"
    settings = config.load(path, trust=trust)
    config.check_target(settings, "benchmark")
    return config.instantiate(settings.benchmark)


def folders_of(words: list[str], own: list[str]) -> dict[str, Path]:
    """Methods by name from `[name=]DIR` words; `own` names are taken by what is made here.

    Raises ValueError for folders that are not there and names twice.
    """
    folders = {}
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


def choose_lq(dataset: Dataset, found: Found, wanted: str | None, *, needed: bool) -> str | None:
    """Which kind of LQ is taken: the one wanted, or the first of the set's that is there or, where it is needed, can be
    made; None where nobody knows."""
    if wanted:
        if wanted == GIVEN and GIVEN not in found.lq:
            raise ValueError(f"got --lq given, but no folder of LQ was found; there is {first_few(found.lq) or 'none'}")
        if wanted not in found.lq:
            degrade.find_protocol(wanted)
        return wanted
    made = needed and bool(found.gt)
    makeable = [kind for kind in dataset.lq if kind in found.lq or (kind != GIVEN and made)]
    return makeable[0] if makeable else next(iter(found.lq), None)


# ---- the run


def asked_of(args: argparse.Namespace, dataset: Dataset) -> Asked:
    """What the run is asked for."""
    name = Path(args.dataset).stem
    return Asked(
        name=name,
        root=args.root,
        folder=args.output or Path("results") / name,
        scale=args.scale or dataset.scale,
        max_clips=args.max_clips,
        max_frames=args.max_frames,
        published=args.published,
        device=usable_device(args.device),
        command=shlex.join(["python", "scripts/benchmark.py", *args.words]),
    )


def try_output(folder: Path) -> None:
    """Raise ValueError where a folder cannot be made or written, before any work."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{there}: {'cannot be written' if there.is_dir() else 'is a file'}; choose another -o")


def options_of(args: argparse.Namespace) -> Options:
    """What measures need besides frames. Raises ValueError for files that are not there."""
    for path in (args.niqe_params, args.raft, args.ffmpeg, args.dover):
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    device, raft = usable_device(args.device), args.raft
    if raft is None and args.weights:
        with contextlib.suppress(FileNotFoundError):
            raft = checkpoint.find(args.weights[0], FLOW_FILES["raft"])
    flows = {"raft": paper_flow(raft, device)} if raft else {}
    return Options(flows, niqe_params=args.niqe_params, ffmpeg=args.ffmpeg, dover=args.dover, device=device)


@dataclass(frozen=True)
class Degrader:
    """Makes LQ clips of the truth as scripts/degrade.py does, in a folder that protocol and seed decide."""

    protocol: str
    seed: int
    root: Path
    most: int | None = None
    scale: int | None = None

    def __call__(self, truths: Mapping[str, Path], report: Report) -> tuple[dict[str, Path], str]:
        """Folders of LQ frames by clip, and how they were made in words. Clips that are there are left alone."""
        words = ["-i", ".", "-o", str(self.root), "--protocol", self.protocol, "--seed", str(self.seed)]
        words += ["--max_frames", str(self.most)] if self.most else []
        words += ["--scale", str(self.scale)] if self.scale else []
        args = degrade.arguments(words)
        settings = config.plain(degrade.read_settings(args).degradation)
        digest = hashlib.sha256(json.dumps([settings, self.seed, self.most], sort_keys=True).encode()).hexdigest()[:8]
        args.output = self.root / f"{Path(self.protocol).stem}-seed{self.seed}-{digest}"
        maker = degrade.maker_of(args)
        for name, path in truths.items():
            maker.make(path, name, lambda done, total, name=name: report(name, done, total))
        hashes = "".join(maker.manifest.clips[name]["sha256"] for name in truths)
        pixels = hashlib.sha256(hashes.encode()).hexdigest()[:16]
        told = f"{Path(self.protocol).stem}, seed {self.seed}, settings {digest}, pixels {pixels}"
        return {name: args.output / name for name in truths}, told


def restorer_of(args: argparse.Namespace) -> Restorer:
    """The model that the arguments ask for, built."""
    device, files = usable_device(args.device), find_weights(*args.weights or (EMBEDDED,))
    settings = upscale.choose_settings(files, args)
    method = build_method(settings, files, device=device)
    if args.compile:
        method.compile_networks()
    model = Model.of(method, files, settings, device, rounding=upscale.rounding_of(settings))
    memory = upscale.parse_bytes(args.memory) if args.memory else None
    return Restorer(model, JobOptions(save_every=args.save_every, memory=memory), say=say, tell=tell)


def run(args: argparse.Namespace) -> int:
    talk = Talk(say, tell, progress_bar)
    dataset, own_name = read_set(args.dataset, trust=args.trust), "mgld-vsr" if args.weights else "embedded"
    upscaling = bool(args.weights) or not args.results
    if not upscaling and (idle := args.idle + args.overrides):
        raise ValueError(f"got {idle[0]}, but --results alone are scored and nothing is upscaled; give --weights too")
    folders = folders_of(args.results, ["bicubic"] * args.bicubic + [own_name] * upscaling)
    asked = asked_of(args, dataset)
    try_output(asked.folder)
    names, options = args.metrics or list(dataset.metrics), options_of(args)
    measures(names, options=options, count=1)  # a wrong name shows here
    found = dataset.find(args.root)
    kind = choose_lq(dataset, found, args.lq, needed=upscaling or args.bicubic)
    for line in found.lines:
        tell(line)
    clips = look(dataset, found, kind, scale=asked.scale, most=(args.max_clips, args.max_frames), talk=talk)
    count, frames = len(clips), sum(clip.frames for clip in clips)
    tell(f"{count} clip{'s' * (count != 1)}, {frames} frames; LQ: {describe_lq(kind, found)}")
    for line in dataset.differences(clips):
        tell(f"not the published set: {line}")
    results = look_at_results(folders, clips, talk)
    if (upscaling or args.bicubic) and kind not in found.lq and not found.gt:
        there = first_few(found.lq) or "none"
        raise ValueError(f"{args.root}: no LQ ({kind}) and no truth to make it from; there is {there}")
    make_lq = Degrader(kind, args.lq_seed, asked.folder / "lq", args.max_frames, args.scale)
    work = Run(asked, dataset, Scores(asked.folder / "scores", names, options), make_lq=make_lq, talk=talk)
    work.take(found, kind, clips)
    restorer = restorer_of(args) if upscaling else None  # before hours of scoring
    work.score_folders(folders, results)
    if args.bicubic:
        work.score_bicubic()
    if upscaling:
        seeds = range(args.seed, args.seed + args.seeds)
        work.score_upscaled(restorer, own_name, seeds)
    if upscaling and not args.weights:
        work.notes.append(f"The embedded model ({EMBEDDED.name}) is a small one: not the weights of the paper.")
    show(work.write())
    tell(", ".join(str(asked.folder / f"results.{kind}") for kind in ("json", "csv", "md")))
    if not args.no_report:
        make_report(asked.folder)
    return 0


def describe_lq(kind: str | None, found: Found) -> str:
    if kind is None:
        return "not known"
    return f"{kind}, in {found.folders[kind]}" if kind in found.lq else f"{kind}, made from the truth where needed"


def show(results: Mapping) -> None:
    """Print the table, then the clips of each method, then the notes; as Markdown where it goes into a file."""
    console = Console()
    tables = [("", *main_cells(results))]
    tables += [(f"{m['name']}, by clip", *clip_cells(results, m["name"])) for m in results["methods"]]
    for title, head, lines in tables:
        if console.is_terminal:
            table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
            for name in head:
                table.add_column(name, overflow="fold", ratio=None if name not in LONG else LONG[name])
            for line in lines:
                table.add_row(*line)
            console.print(table)
        else:
            print("\n".join(filter(None, [title, markdown(head, lines)])))
    print("\n".join(results["notes"]), flush=True)


def make_report(folder: Path) -> None:
    """The HTML page."""
    try:
        tell(str(report_of(folder, follow=partial(followed, title="report"))))
    except ValueError as error:
        say(f"no HTML page: {first_line(error)}")


def say(line: str) -> None:
    print(printable(f"{PROGRAM}: {line}"), file=sys.stderr, flush=True)


def tell(line: str) -> None:
    print(printable(line), flush=True)


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING, format=f"{PROGRAM}: %(message)s")
    return carry_out(PROGRAM, lambda: run(arguments(words)), stopped="interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
