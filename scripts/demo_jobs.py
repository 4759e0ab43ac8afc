"""Jobs of the page of scripts/demo.py: uploads, a queue of jobs, and the display of results."""

import hashlib
import html
import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ldm import config, video
from ldm.engine.assemble import CARD, EMBEDDED, presets_of
from ldm.engine.flags import flags_of
from ldm.engine.jobs import Job, JobOptions, Model
from ldm.engine.restoring import Cancelled, model_of, restore_file
from ldm.picture import busiest_box, encoded, pixels
from ldm.printable import printable
from ldm.report.views import data_uri, shrunk
from ldm.video.source import DAMAGED
from ldm.weights.checkpoint import sha256
from scripts.command import first_line

SUFFIXES = (*video.VIDEO_SUFFIXES, *video.IMAGE_SUFFIXES)
PREVIEW = 2.0  # seconds
SHOWN = 64  # frames that are read for the profile, at most
WIDEST = 1280  # pixels of a picture on the page
MOST_WAITING = 30  # jobs
PLAIN = "none"  # the preset of no preset
KEPT = ("settings", "arguments", "format", "plan", "versions", "hardware", "frames", "seconds", "memory")


@dataclass(frozen=True)
class Limits:
    """Maxima of an upload: megabytes of the file, seconds of a clip, pixels of a frame."""

    megabytes: int = 500
    seconds: float = 60.0
    pixels: int = 2_100_000


@dataclass(frozen=True)
class JobRequest:
    """The choices of a visitor: the name of a model, a preset, and the options of a job."""

    model: str
    preset: str
    options: JobOptions


@dataclass(frozen=True)
class Result:
    """A finished job: the output, the record that is shown, a line about time and memory, and the job."""

    output: Path
    record: dict
    text: str
    job: Job


