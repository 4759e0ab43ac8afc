"""No command: the table of scripts/ablate.py, its rows, figures kept, findings, document and x-t pictures."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ldm.files import write_whole
from ldm.picture import ACCENT, INK, PAPER


@dataclass(frozen=True)
class Row:
    """One line of the table: how latents are drawn (guidance None: no diffusion at all) and who decodes them."""

    name: str
    label: str
    guidance: str | None = "none"
    temporal: bool = True
    sequence: bool = False


ROWS = (
    Row("bicubic", "bicubic", guidance=None),
    Row("per_frame", "diffusion frame by frame, image decoder", temporal=False),
    Row("temporal", "+ temporal layers"),
    Row("released", "+ guidance `released`", guidance="released"),
    Row("paper", "+ guidance `paper`", guidance="paper"),
    Row("full", "+ sequence decoder (the full method)", guidance="paper", sequence=True),
)


class Metric(NamedTuple):
    """How a figure is shown, and whether 1 more or -1 less of it is better."""

    heading: str
    digits: int
    better: int
    factor: float = 1


METRICS = {
    "psnr": Metric("PSNR, dB", 2, 1),
    "ssim": Metric("SSIM", 4, 1),
    "sharpness": Metric("sharpness", 3, 1),
    "e_warp": Metric("E_warp, 1/1000", 3, -1, 1000),
    "e_warp_truth": Metric("the truth's own", 3, 0, 1000),
    "tof": Metric("tOF, px", 3, -1),
}
TALL, WIDE, LINE, MARK = 96, 640, 26, 12  # of a picture: pixels of a panel, of a row of text, of the mark of a line


@dataclass(frozen=True)
class Claim:
    """`row` is better than `than` in a metric by more than `least`: a part of the other's figure, dB for PSNR."""

    text: str
    metric: str
    row: str
    than: str
    least: float = 0.0


CLAIMS = (
    Claim("temporal layers: steadier than frame by frame", "e_warp", "temporal", "per_frame", 0.01),
    Claim("guidance `released`: steadier than none", "e_warp", "released", "temporal", 0.01),
    Claim("guidance `paper`: steadier than none", "e_warp", "paper", "temporal", 0.01),
    Claim("sequence decoder: steadier than the image decoder", "e_warp", "full", "paper", 0.01),
    Claim("sequence decoder: nearer to the truth", "psnr", "full", "paper"),
    Claim("full method: steadier than frame by frame by 25 %", "e_warp", "full", "per_frame", 0.25),
    Claim("full method: sharper than bicubic", "sharpness", "full", "bicubic", 0.01),
    Claim("full method: less than 1.5 dB below bicubic", "psnr", "full", "bicubic", -1.5),
)
DOCUMENT = """# What each part is worth

Written by `{command}`; each row of the first table adds one part to the row above it.

{text}
{means}
Sharpness is the mean gradient of the luma on the truth's edges, in parts of the truth's own: 1 is as sharp as the
truth, more is over-sharpened. The warping error follows the truth's motion (DIS); blur lowers it, even below the
truth's own, so it compares rows of like sharpness. tOF is the distance between the motion (Farneback) of output and
truth.

{reading}

![One line of the clip over time, row by row]({picture})

Left a detail of the middle frame, right the line marked in it over time (time downward): smooth where the clip is
steady, combed where it flickers.

{how}

{about}
"""
CARD = "A claim that does not hold for the model that ships here is explained on its card, `assets/tiny/README.md`."
DRY_RUN = "A dry run, only to see that all runs: nothing can be concluded from its figures."


class Cells:
    """Finished measurements by key, in cells.json and views/KEY.png of a folder, written as each is done."""

    def __init__(self, folder: Path):
        self.file, self.views = folder / "cells.json", folder / "views"
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: is a file, expected a folder to write")
        try:
            self.done = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
            self.done = {key: cell for key, cell in self.done.items() if self._view(key).is_file()}
        except (ValueError, AttributeError):
            raise ValueError(f"{self.file}: not readable; remove it to measure anew") from None

    def put(self, key: str, cell: dict, view: np.ndarray) -> None:
        self.views.mkdir(parents=True, exist_ok=True)
        write_whole(self._view(key), png(view))
        self.done[key] = cell
        write_whole(self.file, (json.dumps(self.done, indent=1) + "\n").encode())

    def view(self, key: str) -> np.ndarray:
        picture = cv2.imread(str(self._view(key)), cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError(f"{self._view(key)}: not readable; remove it to measure anew")
        return picture[..., ::-1]

    def _view(self, key: str) -> Path:
        return self.views / f"{key}.png"


def png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) RGB as a PNG file; OpenCV's own choice of compression makes it four times as large."""
    return cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def by_seed(cells: Iterable[Mapping]) -> dict[str, dict[str, list[float]]]:
    """row -> metric -> one mean over the clips per seed, from measurements {row, clip, seed, metrics...}."""
    rows: dict[str, dict] = {}
    for cell in cells:
        rows.setdefault(cell["row"], {}).setdefault(cell["seed"], []).append(cell)
    means = {}
    for row, seeds in rows.items():
        groups = [seeds[seed] for seed in sorted(seeds)]
        means[row] = {name: [float(np.mean([cell[name] for cell in group])) for group in groups] for name in METRICS}
    return means


