"""One run of a benchmark: clips are made, restored and scored in order, then written down."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ldm import video
from ldm.benchmark.looking import Talk, check_result, paired
from ldm.benchmark.making import Restorer, enlarge_clip, rates
from ldm.benchmark.published import compared_with, published_clips, published_entries
from ldm.benchmark.scores import Scores
from ldm.benchmark.sets import GIVEN, Clip, Dataset, Found
from ldm.benchmark.tables import csv_text, document, label
from ldm.engine import provenance
from ldm.engine.device import hardware
from ldm.files import write_whole
from ldm.video.opening import open_media

FORMAT = "mgld-vsr benchmark 1"

MakeLQ = Callable[[Mapping[str, Path], Callable], tuple[dict[str, Path], str]]


@dataclass(frozen=True)
class Asked:
    """What a run is asked for. `name` is the set's, `root` its folder; `published` the table to compare with; `command`
    makes it again."""

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
    """Methods scored on the clips of a set, in a folder that keeps what is done.

    `make_lq(truths by clip, report)` degrades clips: it returns their paths and how they were made.
    """

    def __init__(self, asked: Asked, dataset: Dataset, scores: Scores, *, make_lq: MakeLQ, talk: Talk):
        self.asked, self.dataset, self.folder, self.scores = asked, dataset, asked.folder, scores
        self.make_lq, self.talk = make_lq, talk
        self.methods, self.rows, self.curves, self.notes = [], [], [], []
        self.metrics: dict[str, dict] = {}
        self.results: dict[str, dict] = {}
        self.hashes: dict[str, dict] = {}
        self.made: str | None = None  # how LQ was made

    def take(self, found: Found, kind: str | None, clips: Sequence[Clip]) -> None:
        """The clips to work on. Raises ValueError for a table that the set has not."""
        self.found, self.kind, self.clips = found, kind, list(clips)
        self.odd = self.dataset.differences(clips)
        self._table()
        self.results = {clip.name: {} for clip in clips}
        self.hashes = {clip.name: {} for clip in clips}
        self.notes += [f"Not the published set: {line}." for line in self.odd]
        cut = [(self.asked.max_clips, "clip", ""), (self.asked.max_frames, "frame", " of each clip")]
        self._note_lossy("Clips of the truth", [clip.gt for clip in clips if clip.gt])
        cropped = [clip for clip in clips if clip.gt and (clip.gt.height, clip.gt.width) != clip.size]
        for clip in cropped[:1]:
            sizes = f"{clip.gt.width}x{clip.gt.height} is scored over {clip.size[1]}x{clip.size[0]}"
            self.notes.append(f"A truth that is no multiple of the scale is cut: {clip.name} of {sizes}.")
        self.notes += [f"{line}." for line in found.left_out]
        self.notes += [f"At most {most} {what}{'s' * (most != 1)}{each}." for most, what, each in cut if most]

    def needs_lq(self) -> None:
        """Make LQ clips where there are none."""
        if all(clip.lq for clip in self.clips):
            return
        with self.talk.bar("degrading") as report:
            paths, self.made = self.make_lq({clip.name: clip.gt.path for clip in self.clips}, report)
        self.clips = [self._with_lq(clip, paths[clip.name]) for clip in self.clips]
        self.talk.tell(f"LQ made: {self.made}")

    def _with_lq(self, clip: Clip, path: Path) -> Clip:
        lq = video.probe(path)
        if lq.frames != clip.frames:
            raise ValueError(f"{path}: has {lq.frames} frames, expected {clip.frames}; remove it to make it anew")
        made = paired(clip.name, replace(clip.gt, frames=clip.frames), lq, self.asked.scale, None)
        return replace(made, gt=clip.gt)

    def score_folders(self, folders: Mapping[str, Path], results: Mapping[str, Mapping]) -> None:
        """Results of other methods, or of ours from before."""
        for name, path in folders.items():
            self._enter(name, "folder", [None], path)
            for clip in self.clips:
                self._score(name, None, clip, results[name][clip.name])
            self._note_lossy(f"Results of {name}", [results[name][clip.name] for clip in self.clips])

    def _note_lossy(self, what: str, sources: Sequence[video.Source]) -> None:
        if lossy := next((source.path.name for source in sources if is_lossy(source)), None):
            self.notes.append(f"{what} have halved colour ({lossy}): figures include the codec's loss.")

    def score_bicubic(self) -> None:
        """The LQ enlarged."""
        self.needs_lq()
        folder = self.folder / "sr" / "bicubic"
        self._enter("bicubic", "folder", [None], folder)
        for clip in self.clips:
            with self.talk.bar("bicubic") as report:
                output = enlarge_clip(clip, folder / self._place() / clip.file_name, partial(report, clip.name))
            self._score("bicubic", None, clip, video.probe(output))

    def score_upscaled(self, restorer: Restorer, name: str, seeds: Sequence[int]) -> None:
        """The model's own results, for each seed, in OUT/sr/NAME/LQ/seedN/CLIP."""
        self.needs_lq()
        folder, records = self.folder / "sr" / name, []
        entry = self._enter(name, "upscaled", list(seeds), folder)
        entry |= {"settings": dict(restorer.model.settings), "weights": dict(restorer.model.hashes)}
        for seed in seeds:
            for number, clip in enumerate(self.clips, 1):
                output = folder / self._place() / f"seed{seed}" / clip.file_name
                with self.talk.bar(f"{name}, seed {seed}, clip {number} of {len(self.clips)}, {clip.name}") as report:
                    how = {"seed": seed, "scale": self.asked.scale, "report": report}
                    records.append(restorer.restored(clip, output, **how))
                self._score(name, seed, clip, video.probe(output))
        entry["seconds_per_frame"], entry["peak_memory"] = rates(records)

    def _place(self) -> str:
        """Below a method's folder: what its inputs are."""
        what, most = self.clips[0].lq.path.parent.name if self.made else self.kind, self.asked.max_frames
        return f"{what}-x{self.asked.scale}" + (f"-{most}frames" if most else "")

    def _enter(self, name: str, kind: str, seeds: list, path: Path) -> dict:
        nothing = dict.fromkeys(("settings", "weights", "seconds_per_frame", "peak_memory"))
        self.methods.append({"name": name, "kind": kind, "seeds": seeds, "path": self._relative(path), **nothing})
        return self.methods[-1]

    def _score(self, method: str, seed: int | None, clip: Clip, result: video.Source) -> None:
        check_result(clip, result)
        place = f"{method}/{clip.name}" if seed is None else f"{method}/seed{seed}/{clip.name}"
        with self.talk.bar(f"scoring {method}") as report:
            scores = self.scores.of(clip, result, place=place, report=partial(report, clip.name))
        about = {"method": method, "clip": clip.name, "seed": seed}
        self.hashes[clip.name] |= {"gt": scores["hashes"]["truth"]} if clip.gt else {}
        self.hashes[clip.name][f"{method}/{seed}" if seed is not None else method] = scores["hashes"]["result"]
        for metric, value in scores["figures"].items():
            self.rows.append({**about, "metric": metric, "value": value, "reason": scores["reasons"].get(metric)})
            self._meet(metric, scores)
        for metric, values in scores["curves"].items():
            self.curves.append({**about, "metric": metric, "first": 0, "values": values})
        self.results[clip.name].setdefault(method, {})["" if seed is None else str(seed)] = self._relative(result.path)

    def _meet(self, metric: str, scores: Mapping) -> None:
        """Enter a metric when it is first seen, and whether it has values frame by frame when that is first seen."""
        curve = scores["curves"].get(metric) or []
        pairs = len(curve) > 1 and curve[0] is None and curve[1] is not None
        per = "pair" if pairs else "frame" if curve else "clip"
        entry = {"name": metric, "label": label(metric), "protocol": scores["protocols"][metric]}
        entry |= {"better": scores["better"][metric], "of": scores["of"].get(metric), "per": per}
        if self.metrics.setdefault(metric, entry)["per"] == "clip":
            self.metrics[metric] = entry

    def _relative(self, path: Path) -> str:
        try:
            return Path(os.path.relpath(path.resolve(), self.folder.resolve())).as_posix()
        except ValueError:  # another drive
            return path.resolve().as_posix()

    def write(self) -> dict:
        """Write results.json, results.csv and results.md, and return what is in the first."""
        key, table = self._table()
        results = self._content()
        same = not self.odd and not self.asked.max_clips and not self.asked.max_frames
        results["table"] = compared_with(results, table, same and table is not None and self._is_input_of(table))
        if table is not None:
            self.notes.insert(0, self._about_lq(table))
            self.notes.insert(0, f"Published, table {key}: {table['source']}. Its protocol: {table['protocol']}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, allow_nan=False)
        write_whole(self.folder / "results.csv", csv_text(self.rows).encode())
        write_whole(self.folder / "results.md", document(results).encode())
        write_whole(self.folder / "results.json", f"{text}\n".encode())
        return results

    def _about_lq(self, table: Mapping) -> str:
        """How far the LQ taken here is that of a published table."""
        was = f"{table['lq']}, x{table.get('scale', self.dataset.scale)}"
        if not self._is_input_of(table):
            return (
                f"Its LQ was {was}; here it is {self.kind or 'not known'}, x{self.asked.scale}: differences say little."
            )
        if self.kind == GIVEN:
            return (
                "The LQ that was found is taken for the files of that publication: with others, differences say little."
            )
        return f"Its LQ was {was}, as it is here; where a degradation draws, another draw gives other figures."

    def _table(self) -> tuple[str | None, Mapping | None]:
        """The published table to compare with. Raises ValueError for a name that is none."""
        tables, wanted = self.dataset.published, self.asked.published
        if wanted is not None and wanted not in tables:
            raise ValueError(f"got --published {wanted!r}, expected one of {', '.join(tables) or 'none there is'}")
        fitting = [name for name, table in tables.items() if self._is_input_of(table)]
        key = wanted or next(iter([*fitting, *tables]), None)
        return key, tables.get(key)

    def _is_input_of(self, table: Mapping) -> bool:
        """Whether a published table is of the LQ and the scale taken here."""
        same_lq = self.kind is not None and table["lq"] == self.kind
        return same_lq and table.get("scale", self.dataset.scale) == self.asked.scale

    def _content(self) -> dict:
        data, asked = self.dataset, self.asked
        return {
            "format": FORMAT,
            "dataset": {
                "name": asked.name, "title": data.title, "scale": asked.scale,
                "layout": "; ".join(self.found.lines), "root": self._relative(asked.root), "clips": len(self.clips),
                "frames": sum(clip.frames for clip in self.clips), "degradation": self.made, "lq": self.kind,
                "config": vars(data), "cut": {"max_clips": asked.max_clips, "max_frames": asked.max_frames},
                "odd": self.odd,
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
            "hardware": hardware(asked.device),
            "command": asked.command,
            "notes": self.notes,
        }  # fmt: skip

    def _clip(self, clip: Clip) -> dict:
        source, (height, width) = clip.gt or clip.lq, clip.size or (None, None)
        places = {
            part: self._relative(found.path) if found else None for part, found in (("lq", clip.lq), ("gt", clip.gt))
        }
        return {
            "name": clip.name, "frames": clip.frames, "width": width, "height": height, "rate": str(source.rate),
            **places, "results": self.results[clip.name], "sha256": self.hashes[clip.name],
        }  # fmt: skip


def is_lossy(source: video.Source) -> bool:
    """Whether a video keeps colour at half the resolution only."""
    if source.kind != "video":
        return False
    with open_media(source.path) as container:
        pixels = container.streams[source.track].format
        return (pixels.chroma_width(2), pixels.chroma_height(2)) != (2, 2)