@dataclass
class JobProgress:
    """Progress of a job: network calls by stage, the lines of its plan and its warnings, and its place in the queue."""

    began: float = field(default_factory=time.monotonic)
    done: Counter = field(default_factory=Counter)
    total: dict[str, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    place: int = 0

    def report(self, stage: str, done: int, total: int | None) -> None:
        self.done[stage] = done
        if total is not None:
            self.total[stage] = total

    def text(self) -> str:
        """Return one line: the place in the queue, or the completed part with the elapsed and the remaining time."""
        if self.place:
            return f"Waiting: {self.place} job{'s' * (self.place > 1)} before this one."
        took = time.monotonic() - self.began
        known = [stage for stage in self.done if stage in self.total]
        if not known:
            return f"Working: starting, {took:.0f} s"
        part = sum(self.done[stage] / max(self.total[stage], 1) for stage in known) / len(known)
        stages = ", ".join(f"{stage} {self.done[stage]}/{self.total[stage]}" for stage in known)
        left = f", about {took * (1 - part) / part:.0f} s left" if part > 0.05 else ""
        return f"Working: {100 * part:.0f} %, {took:.0f} s{left}: {stages}"


class Restorer:
    """Restores uploads with one of several models, one job at a time; others wait for their turn.

    Args:
        folder: a private folder for uploads and results.
        models: name -> folder of weights.
        device: of the networks; None for CUDA where there is one.
        memory: bytes to use; None for all free memory.
        limits: of an upload.
    """

    def __init__(self, folder: Path, models: dict[str, Path], device: str | None, memory: int | None, limits: Limits):
        self.folder, self.models, self.limits = folder, models, limits
        self.device, self.memory = device, memory
        self.turn, self.line = threading.Condition(), []
        self.cache: dict[tuple[str, str], Model] = {}

    def model(self, name: str, preset: str) -> Model:
        """Return a model; the last one stays in memory. Raises ValueError for an unknown name."""
        if name not in self.models:
            raise ValueError(f"got model {printable(name, 60)!r}, expected one of {', '.join(self.models)}")
        if (name, preset) not in self.cache:
            self.cache.clear()  # two models may not fit
            chosen = None if preset == PLAIN else preset
            self.cache[name, preset] = model_of(self.models[name], preset=chosen, device=self.device)
        return self.cache[name, preset]

    def receive(self, upload: str | Path | None) -> Path:
        """Copy an uploaded file to one named by its hash. Raises ValueError for no file, or one that is too large."""
        if upload is None:
            raise ValueError("got no file, expected a video or a picture; drop one")
        path, suffix = Path(upload), Path(upload).suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"got a file with the suffix {printable(suffix, 20)!r}, expected a video or a picture")
        if path.stat().st_size > self.limits.megabytes * 10**6:
            raise ValueError(f"got more than {self.limits.megabytes} MB, expected a smaller file; cut it")
        kept = self.folder / f"{sha256(path)[:32]}{suffix}"
        if not kept.exists():
            shutil.copyfile(path, kept)
        return kept

    def check(self, path: Path) -> video.Source:
        """Probe an upload. Raises VideoError or ValueError with one line that contains no path of this machine."""
        try:
            source = video.probe(path, damaged=DAMAGED[0])
        except video.VideoError as error:
            raise ValueError(str(error).replace(str(path), "the file")) from None
        if source.width * source.height > self.limits.pixels:
            size = f"{source.width}x{source.height}"
            raise ValueError(f"got frames of {size}, expected at most {self.limits.pixels} pixels; shrink the video")
        if source.frames is None or source.frames > self.limits.seconds * source.rate:
            raise ValueError(f"got more than {self.limits.seconds:g} s of video, expected at most that; cut it")
        return source

    def run(self, path: Path, wanted: JobRequest, progress: JobProgress, stop: Callable[[], bool]) -> Result:
        """Restore one upload, after the jobs before it. Raises Cancelled or what `restore_file` raises."""
        with self.waiting(progress, stop):
            progress.began = time.monotonic()
            model = self.model(wanted.model, wanted.preset)
            output = self.output_of(path, wanted)

            def say(line: str) -> None:
                text = line.replace(f"{path}: ", "").replace(f"{output.stem}.preview{output.suffix}", output.name)
                text = text.replace(f"{output.name}: ", "Memory plan: ", 1)
                progress.lines.append(text.replace(f"{path.parent}/", ""))

            job, record = restore_file(
                path, output, model, wanted.options, report=progress.report, warn=say, log=say, stop=stop
            )
        return Result(job.output, shown_record(record), summary(job, record), job)

    @contextmanager
    def waiting(self, progress: JobProgress, stop: Callable[[], bool]) -> Iterator[None]:
        """Run the block when all earlier jobs are done.

        Raises Cancelled if `stop()` is true before that, ValueError if too many wait already.
        """
        ticket = object()
        with self.turn:
            if len(self.line) > MOST_WAITING:
                raise ValueError(f"got {len(self.line)} jobs before this one, expected fewer; try again later")
            self.line.append(ticket)
        try:
            with self.turn:
                while place := self.line.index(ticket):
                    progress.place = place
                    if stop():
                        raise Cancelled("cancelled while waiting")
                    self.turn.wait(0.2)
            progress.place = 0
            yield
        finally:
            with self.turn:
                self.line.remove(ticket)
                self.turn.notify_all()

    def output_of(self, path: Path, wanted: JobRequest) -> Path:
        """Return the path of an output, which depends on everything that determines it."""
        key = hashlib.sha256(repr((path.name, wanted)).encode()).hexdigest()[:16]
        suffix = ".png" if path.suffix in video.IMAGE_SUFFIXES else ".mp4"
        return self.folder / f"restored-{key}{suffix}"


def model_names(folders: list[Path]) -> dict[str, Path]:
    """Return name -> folder of the models to offer: those that ship, the embedded one first, and the folders by name.

    Raises ValueError for two folders of the same name.
    """
    shipped = sorted(card.parent for card in EMBEDDED.parent.glob(f"*/{CARD}"))
    names = {"embedded": EMBEDDED, **{folder.name: folder for folder in shipped if folder != EMBEDDED}}
    for folder in folders:
        name = folder.resolve().name
        if name in names:
            raise ValueError(f"{folder}: got a second model named {name!r}, expected different names; rename a folder")
        names[name] = folder
    return names


