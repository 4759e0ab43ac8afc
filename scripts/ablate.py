"""What each part of the method is worth: restore degraded clips with one part more per row, and measure the rows.

python scripts/ablate.py -i clips/ -o results/ablation
python scripts/ablate.py -i a.mkv frames/ -o results/ablation --protocol realbasicvsr --seeds 5 --max_frames 32

The clips are the truth; they are shrunk, cropped and degraded by a protocol of configs/degradations. Writes table.csv,
table.json, a picture of every clip and a document with table, findings and an x-t picture into the folder. Finished
measurements are kept there, so a stopped run goes on. Words like method.params.sampling.params.steps=8 change it.
"""

import argparse
import functools
import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while they wait lose most on a busy machine

import numpy as np
import torch
from torch import Tensor

from ldm import config
from ldm.engine import provenance
from ldm.engine.assemble import EMBEDDED, build_method, find_weights, read_settings
from ldm.engine.device import hardware, usable_device
from ldm.files import write_whole
from ldm.methods.mgld.settings import COLOR_FIXES
from ldm.metrics.fidelity import rgb8
from ldm.metrics.protocol import measures
from ldm.nets.whole_frame import Cut, decode_frames
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Each, Frame, Windowed, run_all, stack
from scripts.ablation_clips import SCALE, SMALLEST, Clip, find_clips, load_clips, protocol_of, seen_in_training
from scripts.ablation_report import (
    CARD,
    DOCUMENT,
    DRY_RUN,
    ROWS,
    Cells,
    Row,
    by_seed,
    counted,
    findings,
    markdown,
    means,
    png,
    sheet,
    table,
    top_of,
    view,
)
from scripts.command import Parser, add_trust, carry_out, natural, progress_bar

PROGRAM = "ablate.py"
log = logging.getLogger(PROGRAM)
SAMPLING, WINDOWS = "+method.params.sampling.params", "+method.params.windows.params"
DRY = {"seeds": 1, "max_frames": 3, "gt_size": (64, 64)}
BAND = 48  # rows of a frame in the pictures
MEASURES = ("psnr", "ssim", "sharpness", "e_warp", "tof")


def width_and_height(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) >= SMALLEST for part in parts):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected WIDTHxHEIGHT like 320x180, from {SMALLEST}x{SMALLEST}"
        )
    return int(parts[0]), int(parts[1])


