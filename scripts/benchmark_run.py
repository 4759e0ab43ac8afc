"""One run of scripts/benchmark.py: clips are made, restored and scored in order, then written down."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import av

from ldm import config, video
from ldm.engine import provenance
from ldm.engine.assemble import EMBEDDED
from ldm.engine.device import hardware, usable_device
from ldm.files import write_whole
from ldm.metrics.protocol import Options
from scripts.benchmark_making import Degrader, Restorer, enlarged, rates
from scripts.benchmark_scores import Scores
from scripts.benchmark_sets import Clip, Dataset, Found, paired
from scripts.benchmark_tables import comparison, csv_text, document, label, published_clips, published_entries, show

FORMAT = "mgld-vsr benchmark 1"
EXACT = ("rgb", "gbr", "bgr", "yuv444", "ya", "gray")  # pixel formats that do not halve colour


class Run:
    """Methods scored on the clips of a set, in a folder that keeps what is done.

    `talk` are say(line) for warnings, tell(line), and bar(title, total) for progress.
    """

    def __init__(self, args: argparse.Namespace, dataset: Dataset, names: Sequence[str], options: Options, talk: tuple):
        self.args, self.dataset, self.folder = args, dataset, args.output
        self.say, self.tell, self.bar = talk
        self.scores = Scores(self.folder / "scores", names, options)
        self.scale = args.scale or dataset.scale
        self.methods, self.rows, self.curves, self.notes = [], [], [], []
        self.metrics: dict[str, dict] = {}
        self.results: dict[str, dict] = {}
        self.hashes: dict[str, dict] = {}
        self.made: str | None = None  # how LQ was made

    def take(self, found: Found, kind: str | None, clips: Sequence[Clip], odd: Sequence[str]) -> None:
        """The clips to work on. Raises ValueError for a --published that the set has not."""
        self.found, self.kind, self.clips, self.odd = found, kind, list(clips), list(odd)
        self._table()
        self.results = {clip.name: {} for clip in clips}
        self.hashes = {clip.name: {} for clip in clips}
        self.notes += [f"Not the published set: {line}." for line in odd]
        cut = [(self.args.max_clips, "clips"), (self.args.max_frames, "frames of each clip")]
        self.notes += [f"Only the first {most} {what} at most." for most, what in cut if most]

    def needs_lq(self) -> None:
        """Make LQ clips where there are none."""
        if all(clip.lq for clip in self.clips):
            return
        maker = Degrader(self.kind, self.args.lq_seed, self.folder / "lq", self.args.max_frames, self.args.scale)
        with self.bar("degrading") as report:
            paths, self.made = maker.made({clip.name: clip.gt.path for clip in self.clips}, report)
        self.clips = [self._with_lq(clip, paths[clip.name]) for clip in self.clips]
        self.tell(f"LQ made: {self.made}")

    def _with_lq(self, clip: Clip, path: Path) -> Clip:
        lq, most = video.probe(path), self.args.max_frames
        whole = clip.gt.frames if most is None else min(clip.gt.frames, most)
        if lq.frames != whole:
            raise ValueError(f"{path}: has {lq.frames} frames, expected {whole}; remove it to make it anew")
        made = paired(clip.name, replace(clip.gt, frames=whole), lq, self.scale, None)
        return replace(made, gt=clip.gt)

    def score_folders(self, folders: Mapping[str, Path], results: Mapping[str, Mapping]) -> None:
        """Results of other methods, or of ours from before."""
        for name, path in folders.items():
            self._enter(name, "folder", [None], path)
            for clip in self.clips:
                self._score(name, None, clip, results[name][clip.name])
            lossy = [clip.name for clip in self.clips if is_lossy(results[name][clip.name])]
            if lossy:
                self.notes.append(
                    f"Results of {name} have halved colour ({lossy[0]}): figures include the codec's loss."
                )

    def score_bicubic(self) -> None:
        """The LQ enlarged."""
        self.needs_lq()
        self._enter("bicubic", "folder", [None], self.folder / "sr" / "bicubic")
        for clip in self.clips:
            output = self.folder / "sr" / "bicubic" / self._place() / clip.name
            with self.bar("bicubic") as report:
                enlarged(clip, output, partial(report, clip.name))
            self._score("bicubic", None, clip, video.probe(output))

    def score_upscaled(self, restorer: Restorer) -> None:
        """The model's own results, for each seed."""
        self.needs_lq()
        args = self.args
        seeds = [*range(args.seed, args.seed + args.seeds)]
        name = model_name(args)
        entry = self._enter(name, "upscaled", seeds, self.folder / "sr" / name)
        entry |= {"settings": config.plain(restorer.settings), "weights": dict(restorer.model.hashes)}
        records = []
        for seed in seeds:
            for number, clip in enumerate(self.clips, 1):
                title = f"{name}, seed {seed}, clip {number} of {len(self.clips)}: {clip.name}"
                output = self.folder / "sr" / name / self._place() / f"seed{seed}" / clip.name
                path, record = restorer.restored(clip, output, (seed, self.scale), title)
                records.append(record)
                self._score(name, seed, clip, video.probe(path))
        entry["seconds_per_frame"], entry["peak_memory"] = rates(records)
        if not args.weights:
            self.notes.append(f"The embedded model ({EMBEDDED.name}) is a small one: not the weights of the paper.")

    def _place(self) -> str:
        """Below a method's folder: what its inputs are."""
        what = self.clips[0].lq.path.parent.name if self.made else self.kind
        return f"{what}-x{self.scale}" + (f"-{self.args.max_frames}frames" if self.args.max_frames else "")

    def _enter(self, name: str, kind: str, seeds: list, path: Path) -> dict:
        nothing = dict.fromkeys(("settings", "weights", "seconds_per_frame", "peak_memory"))
        self.methods.append({"name": name, "kind": kind, "seeds": seeds, "path": self._relative(path), **nothing})
        return self.methods[-1]

    def _score(self, method: str, seed: int | None, clip: Clip, result: video.Source) -> None:
        place = f"{method}/{clip.name}" if seed is None else f"{method}/seed{seed}/{clip.name}"
        with self.bar(f"scoring {method}") as report:
            scores = self.scores.of(clip, result, place=place, report=partial(report, clip.name))
        about = {"method": method, "clip": clip.name, "seed": seed}
        self.hashes[clip.name] |= {"gt": scores["hashes"]["truth"]} if clip.gt else {}
        self.hashes[clip.name][f"{method}/{seed}" if seed is not None else method] = scores["hashes"]["result"]
        for metric, value in scores["figures"].items():
            self.rows.append({**about, "metric": metric, "value": value, "reason": scores["reasons"].get(metric)})
            self._meet(metric, scores)
        self.curves += [
            {**about, "metric": metric, "first": 0, "values": values} for metric, values in scores["curves"].items()
        ]
        self.results[clip.name].setdefault(method, {})["" if seed is None else str(seed)] = self._relative(result.path)

    def _meet(self, metric: str, scores: Mapping) -> None:
        """Enter a metric when it is first seen."""
        if metric in self.metrics:
            return
        curve = scores["curves"].get(metric) or []
        pairs = len(curve) > 1 and curve[0] is None and curve[1] is not None
        entry = {"name": metric, "label": label(metric), "protocol": scores["protocols"][metric]}
        entry |= {"better": scores["better"][metric], "of": scores["of"].get(metric)}
        self.metrics[metric] = entry | {"per": "pair" if pairs else "frame" if curve else "clip"}

    def _relative(self, path: Path) -> str:
        try:
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:  # another drive
            return path.resolve().as_posix()

    def write(self, command: str) -> None:
        """Write all files, and print the one table, then the clips one by one."""
        key, table = self._table()
        results = self._content(command)
        same = not self.odd and not self.args.max_clips and not self.args.max_frames
        results["table"] = comparison(results, table, same and table is not None and self._is_input_of(table))
        if table is not None:
            self.notes.insert(0, f"Published, table `{key}`: {table['source']}. Its protocol: {table['protocol']}.")
            if not self._is_input_of(table):
                was = f"{table['lq']}, x{table.get('scale', self.dataset.scale)}"
                self.notes.insert(
                    1, f"Its LQ was {was}; here it is {self.kind}, x{self.scale}: differences say little."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, allow_nan=False)
        write_whole(self.folder / "results.csv", csv_text(self.rows).encode())
        write_whole(self.folder / "results.md", document(results).encode())
        write_whole(self.folder / "results.json", f"{text}\n".encode())
        show(results)
        self.tell(", ".join(str(self.folder / f"results.{kind}") for kind in ("json", "csv", "md")))

    def _table(self) -> tuple[str | None, Mapping | None]:
        """The published table to compare with. Raises ValueError for a name that is none."""
        tables, wanted = self.dataset.published, self.args.published
        if wanted is not None and wanted not in tables:
            raise ValueError(f"got --published {wanted!r}, expected one of {', '.join(tables) or 'none there is'}")
        fitting = [name for name, table in tables.items() if self._is_input_of(table)]
        key = wanted or next(iter([*fitting, *tables]), None)
        return key, tables.get(key)

    def _is_input_of(self, table: Mapping) -> bool:
        """Whether a published table is of the LQ and the scale taken here."""
        return (table["lq"], table.get("scale", self.dataset.scale)) == (self.kind, self.scale)

    def _content(self, command: str) -> dict:
        data, args = self.dataset, self.args
        return {
            "format": FORMAT,
            "dataset": {
                "name": Path(args.dataset).stem, "title": data.title, "scale": self.scale,
                "layout": "; ".join(self.found.lines), "root": self._relative(args.root), "clips": len(self.clips),
                "frames": sum(clip.frames for clip in self.clips), "degradation": self.made, "lq": self.kind,
                "config": vars(data), "cut": {"max_clips": args.max_clips, "max_frames": args.max_frames},
            },
            "methods": self.methods,
            "metrics": [*self.metrics.values()],
            "clips": [self._clip(clip) for clip in self.clips],
            "rows": self.rows,
            "curves": self.curves,
            "table": [],
            "published": published_entries(data.published),
            "published_clips": published_clips(data.published),
            "versions": provenance.versions(),
            "hardware": hardware(usable_device(args.device)),
            "command": command,
            "notes": self.notes,
        }  # fmt: skip

    def _clip(self, clip: Clip) -> dict:
        source, size = clip.gt or clip.lq, clip.size or (None, None)
        paths = {part: getattr(clip, part) for part in ("lq", "gt")}
        places = {part: self._relative(found.path) if found else None for part, found in paths.items()}
        about = {"name": clip.name, "frames": clip.frames, "width": size[1], "height": size[0]}
        return {
            **about,
            "rate": str(source.rate),
            **places,
            "results": self.results[clip.name],
            "sha256": self.hashes[clip.name],
        }


def model_name(args: argparse.Namespace) -> str:
    """What the method that restores here is called."""
    return "mgld-vsr" if args.weights else "embedded"


def is_lossy(source: video.Source) -> bool:
    """Whether a video keeps colour at half the resolution only."""
    if source.kind != "video":
        return False
    with av.open(str(source.path)) as container:
        return not container.streams.video[0].format.name.startswith(EXACT)