def example_files(clip: Path, folder: Path) -> list[Path]:
    """Return the examples of the page: a clip that ships, and its first frame as a picture in `folder`."""
    folder.mkdir()
    picture = folder / "picture.png"
    picture.write_bytes(encoded(pixels(video.read_clip(clip, stop=1))[0], ".png"))
    return [clip, picture]


def preset_choices(model: Model) -> list[str]:
    """Return the names of a model's presets, after the one that changes nothing."""
    return [PLAIN, *presets_of(model.settings)]


def takes_prompt(model: Model) -> bool:
    """Whether a model takes a description of the clip."""
    return any(flag.caption for flag in flags_of(model.settings).values())


def shown_record(record: dict) -> dict:
    """Return the parts of a record that are shown to a visitor; they contain no paths of this machine."""
    weights = {name: entry["sha256"] for name, entry in record.get("weights", {}).items()}
    shown = {key: record[key] for key in KEPT if key in record}
    return json.loads(json.dumps(config.plain(shown | {"weights": weights}), default=str))


def summary(job: Job, record: dict) -> str:
    """Return a line with size, time and memory of a run, and for a preview an estimate for the whole clip."""
    seconds, frames, (height, width) = record["seconds"]["this run"], record["frames"], job.task.format.size
    each = seconds / max(frames, 1)
    text = f"{frames} frame{'s' * (frames > 1)} of {width}x{height} in {seconds:.1f} s ({each:.2f} s a frame)"
    text += f", peak memory {record['memory']['peak'] / 1e9:.2f} GB"
    if job.options.preview is not None and job.whole_clip > frames:
        text += f"; all {job.whole_clip} frames would take about {job.whole_clip * each:.0f} s and the same memory"
    return text


# ---- display of results


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Raise ValueError without the path of an upload for errors that a visitor can cause."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        text = printable(first_line(error), 400).replace(f"{path.parent}/", "").replace(path.name, "the file")
        raise ValueError(text) from None


def frames_of(job: Job, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frames of input and output, (T, h, w, 3) uint8 RGB, both in the size of the output."""
    start = job.task.start + first
    lq = pixels(video.read_clip(job.task.source, start=start, stop=start + count))
    sr = pixels(video.read_clip(job.output, start=first, stop=first + count))
    size = sr.shape[2], sr.shape[1]
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in lq]), sr


def uri(picture: np.ndarray) -> str:
    """Return a picture, at most WIDEST pixels wide, as a data URI."""
    return data_uri(shrunk(picture, WIDEST / picture.shape[1]), quality=92)


def comparison_html(job: Job, number: int) -> str:
    """Return HTML that compares input and result of a frame with a slider, a range input that also responds to keys."""
    number = min(max(number, 0), max(job.task.frames - 1, 0))
    lq, sr = frames_of(job, number, 1)
    label = html.escape(f"input and result, frame {number}")
    move = "this.parentNode.style.setProperty('--at', this.value + '%')"
    return (
        f'<div class="compare" style="--at: 50%"><img src="{uri(sr[0])}" alt="result, frame {number}">'
        f'<img class="before" src="{uri(lq[0])}" alt="input enlarged, frame {number}"><i></i>'
        f'<input type="range" min="0" max="100" value="50" step="1" aria-label="{label}" oninput="{move}"></div>'
        "<p>Left: input, enlarged bicubically. Right: result.</p>"
    )


def profile_html(job: Job) -> str:
    """Return HTML with the x-t profiles of input and result (time downward), or a line for a single frame."""
    count = min(job.task.frames or 1, SHOWN)
    if count < 2:
        return "<p>A single frame has no profile over time.</p>"
    lq, sr = frames_of(job, 0, count)
    middle = sr[count // 2]
    _, top, _, tall = busiest_box(middle, (middle.shape[1], 64))
    row, stretch = top + tall // 2, max(2, 160 // count)
    strips = [np.repeat(clip[:, row], stretch, axis=0) for clip in (lq, sr)]
    figures = "".join(
        f'<figure><img src="{uri(strip)}" alt="x-t profile of the {name}"><figcaption>{name}</figcaption></figure>'
        for name, strip in zip(("input", "result"), strips, strict=True)
    )
    return f'<div class="profile">{figures}</div><p>Row {row} of {count} frames, time downward.</p>'