def text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise argparse.ArgumentTypeError(f"got {path!r}, expected a text file") from None


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_trust(parser)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="change a setting of the model's configuration")
    add(
        "-i",
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="CLIP",
        help="videos or folders of images or clips",
    )
    add("-o", "--output", type=Path, help="folder (default: results/ablation; results/ablation_dry with --dry)")
    add("--protocol", default="realbasicvsr_mild", help="degradation: a file of configs/degradations, or a path")
    add("--seeds", type=functools.partial(natural, least=1), default=3, help="noise seeds per row (default: 3)")
    add("--seed", type=natural, default=42, help="the first of them, and that of the degradation (default: 42)")
    add("--max_frames", type=functools.partial(natural, least=2), default=16, help="of each clip (default: 16)")
    add("--gt_size", type=width_and_height, default=(320, 180), metavar="WxH", help="the truth (default: 320x180)")
    add("--weights", nargs="+", default=[], metavar="PATH", help="folder or weight files (default: the embedded model)")
    add("--config", nargs="+", default=[], metavar="YAML", help="model configuration (default: that of the weights)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add("--doc", type=Path, help="the document (default: OUTPUT/ABLATION.md)")
    add("--about", type=text_of, metavar="FILE", help="text for the document: whose the clips are")
    add("--picture", help="name of the clip in the document's picture (default: the first)")
    add("--dry", action="store_true", help="3 frames of 64x64, one seed, one step: only to see that all runs")
    args = parser.parse_intermixed_args(words)
    for name in ("input", "weights", "config"):  # flags that take several words also catch overrides behind them
        caught = [word for word in getattr(args, name) if "=" in str(word) and not Path(word).exists()]
        setattr(args, name, [word for word in getattr(args, name) if word not in caught])
        args.overrides += map(str, caught)
    if args.dry:
        vars(args).update(DRY)
        args.overrides.append(f"{SAMPLING}.steps=1")
    args.output = args.output or Path("results/ablation_dry" if args.dry else "results/ablation")
    args.doc = args.doc or args.output / "ABLATION.md"
    args.words = sys.argv[1:] if words is None else words
    return args


# ---- rows


def row_words(row: Row, settings) -> tuple[str, ...]:
    """What the configuration is changed by to draw the row's latents."""
    own = settings.method.params.sampling.get("params") or {}
    words = ["+method.params.patches=null", f"{SAMPLING}.guidance={row.guidance}"]
    if own.get("guidance", "paper") != row.guidance:
        words.append(f"{SAMPLING}.guidance_scale=null")  # each form has its own
    if not row.temporal:
        words += [f"{WINDOWS}.n_frames=1", f"{WINDOWS}.frame_overlap=0"]
    return tuple(words)


def make_methods(settings, files, device: str) -> Callable:
    """`method(words)`: one method per way of drawing latents, all over the same networks, built at first use."""

    @functools.cache
    def networks() -> dict:
        plain = config.override(settings, row_words(ROWS[-1], settings))
        return dict(build_method(plain, files, device=device).named_children())

    @functools.cache
    def method(words: tuple[str, ...]):
        return config.instantiate(config.override(settings, words).method, networks=networks())

    return method


def sampled(method, lq: Tensor, seed: int) -> list[Frame]:
    """Frames with their enlarged picture "work" and the latents "x" that are drawn for lq (T, 3, h, w)."""
    geometry = method.geometry(lq.shape[-2:], SCALE)
    work = torch.cat([geometry.enlarge(frame[None]) for frame in lq])
    return [frame.put(work=work[frame.number][None]) for frame in method.latents(work, seed=seed)]


def decoded(method, frames: list[Frame], *, lq: Tensor, sequence: bool) -> Tensor:
    """(T, 3, H, W) in [0, 1] from latents, by the sequence decoder as the method does it, or frame by frame by the
    image autoencoder; colours as the method corrects them."""
    geometry, windows = method.geometry(lq.shape[-2:], SCALE), method.decoding.windows
    fix = COLOR_FIXES[method.decoding.color_fix]

    def decode(window: list[Frame]) -> Tensor:
        x, work = (stack(window, name).to(method.device) for name in ("x", "work"))
        if sequence:
            return method.decode(x, work).cpu()
        cut = method.cut_of(x.shape[-2:]) or Cut(windows.tile)
        with torch.no_grad(), method.autocast():
            return decode_frames(method.autoencoder, x[0] / method.scale_factor, cut=cut).float()[None].cpu()

    def finish(frame: Frame) -> Frame:
        return frame.put(sr=geometry.finish(fix(frame["sr"], frame["work"] * 2 - 1)))

    size, overlap = (windows.n_frames, windows.frame_overlap) if sequence else (1, 0)
    stages = [Windowed(decode, size=size, overlap=overlap, name="sr"), Each(finish)]
    return stack(run_all(stages, frames), "sr")[0]


def measure(frames: list[np.ndarray], clip: Clip) -> dict[str, float]:
    """The figures of restored frames. Raises ValueError where one is not finite."""
    taken = measures(MEASURES)
    for frame, truth in zip(frames, clip.truth, strict=True):
        for one in taken:
            one.push(frame, truth)
    figures = {name: value for one in taken for name, value in one.figures().items()}
    for name, value in figures.items():
        if not np.isfinite(value):
            raise ValueError(f"clip {clip.name}: {name} is {value}; its frames are flat or unrelated, leave it out")
    return figures


# ---- measurements


class Study:
    """All rows over all clips and seeds, with what decides their figures."""

    def __init__(self, args: argparse.Namespace, cells: Cells):
        self.args, self.cells = args, cells
        self.device = usable_device(args.device)
        self.files = find_weights(*args.weights or (EMBEDDED,))
        self.settings = read_settings(self.files, configs=args.config, overrides=args.overrides, trust=args.trust)
        self.method = make_methods(self.settings, self.files, self.device)
        self.weights = {name: provenance.digest(self.files[name]) for name in ("stage_one", "stage_two")}
        self.seeds = range(args.seed, args.seed + args.seeds)

    def key(self, row: Row, clip: Clip, seed: int | None) -> str:
        """A hash of all that decides a measurement."""
        what = {
            "clip": clip.digest,
            "line": clip.line,
            "code": provenance.versions(),
            "script": provenance.digest(Path(__file__)),
        }
        if seed is not None:
            settings = config.override(self.settings, row_words(row, self.settings))
            what |= {"seed": seed, "sequence": row.sequence, "weights": self.weights}
            what["settings"] = config.plain(settings)
        return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def plan(self, row: Row) -> list[int | None]:
        """The seeds of a row; None for one that draws nothing."""
        return [None] if row.guidance is None else [*self.seeds]

    def measure(self, clip: Clip, tick: Callable[[], None]) -> dict[tuple[str, int | None], str]:
        """Measure what is not yet done of a clip; the keys of all by (row, seed)."""
        keys = {(row.name, seed): self.key(row, clip, seed) for row in ROWS for seed in self.plan(row)}
        lq = torch.from_numpy(clip.lq).permute(0, 3, 1, 2).float() / 255
        for seed in (None, *self.seeds):
            latents = {}  # rows that differ in their decoder share them
            for row in ROWS:
                if (row.name, seed) not in keys:
                    continue
                if (key := keys[row.name, seed]) not in self.cells.done:
                    try:
                        frames = [rgb8(frame) for frame in self.restore(row, lq, seed, latents)]
                    except FloatingPointError as error:
                        raise FloatingPointError(f"{clip.name}, row {row.name}, seed {seed}: {error}") from None
                    cell = {"row": row.name, "clip": clip.name, "seed": seed, **measure(frames, clip)}
                    self.cells.put(key, cell, view(frames, clip.line, BAND))
                tick()
        return keys

    def restore(self, row: Row, lq: Tensor, seed: int | None, latents: dict) -> Tensor:
        """(T, 3, H, W) in [0, 1]; `latents` remembers what was drawn for this clip and seed."""
        if seed is None:
            return resize(lq, (lq.shape[-2] * SCALE, lq.shape[-1] * SCALE)).clamp(0, 1)
        words = row_words(row, self.settings)
        method = self.method(words)
        if words not in latents:
            latents[words] = sampled(method, lq, seed)
        return decoded(method, latents[words], lq=lq, sequence=row.sequence)


# ---- what is written


def how(study: Study, clips: Mapping[str, Path]) -> str:
    """What was measured on, in words."""
    args, machine, seeds = study.args, hardware(study.device), study.seeds
    noise = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    steps = config.instantiate(study.settings.method.params.sampling).steps
    weights = ", ".join(f"`{study.files[name].name}` {digest[:12]}" for name, digest in study.weights.items())
    size = "x".join(map(str, args.gt_size))
    names = f"Clip{'s' * (len(clips) > 1)}: {', '.join(clips)}"
    return f"""{names}; {args.max_frames} frames of {size} at most are the truth.
They were degraded by `{protocol_of(args)}` to a quarter of the sides, as `scripts/degrade.py --seed {args.seed}` does.
Noise of {noise}, {counted(steps, "sampling step")}. Weights: {weights}.
On {machine["name"]} ({counted(machine["threads"], "thread")}), torch {torch.__version__}."""


def draw(study: Study, clip: Clip, keys: Mapping) -> np.ndarray:
    """The picture of a clip: the first seed of every row, and the truth."""
    views = {row.label.replace("`", ""): study.cells.view(keys[row.name, study.plan(row)[0]]) for row in ROWS}
    marked = clip.line - top_of(clip.line, len(clip.truth[0]), BAND)
    return sheet(views | {"the truth": view(clip.truth, clip.line, BAND)}, BAND, marked)


def write_results(study: Study, clips: Mapping[str, Path], used: list[str], pictures: Mapping[str, bytes]) -> None:
    """table.csv, table.json and the pictures of the folder, and the document with its picture; prints the table."""
    args, cells = study.args, [study.cells.done[key] for key in used]
    rows = by_seed(cells)
    found = [] if args.dry else findings(rows)
    text = markdown(rows, found)
    claims = [dict(zip(("claim", "measured", "holds"), entry, strict=True)) for entry in found]
    content = {
        "rows": rows,
        "findings": claims,
        "cells": cells,
        "weights": study.weights,
        "protocol": protocol_of(args),
    }
    content |= {"settings": config.plain(study.settings)["method"], "versions": provenance.versions()}
    write_whole(args.output / "table.json", (json.dumps(content, indent=1) + "\n").encode())
    write_whole(args.output / "table.csv", table(rows).encode())
    for name, picture in pictures.items():
        write_whole(args.output / f"{name}.png", picture)
    shown = args.picture or next(iter(pictures))
    beside = args.doc.parent / args.doc.stem.lower() / f"{shown}.png"
    beside.parent.mkdir(parents=True, exist_ok=True)
    write_whole(beside, pictures[shown])
    link = f"{beside.parent.name}/{beside.name}"
    facts = {"command": f"python scripts/ablate.py {shlex.join(args.words)}", "how": how(study, clips)}
    facts |= {
        "means": means(len(clips), args.seeds),
        "reading": DRY_RUN if args.dry else CARD,
        "about": args.about or "",
    }
    write_whole(args.doc, (DOCUMENT.format(text=text, picture=link, **facts).rstrip() + "\n").encode())
    print(text)
    print(f"{args.doc}, {args.output / 'table.csv'}, {args.output / 'table.json'}")


def run(args: argparse.Namespace) -> None:
    paths = find_clips(args.input)
    if args.picture and args.picture not in paths:
        raise ValueError(f"got picture {args.picture!r}, expected one of {', '.join(paths)}")
    clips = load_clips(paths, args)
    study = Study(args, Cells(args.output))
    card = study.files.get("folder", study.files["stage_one"].parent) / "README.md"
    for name in seen_in_training(card, paths):
        log.warning("%s: named in %s; figures on clips of the training say little", name, card)
    used, pictures = [], {}
    with progress_bar("ablation", sum(len(study.plan(row)) for row in ROWS) * len(clips)) as report:
        for clip in clips:
            keys = study.measure(clip, functools.partial(report, clip.name))
            used += keys.values()
            pictures[clip.name] = png(draw(study, clip, keys))
    write_results(study, paths, used, pictures)


def main(words: list[str] | None = None) -> int:
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    return carry_out(PROGRAM, lambda: run(arguments(words)), stopped="interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
