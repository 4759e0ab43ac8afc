"""Evaluate methods on a test set, and compare the results with published ones, with the protocol of every number.

python scripts/benchmark.py --dataset reds4 --root REDS/ --weights checkpoints/ --seeds 3
python scripts/benchmark.py --dataset udm10 --root UDM10/ --results ours=results/a dove=results/b -o results/udm10
python scripts/benchmark.py --dataset own --root clips/ --models mgld=mgldvsr/ svsr=StableVSR/ uav=upscale_a_video/

Upscales the clips (as scripts/upscale.py does), or scores folders of results: folders of frames, or lossless videos,
with the names of the clips. A test set is a file of configs/benchmark. Writes results.json, results.csv and results.md
into the output folder; an interrupted run resumes. Words like method.params.sampling.params.steps=8 change settings of
the model.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while waiting are slow on a busy machine

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ldm import config
from ldm.benchmark.ablation import BICUBIC, Ablation
from ldm.benchmark.flows import paper_flow, stablevsr_flow
from ldm.benchmark.inspection import inspect, inspect_results
from ldm.benchmark.peers import PEERS, upscalers
from ldm.benchmark.restoration import Restorer
from ldm.benchmark.run import Run, RunOptions
from ldm.benchmark.scores import Scores
from ldm.benchmark.sets import GIVEN, Dataset, Found, first_few
from ldm.benchmark.tables import clip_cells, findings_table, main_cells, markdown
from ldm.engine.assemble import EMBEDDED, find_weights, read_settings
from ldm.engine.device import usable_device
from ldm.engine.flags import flags_of
from ldm.engine.jobs import JobOptions, share_networks
from ldm.engine.plan import parse_bytes
from ldm.metrics import protocol
from ldm.metrics.protocol import measures
from ldm.ops.resize import resize
from ldm.paths import product_folder
from ldm.printable import printable
from ldm.report.page import report_of
from ldm.weights import checkpoint
from scripts import degrade, upscale
from scripts.command import (
    DEVICE,
    Parser,
    add_trust,
    exit_status,
    find_named,
    first_line,
    non_negative_int,
    positive_int,
    progress_bar,
    tell,
    with_bar,
)
from scripts.upscale_jobs import model_for, weights_of

PROGRAM = "benchmark.py"
log = logging.getLogger("scripts.benchmark")
SETS = product_folder() / "configs" / "benchmark"
MODEL = ("config", "preset", "memory", "seeds", "ablation")  # options that apply to a model only
RAFT_THINGS, RAFT_LARGE = ("raft-things",), ("raft_large_C_T_SKHT_V2-ff5fadd5", "raft_large")
NAME = re.compile(r"[\w.+-]*\w[\w.+-]*")
WIDE = {"protocol": 3, "measured": 2}  # columns that fold on a terminal
STOPPED = "interrupted; the same command resumes"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `model_options` are the given options that apply to a model only."""
    parser = Parser(PROGRAM, __doc__)
    add_trust(parser)
    add_files(parser.add_argument_group("data"))
    add_measures(parser.add_argument_group("measures"))
    upscale.add_flags(parser.add_argument_group("settings of the model (default: its own; in brackets: families)"))
    add_running(parser.add_argument_group("running"))
    args = parser.parse_with_overrides(words, ("weights", "config"), named=("results", "models", "metrics"))
    args.flags = upscale.given_flags(args)
    given = [name for name in MODEL if getattr(args, name) != parser.get_default(name)]
    args.model_options = [f"--{name}" for name in (*given, *args.flags)]
    return args


