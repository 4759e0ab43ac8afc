"""Run a benchmark: degrade, restore and score clips, and write results.json, results.csv and results.md."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ldm import video
from ldm.benchmark.ablation import Ablation
from ldm.benchmark.inspection import Bar, check_result, paired
from ldm.benchmark.published import compared_with, published_clips, published_entries
from ldm.benchmark.restoration import Enlarge, Restorer, enlarge_clip, rates
from ldm.benchmark.scores import Scores
from ldm.benchmark.sets import GIVEN, Clip, Dataset, Found
from ldm.benchmark.tables import csv_text, document, label
from ldm.engine import provenance
from ldm.engine.device import hardware
from ldm.files import write_atomically
from ldm.video.opening import open_media

log = logging.getLogger(__name__)
FORMAT = "mgld-vsr benchmark 1"
Degrade = Callable[[Mapping[str, Path], Callable], tuple[dict[str, Path], str]]


@dataclass(frozen=True)
class RunOptions:
    """Options of a benchmark.

    Args:
        name, root: name and folder of the test set.
        folder: output folder.
        scale: ratio of restored sides to input sides.
        max_clips, max_frames: limits, or None.
        published: table to compare with; None: the first that fits.
        device: device of networks and metrics.
        command: the command line that repeats the run.
    """

    name: str
    root: Path
    folder: Path
    scale: int
    max_clips: int | None
    max_frames: int | None
    published: str | None
    device: str
    command: str


class Run:
    """Score methods on the clips of a test set; finished work is kept in the output folder.

    `degrade(truths by clip, report)` makes the input and returns its paths by clip and a description. `ablation` has
    the labels and claims of the rows. Raises ValueError for an unknown published table.
    """

    def __init__(
        self,
        options: RunOptions,
        dataset: Dataset,
        scores: Scores,
        *,
        clips: tuple[Found, str | None, Sequence[Clip]],
        degrade: Degrade,
        bar: Bar,
        ablation: Ablation | None = None,
    ):
        self.options, self.dataset, self.folder, self.scores = options, dataset, options.folder, scores
        self.degrade, self.bar, self.ablation = degrade, bar, ablation
        self.methods, self.rows, self.curves = [], [], []
        self.metrics: dict[str, dict] = {}
        self.degradation: str | None = None  # how the input was made
        self.found, self.kind, self.clips = clips[0], clips[1], list(clips[2])
        self.differences = dataset.differences(self.clips)
        self.results: dict[str, dict] = {clip.name: {} for clip in self.clips}
        self.hashes: dict[str, dict] = {clip.name: {} for clip in self.clips}
        self._published_table()
        self.notes = [f"Not the published set: {line}." for line in self.differences]
        self._note_lossy("Clips of the truth", [clip.gt for clip in self.clips if clip.gt])
        cropped = [clip for clip in self.clips if clip.gt and (clip.gt.height, clip.gt.width) != clip.size]
        for clip in cropped[:1]:
            sizes = f"{clip.gt.width}x{clip.gt.height} is scored over {clip.size[1]}x{clip.size[0]}"
            self.notes.append(f"A truth that is no multiple of the scale is cut: {clip.name} of {sizes}.")
        limits = [(options.max_clips, "clip", ""), (options.max_frames, "frame", " of each clip")]
        self.notes += [f"{line}." for line in self.found.left_out]
        self.notes += [f"At most {most} {what}{'s' * (most != 1)}{each}." for most, what, each in limits if most]

    def score_folders(self, folders: Mapping[str, Path], results: Mapping[str, Mapping]) -> None:
        """Score results in folders; a string in place of a result is the reason why it cannot be scored."""
        for name, path in folders.items():
            self._add_method(name, "folder", [None], path)
            for clip in self.clips:
                result = results[name][clip.name]
                if isinstance(result, str):
                    self._enter(name, None, clip, self.scores.without(clip, result))
                else:
                    self._score(name, None, clip, result)
            self._note_lossy(f"Results of {name}", [r for r in results[name].values() if not isinstance(r, str)])

    def score_enlarged(self, name: str, enlarge: Enlarge, weights: Mapping[str, str]) -> None:
        """Enlarge every clip frame by frame and score it; `weights` has the hashes of the files that this uses."""
        self._make_input()
        folder, records = self.folder / "sr" / name, []
        entry = self._add_method(name, "folder", [None], folder)
        entry["weights"] = dict(weights)
        for clip in self.clips:
            output = folder / self._input_name() / clip.file_name
            with self.bar(name) as report:
                progress = partial(report, clip.name)
                records.append(enlarge_clip(clip, output, enlarge, weights=weights, report=progress))
            self._score(name, None, clip, video.probe(output))
        entry["seconds_per_frame"], _ = rates(records)

    def score_upscaled(self, restorer: Restorer, name: str, seeds: Sequence[int]) -> None:
        """Restore and score every clip with each seed; results are in OUT/sr/NAME/LQ/seedN/CLIP."""
        self._make_input()
        folder, records = self.folder / "sr" / name, []
        entry = self._add_method(name, "upscaled", list(seeds), folder)
        entry |= {"settings": restorer.model.used_settings, "weights": dict(restorer.model.hashes)}
        entry["title"] = restorer.model.settings.get("title")
        for seed in seeds:
            for number, clip in enumerate(self.clips, 1):
                output = folder / self._input_name() / f"seed{seed}" / clip.file_name
                with self.bar(f"{name}, seed {seed}, clip {number} of {len(self.clips)}, {clip.name}") as report:
                    how = {"seed": seed, "scale": self.options.scale, "report": report}
                    records.append(restorer.restored(clip, output, **how))
                self._score(name, seed, clip, video.probe(output))
        entry["seconds_per_frame"], entry["peak_memory"] = rates(records)

    def write(self) -> dict:
        """Write results.json, results.csv and results.md, and return the content of the first."""
        key, table = self._published_table()
        results = self._content()
        same = not self.differences and not self.options.max_clips and not self.options.max_frames
        results["table"] = compared_with(results, table, same and table is not None and self._has_input_of(table))
        if self.ablation is not None:
            results |= {"labels": self.ablation.labels, "findings": self.ablation.findings(results)}
        if table is not None:
            self.notes.insert(0, self._about_input(table))
            self.notes.insert(0, f"Published, table {key}: {table['source']}. Its protocol: {table['protocol']}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, allow_nan=False)
        write_atomically(self.folder / "results.csv", csv_text(self.rows).encode())
        write_atomically(self.folder / "results.md", document(results).encode())
        write_atomically(self.folder / "results.json", f"{text}\n".encode())
        return results

    def _make_input(self) -> None:
        """Degrade the ground truth of clips without input."""
        if all(clip.lq for clip in self.clips):
            return
        with self.bar("degrading") as report:
            paths, self.degradation = self.degrade({clip.name: clip.gt.path for clip in self.clips}, report)
        self.clips = [self._with_input(clip, paths[clip.name]) for clip in self.clips]
        log.info("LQ made: %s", self.degradation)

    def _with_input(self, clip: Clip, path: Path) -> Clip:
        lq = video.probe(path)
        if lq.frames != clip.frames:
            raise ValueError(f"{path}: has {lq.frames} frames, expected {clip.frames}; remove it to repeat this")
        made = paired(clip.name, replace(clip.gt, frames=clip.frames), lq, self.options.scale, None)
        return replace(made, gt=clip.gt)

    def _input_name(self) -> str:
        """Return the name of the folder of an input, below that of a method."""
        what, most = self.clips[0].lq.path.parent.name if self.degradation else self.kind, self.options.max_frames
        return f"{what}-x{self.options.scale}" + (f"-{most}frames" if most else "")

    def _add_method(self, name: str, kind: str, seeds: list, path: Path) -> dict:
        nothing = dict.fromkeys(("settings", "weights", "seconds_per_frame", "peak_memory"))
        self.methods.append({"name": name, "kind": kind, "seeds": seeds, "path": self._relative(path), **nothing})
        return self.methods[-1]

    def _score(self, method: str, seed: int | None, clip: Clip, result: video.Source) -> None:
        check_result(clip, result)
        place = f"{method}/{clip.name}" if seed is None else f"{method}/seed{seed}/{clip.name}"
        with self.bar(f"scoring {method}") as report:
            scores = self.scores.of(clip, result, place=place, report=partial(report, clip.name))
        self._enter(method, seed, clip, scores)
        hashes, known = self.hashes[clip.name], scores["hashes"]
        hashes |= {"gt": known["truth"]} if clip.gt else {}
        hashes[f"{method}/{seed}" if seed is not None else method] = known["result"]
        self.results[clip.name].setdefault(method, {})["" if seed is None else str(seed)] = self._relative(result.path)

    def _enter(self, method: str, seed: int | None, clip: Clip, scores: Mapping) -> None:
        """Add the figures, curves and metrics of a clip to the results."""
        about = {"method": method, "clip": clip.name, "seed": seed}
        for metric, value in scores["figures"].items():
            self.rows.append({**about, "metric": metric, "value": value, "reason": scores["reasons"].get(metric)})
            self._add_metric(metric, scores)
        for metric, values in scores["curves"].items():
            self.curves.append({**about, "metric": metric, "first": 0, "values": values})

    def _add_metric(self, metric: str, scores: Mapping) -> None:
        """Describe a metric; the first clip with a curve tells whether its values are of frames or of pairs."""
        curve = scores["curves"].get(metric) or []
        pairs = len(curve) > 1 and curve[0] is None and curve[1] is not None
        per = "pair" if pairs else "frame" if curve else "clip"
        entry = {"name": metric, "label": label(metric), "protocol": scores["protocols"][metric]}
        entry |= {"better": scores["better"][metric], "of": scores["of"].get(metric), "per": per}
        if self.metrics.setdefault(metric, entry)["per"] == "clip":
            self.metrics[metric] = entry

    def _note_lossy(self, what: str, sources: Sequence[video.Source]) -> None:
        if lossy := next((source.path.name for source in sources if is_lossy(source)), None):
            self.notes.append(f"{what} have halved colour ({lossy}): figures include the codec's loss.")

    def _relative(self, path: Path) -> str:
        try:
            return Path(os.path.relpath(path.resolve(), self.folder.resolve())).as_posix()
        except ValueError:  # another drive
            return path.resolve().as_posix()

    def _about_input(self, table: Mapping) -> str:
        """Return a note on how the input differs from that of a published table."""
        was = f"{table['lq']}, x{table.get('scale', self.dataset.scale)}"
        if not self._has_input_of(table):
            here = f"{self.kind or 'unknown'}, x{self.options.scale}"
            return f"Its LQ was {was}; here it is {here}: differences say little."
        if self.kind == GIVEN:
            return "The LQ found is assumed to be that of the publication: with other files, differences say little."
        return f"Its LQ was {was}, as here; where a degradation is random, another draw gives other figures."

    def _published_table(self) -> tuple[str | None, Mapping | None]:
        """Return name and content of the published table to compare with. Raises ValueError for an unknown name."""
        tables, wanted = self.dataset.published, self.options.published
        if wanted is not None and wanted not in tables:
            known = ", ".join(tables) or "none: it has no table"
            raise ValueError(f"got --published {wanted!r}, expected one of {known}")
        fitting = [name for name, table in tables.items() if self._has_input_of(table)]
        key = wanted or next(iter([*fitting, *tables]), None)
        return key, tables.get(key)

    def _has_input_of(self, table: Mapping) -> bool:
        """Whether a published table is of the same input and scale as this run."""
        same_lq = self.kind is not None and table["lq"] == self.kind
        return same_lq and table.get("scale", self.dataset.scale) == self.options.scale

    def _content(self) -> dict:
        data, options = self.dataset, self.options
        return {
            "format": FORMAT,
            "dataset": {
                "name": options.name, "title": data.title, "scale": options.scale,
                "layout": "; ".join(self.found.lines), "root": self._relative(options.root), "clips": len(self.clips),
                "frames": sum(clip.frames for clip in self.clips), "degradation": self.degradation, "lq": self.kind,
                "config": vars(data), "cut": {"max_clips": options.max_clips, "max_frames": options.max_frames},
                "odd": self.differences,
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
            "hardware": hardware(options.device),
            "command": options.command,
            "notes": self.notes,
        }  # fmt: skip

    def _clip(self, clip: Clip) -> dict:
        source, (height, width) = clip.gt or clip.lq, clip.size or (None, None)
        places = {part: self._relative(of.path) if of else None for part, of in (("lq", clip.lq), ("gt", clip.gt))}
        hashes = dict(self.hashes[clip.name])
        for part, of in (("lq", clip.lq), ("gt", clip.gt)):
            if of and part not in hashes:
                hashes[part] = provenance.digest(of.path, of.names)
        return {
            "name": clip.name, "frames": clip.frames, "width": width, "height": height, "rate": str(source.rate),
            **places, "results": self.results[clip.name], "sha256": hashes,
        }  # fmt: skip


def is_lossy(source: video.Source) -> bool:
    """Whether a video has subsampled chroma."""
    if source.kind != "video":
        return False
    with open_media(source.path) as container:
        pixels = container.streams[source.track].format
        return (pixels.chroma_width(2), pixels.chroma_height(2)) != (2, 2)