def spread(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def gain(claim: Claim, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> list[float]:
    """By how much the row is better, seed by seed; a row without seeds is compared with each. NaN beside a 0."""
    got, other = rows[claim.row][claim.metric], rows[claim.than][claim.metric]
    count, better = max(len(got), len(other)), METRICS[claim.metric].better
    got, other = (list(values) * (count if len(values) == 1 else 1) for values in (got, other))
    return [
        better * (a - b) / (1 if claim.metric == "psnr" else b or math.nan) for a, b in zip(got, other, strict=True)
    ]


def verdict(claim: Claim, gains: Sequence[float]) -> str:
    """yes, no, or why it cannot be told."""
    margin = float(np.mean(gains)) - claim.least
    if math.isnan(margin):
        return "not told: there is nothing to compare with"
    if abs(margin) < spread(gains):
        return "not told: within the spread of the seeds"
    return "yes" if margin > 0 else "no"


def findings(rows: Mapping) -> list[tuple[str, str, str]]:
    """(claim, what was measured, verdict) for each claim."""
    found = []
    for claim in CLAIMS:
        gains, metric = gain(claim, rows), METRICS[claim.metric]
        unit, factor, digits = (" dB", 1, 2) if claim.metric == "psnr" else (" %", 100, 1)
        off = f" ± {factor * spread(gains):.{digits}f}" if len(gains) > 1 else ""
        measured = f"{metric.heading.split(',')[0]} {metric.better * factor * np.mean(gains):+.{digits}f}{off}{unit}"
        found.append((claim.text, measured, verdict(claim, gains)))
    return found


def counted(number: int, noun: str) -> str:
    """1 seed, 3 seeds."""
    return f"{number} {noun}{'s' * (number != 1)}"


def means(clips: int, seeds: int) -> str:
    """What the figures of a table are, in words."""
    over = "Means over the clips" if clips > 1 else "Figures of one clip"
    off = "± the standard deviation over " if seeds > 1 else ""
    return f"{over}, {off}{counted(seeds, 'seed')} of the noise (bicubic draws none)."


def markdown(rows: Mapping, found: Sequence[tuple[str, str, str]]) -> str:
    """The table, and the findings where there are any."""
    lines = ["| | " + " | ".join(metric.heading for metric in METRICS.values()) + " |"]
    lines.append("|---" * (len(METRICS) + 1) + "|")
    for row in ROWS:
        figures = []
        for name, metric in METRICS.items():
            values = [metric.factor * value for value in rows[row.name][name]]
            off = f" ± {spread(values):.{metric.digits}f}" if len(values) > 1 and metric.better else ""
            figures.append(f"{np.mean(values):.{metric.digits}f}{off}")
        lines.append(f"| {row.label} | " + " | ".join(figures) + " |")
    if found:
        lines += ["", "| claim | measured | holds |", "|---|---|---|"]
    lines += [f"| {claim} | {measured} | {holds} |" for claim, measured, holds in found]
    return "\n".join(lines) + "\n"


def table(rows: Mapping) -> str:
    """The table as CSV: a mean and a deviation per metric, in plain units (E_warp not in thousandths)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "label", "seeds", *(f"{metric}_{what}" for metric in METRICS for what in ("mean", "sd"))])
    for row in ROWS:
        own = rows[row.name]
        figures = [f"{figure:.8g}" for metric in METRICS for figure in (np.mean(own[metric]), spread(own[metric]))]
        writer.writerow([row.name, row.label, len(own["psnr"]), *figures])
    return text.getvalue()


def top_of(line: int, height: int, band: int) -> int:
    """The first of the `band` rows around a line that a picture shows."""
    return min(max(line - band // 2, 0), height - band)


def view(frames: Sequence[np.ndarray], line: int, band: int) -> np.ndarray:
    """What a picture shows of a clip, (T + band, w, 3): row `line` of every frame, then some around it of one."""
    top = top_of(line, len(frames[0]), band)
    return np.vstack([np.stack([frame[line] for frame in frames]), frames[len(frames) // 2][top : top + band]])


def sheet(views: Mapping[str, np.ndarray], band: int, line: int) -> np.ndarray:
    """Views by title, one under the other: (H, W, 3) uint8. Left a detail with its row `line` marked at both ends,
    right that row over time (time downward): smooth where a clip is steady, combed where it flickers."""
    y = round((line + 0.5) * TALL / band)
    panels = []
    for title, picture in views.items():
        time, detail = picture[:-band], picture[-band:]
        width = max(WIDE, picture.shape[1])
        strip = np.full((LINE, 2 * width + 8, 3), PAPER, np.uint8)
        cv2.putText(strip, title, (4, LINE - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
        both = [cv2.resize(part, (width, TALL), interpolation=cv2.INTER_NEAREST) for part in (detail, time)]
        for edge, inwards in ((0, MARK), (width - 1, -MARK)):
            tip = np.array([[edge, y - MARK // 2], [edge + inwards, y], [edge, y + MARK // 2]])
            cv2.fillConvexPoly(both[0], tip, ACCENT, cv2.LINE_AA)
        panels += [strip, np.hstack([both[0], np.full((TALL, 8, 3), PAPER, np.uint8), both[1]])]
    return np.vstack(panels)