def add_files(group) -> None:
    add, several = group.add_argument, {"nargs": "+", "action": "extend", "default": []}
    add("--dataset", required=True, help="a name in configs/benchmark, or a YAML file")
    add("--root", type=Path, required=True, help="folder of the test set")
    add("-o", "--output", type=Path, help="folder to write (default: results/DATASET)")
    add("--results", metavar="[NAME=]DIR", help="score these folders (upscale: with --weights or --models)", **several)
    add("--weights", metavar="PATH", help="folder or weight files (default: the embedded model)", **several)
    add("--models", metavar="[NAME=]DIR", help="upscale with each of these folders of weights, side by side", **several)
    add("--bicubic", action="store_true", help="also score bicubic interpolation (default: no)")
    add("--peers", nargs="+", choices=list(PEERS), default=[], help="also score these, from the extra peers (x4, CPU)")
    add("--ablation", type=Path, metavar="YAML", help="upscale with each row, such as of configs/ablation.yaml")
    add("--lq", metavar="KIND", help="given, or a degradation: the folder found, or made (default: the set's)")
    add("--scale", type=positive_int, help="sides of the restored frames over those of the LQ (default: the set's)")
    add("--max_clips", type=positive_int, help="clips to use at most (default: all)")
    add("--max_frames", type=positive_int, help="frames to use of each clip at most (default: all)")


def add_measures(group) -> None:
    add, several = group.add_argument, {"nargs": "+", "action": "extend", "default": []}
    add("--metrics", metavar="NAME", help="such as psnr psnr:channels=y (default: the set's)", **several)
    add("--protocol", metavar="NAME", help="how a publication measures, such as stablevsr (default: the set's own way)")
    add("--published", metavar="TABLE", help="which table of the set to compare with (default: the first that fits)")
    add("--niqe_params", type=Path, metavar="NPZ", help="the official pristine parameters (default: an installed one)")
    add("--raft", type=Path, metavar="FILE", help="raft-things weights for flow=raft (default: in --weights)")
    add("--raft_large", type=Path, metavar="FILE", help="torchvision's weights for flow=raft_large (in --weights)")
    add("--ffmpeg", type=Path, help="an ffmpeg with libvmaf (default: an installed one)")
    add("--dover", type=Path, metavar="DIR", help="a checkout of DOVER with its weights (default: no DOVER)")
    add("--seeds", type=positive_int, default=1, help="seeds of the noise to average over (default: 1)")
    add("--seed", type=non_negative_int, default=42, help="the first of them (default: 42)")
    add("--lq_seed", type=non_negative_int, default=0, help="of the degradation, where LQ is made (default: 0)")


def add_running(group) -> None:
    add = group.add_argument
    add("--config", nargs="+", action="extend", default=[], metavar="YAML",
        help="model configuration (default: that of the weights)")  # fmt: skip
    add("--preset", help="a file of configs/presets merged last, such as released (default: none)")
    add("--device", help=DEVICE)
    add("--memory", metavar="SIZE", help="memory to use, such as 12G (default: all free memory)")
    add("--save_every", type=positive_int, default=16, metavar="N", help="frames between savings (default: 16)")
    add("--no_report", action="store_true", help="leave out the HTML page (default: no)")


def read_set(name: str, trust: Iterable[str] = ()) -> Dataset:
    """Return a test set by its name or the path of its YAML file. Raises ValueError for an unknown name."""
    return read_node(find_named(name, SETS, "dataset"), "benchmark", trust)


def read_node(path: Path, key: str, trust: Iterable[str] = ()):
    """Build the object that a key of a YAML file describes. Raises ConfigError or FileNotFoundError."""
    settings = config.load(path, trust=trust)
    config.check_target(settings, key)
    return config.instantiate(settings[key])


def folders_of(words: list[str], reserved: list[str], what: str = "results") -> dict[str, Path]:
    """Return folders of `what` by method, from words such as `[name=]DIR`.

    Raises ValueError for missing folders, repeated names, and names in `reserved`, which this command uses itself.
    """
    folders = {}
    for word in words:
        name, equals, place = word.partition("=")
        path = Path(place if equals and not Path(word).exists() else word)
        name = name if equals and path == Path(place) else path.resolve().name
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder of {what}; expected [NAME=]DIR")
        if not NAME.fullmatch(name) or name.casefold() in (*map(str.casefold, folders), *reserved):
            good = "letters, digits and . + - _" if not NAME.fullmatch(name) else "a unique name"
            raise ValueError(f"got the method name {name!r} for {path}, expected {good}: write NAME=DIR")
        folders[name] = path
    return folders


def choose_lq(dataset: Dataset, found: Found, wanted: str | None, *, needed: bool) -> str | None:
    """Return the kind of LQ to use: the wanted one, otherwise the first of the set that exists or can be made.

    Returns None if it is unknown. Raises ValueError for an unknown kind.
    """
    if wanted:
        if wanted == GIVEN and GIVEN not in found.lq:
            raise ValueError(f"got --lq given, but no folder of LQ was found; found {first_few(found.lq) or 'none'}")
        if wanted not in found.lq:
            degrade.find_protocol(wanted)
        return wanted
    made = needed and bool(found.gt)
    possible = [kind for kind in dataset.lq if kind in found.lq or (kind != GIVEN and made)]
    return possible[0] if possible else next(iter(found.lq), None)


def try_output(folder: Path) -> None:
    """Raise ValueError if a folder cannot be created or written, before any work."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"{parent}: {'cannot be written' if parent.is_dir() else 'is a file'}; choose another -o")


def options_of(args: argparse.Namespace) -> protocol.Options:
    """Return what measures need besides frames. Raises ValueError for missing files."""
    for path in (args.niqe_params, args.raft, args.raft_large, args.ffmpeg, args.dover):
        if path is not None and not path.exists():
            raise ValueError(f"{path}: no such file or folder")
    device, flows = usable_device(args.device), {}
    known = {"raft": (args.raft, RAFT_THINGS, paper_flow), "raft_large": (args.raft_large, RAFT_LARGE, stablevsr_flow)}
    for name, (file, names, made) in known.items():
        for place in [*args.weights[:1], *folders_of(args.models, [], "weights").values()]:
            with contextlib.suppress(FileNotFoundError):
                file = file or checkpoint.find(place, names)
        flows |= {name: made(file, device)} if file else {}
    return protocol.Options(flows, niqe_params=args.niqe_params, ffmpeg=args.ffmpeg, dover=args.dover, device=device)


@dataclass(frozen=True)
class Degrader:
    """Degrade the ground truth as scripts/degrade.py does, in a folder named after protocol, seed and settings."""

    protocol: str
    seed: int
    root: Path
    most: int | None = None
    scale: int | None = None
    trust: Sequence[str] = ()

    def __call__(self, truths: Mapping[str, Path], report: Callable) -> tuple[dict[str, Path], str]:
        """Return folders of LQ frames by clip, and a line on how they were made. Finished clips are kept."""
        words = ["-i", ".", "-o", str(self.root), "--protocol", self.protocol, "--seed", str(self.seed)]
        words += ["--max_frames", str(self.most)] if self.most else []
        words += ["--scale", str(self.scale)] if self.scale else []
        words += [word for module in self.trust for word in ("--trust", module)]
        args = degrade.arguments(words)
        settings = config.plain(degrade.degradation_of(args))
        digest = hashlib.sha256(json.dumps([settings, self.seed, self.most], sort_keys=True).encode()).hexdigest()[:8]
        args.output = self.root / f"{Path(self.protocol).stem}-seed{self.seed}-{digest}"
        maker = degrade.maker_of(args)
        for name, path in truths.items():
            maker.make(path, name, lambda done, total, name=name: report(name, done, total))
        hashes = "".join(maker.manifest.clips[name]["sha256"] for name in truths)
        pixels = hashlib.sha256(hashes.encode()).hexdigest()[:16]
        about = f"{Path(self.protocol).stem}, seed {self.seed}, settings {digest}, pixels {pixels}"
        return {name: args.output / name for name in truths}, about


def restorer_of(args: argparse.Namespace) -> Restorer:
    """Return the model that the arguments describe."""
    memory = parse_bytes(args.memory) if args.memory else None
    options = JobOptions(save_every=args.save_every, memory=memory)
    return Restorer(model_for(weights_of(args), args), options, log.warning, log.info)


def models_of(args: argparse.Namespace) -> dict[str, Path]:
    """Return folders of --models by name. Raises ValueError for options that describe a single model."""
    alone = [f"--{name}" for name in ("weights", "config", "ablation") if getattr(args, name)]
    if args.models and alone:
        raise ValueError(f"got --models and {alone[0]}, expected one of them")
    return folders_of(args.models, [BICUBIC, *PEERS], "weights")


def each_restorer(args: argparse.Namespace, models: Mapping[str, Path]) -> dict[str, Restorer]:
    """Return a model for each folder of weights; a flag goes to the models that have it.

    Raises ValueError for a flag that no model has.
    """
    known = {}
    for name, folder in models.items():
        settings = read_settings(find_weights(folder), preset=args.preset, trust=args.trust)
        known[name] = flags_of(settings).keys() & args.flags.keys()
    if unknown := args.flags.keys() - set().union(*known.values()):
        raise ValueError(f"--{min(unknown)}: none of the models {', '.join(models)} has such a setting")
    restorers = {}
    for name, folder in models.items():
        flags = {flag: value for flag, value in args.flags.items() if flag in known[name]}
        own = argparse.Namespace(**vars(args) | {"weights": [str(folder)], "flags": flags})
        restorers[name] = restorer_of(own)
    return restorers


def named(restorer: Restorer, args: argparse.Namespace, folders: Mapping[str, Path]) -> dict[str, Restorer]:
    """Return a model by the title of its family, or as "embedded". Raises ValueError where results have that name."""
    title = str(restorer.model.settings.get("title") or "model").casefold()
    name = title if args.weights else "embedded"
    if name in map(str.casefold, folders):
        raise ValueError(f"got the method name {name!r} twice, for results and --weights, expected one: write NAME=DIR")
    return {name: restorer}


def restorers_of(args: argparse.Namespace, ablation: Ablation) -> dict[str, Restorer]:
    """Return the rows of an ablation that are models."""
    rows = {name: row for name, row in ablation.rows.items() if name != BICUBIC}
    words = {name: [*args.words, *map(str, row.get("options", ()))] for name, row in rows.items()}
    restorers = {name: restorer_of(arguments(words[name])) for name in rows}
    swaps = {name: row.get("networks") or {} for name, row in rows.items()}
    models = share_networks({name: restorer.model for name, restorer in restorers.items()}, swaps)
    return {name: replace(restorer, model=models[name]) for name, restorer in restorers.items()}


def build(
    args: argparse.Namespace, ablation: Ablation | None, models: Mapping[str, Path], folders: Mapping[str, Path]
) -> dict[str, Restorer]:
    """Return models by name: rows of an ablation, those of `models`, or the only one; `folders` has the other names."""
    if ablation:
        return restorers_of(args, ablation)
    return each_restorer(args, models) if models else named(restorer_of(args), args, folders)


def run(args: argparse.Namespace) -> int:
    dataset = read_set(args.dataset, args.trust)
    dataset = dataset.measured_by(args.protocol) if args.protocol else dataset
    ablation = read_node(args.ablation, "ablation", args.trust) if args.ablation else None
    upscaling = bool(args.weights or args.models) or not args.results or ablation is not None
    if not upscaling and (unused := args.model_options + args.overrides):
        raise ValueError(f"got {unused[0]}, but --results alone are scored and nothing is upscaled; give --weights too")
    models = models_of(args)
    plain = args.bicubic or (ablation is not None and BICUBIC in ablation.rows)
    own = [] if args.weights else ["embedded"]
    made = [*(ablation.rows if ablation else models or own)] if upscaling else []
    folders = folders_of(args.results, [*map(str.casefold, made), *[BICUBIC] * plain, *args.peers])
    folder, scale = args.output or Path("results") / Path(args.dataset).stem, args.scale or dataset.scale
    peers = upscalers(args.peers, scale=scale, threads=torch.get_num_threads())
    try_output(folder)
    names, options = args.metrics or list((ablation or dataset).metrics), options_of(args)
    measures(names, options=options, count=1)  # raises for a wrong name
    found = dataset.find(args.root)
    kind = choose_lq(dataset, found, args.lq, needed=bool(upscaling or plain or peers))
    for line in found.lines:
        log.info(line)
    clips = inspect(dataset, found, kind, scale=scale, limits=(args.max_clips, args.max_frames), bar=progress_bar)
    count, frames = len(clips), sum(clip.frames for clip in clips)
    log.info("%d clip%s, %d frames; LQ: %s", count, "s" * (count != 1), frames, found.describe_lq(kind))
    for line in dataset.differences(clips):
        log.info("not the published set: %s", line)
    results = inspect_results(folders, clips)
    if (upscaling or plain or peers) and kind not in found.lq and not found.gt:
        others = first_few(found.lq) or "none"
        raise ValueError(f"{args.root}: no LQ ({kind}) and no truth to make it from; found {others}")
    asked = RunOptions(
        Path(args.dataset).stem, args.root, folder, scale, args.max_clips, args.max_frames, args.published,
        usable_device(args.device), shlex.join(["python", "scripts/benchmark.py", *args.words]),
    )  # fmt: skip
    work = Run(
        asked, dataset, Scores(folder / "scores", names, options), clips=(found, kind, clips),
        degrade=Degrader(kind, args.lq_seed, folder / "lq", args.max_frames, args.scale, args.trust),
        bar=progress_bar, ablation=ablation,
    )  # fmt: skip
    restorers = build(args, ablation, models, folders) if upscaling else {}  # finds errors before hours of scoring
    work.score_folders(folders, results)
    if plain:
        work.score_enlarged(BICUBIC, resize, {})
    for name, peer in peers.items():
        work.score_enlarged(name, peer, peer.hashes)
    for name, restorer in restorers.items():
        work.score_upscaled(restorer, name, range(args.seed, args.seed + args.seeds))
    if upscaling and not args.weights and not models:
        work.notes.append(f"The embedded model ({EMBEDDED.name}) is a small one: not the weights of the paper.")
    show(work.write())
    log.info(", ".join(str(folder / f"results.{suffix}") for suffix in ("json", "csv", "md")))
    if not args.no_report:
        make_report(folder)
    return 0


def show(results: Mapping) -> None:
    """Print the tables and notes; tables are printed as Markdown if stdout is not a terminal."""
    console = Console()
    tables = [("", *main_cells(results))]
    tables += [(f"{m['name']}, by clip", *clip_cells(results, m["name"])) for m in results["methods"]]
    for title, head, lines in tables:
        if console.is_terminal:
            table = Table(title=shown(title) or None, title_justify="left", box=box.SIMPLE_HEAD)
            for name in head:
                table.add_column(shown(name), overflow="fold", ratio=WIDE.get(name))
            for line in lines:
                table.add_row(*map(shown, line))
            console.print(table)
        else:
            tell(*filter(None, [title, *markdown(head, lines).splitlines()]))
    if results.get("findings"):
        tell(*findings_table(results).splitlines())
    tell(*results["notes"])


def shown(cell: str) -> str:
    """Return the text of a cell on the terminal, without markup."""
    return escape(printable(cell))


def make_report(folder: Path) -> None:
    """Write the HTML report, or log the reason why it cannot be made."""
    try:
        log.info("%s", report_of(folder, bar=partial(with_bar, title="report")))
    except ValueError as error:
        log.warning("no HTML page: %s", first_line(error))


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped=STOPPED, level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
