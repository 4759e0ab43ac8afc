"""The tables of scripts/benchmark.py: means over clips and seeds beside published figures; JSON, CSV, Markdown."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

LABELS = {  # metric: heading and digits
    "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "sharpness": ("sharpness", 3), "e_warp": ("E_warp", 6),
    "tof": ("tOF, px", 3), "lpips": ("LPIPS", 4), "dists": ("DISTS", 4),
    "niqe": ("NIQE", 3), "brisque": ("BRISQUE", 3), "musiq": ("MUSIQ", 2), "clipiqa": ("CLIP-IQA", 4),
    "dover": ("DOVER", 4), "vmaf": ("VMAF", 2), "e_warp_quantvsr": ("E*_warp, x1000", 2), "maniqa": ("MANIQA", 4),
    "ilniqe": ("ILNIQE", 2), "nrqm": ("NRQM", 3), "fastervqa": ("FasterVQA", 4), "dover_technical": ("DOVER, x100", 3),
    "e_warp_star": ("E*_warp, x1000", 2), "tof_stablevsr": ("tOF, RAFT x10", 3), "tlpips": ("tLPIPS, x1000", 3),
}  # fmt: skip
LONG = {"protocol": 3, "measured": 2}  # columns that fold on a terminal
ARROWS = {"higher": "↑", "lower": "↓"}
CSV_FIELDS = ("method", "seed", "clip", "metric", "value", "reason")


def label(metric: str) -> str:
    """How a metric is headed: `psnr:channels=y` as "PSNR, dB (channels=y)"."""
    name, _, settings = metric.removesuffix("_truth").partition(":")
    words = LABELS.get(name, (name, 4))[0] + (f" ({settings})" if settings else "")
    return f"{words}, the truth's own" if metric.endswith("_truth") else words


def shown(value: float | None, metric: str, *, sign: bool = False) -> str:
    """A figure with the digits of its metric."""
    if value is None:
        return "-"
    digits = LABELS.get(metric.removesuffix("_truth").partition(":")[0], ("", 4))[1]
    return f"{value:{'+' if sign else ''}.{digits}f}"


def mean_of(rows: Sequence[Mapping]) -> tuple[float | None, float | None, str | None]:
    """Mean over clips of each seed, then over seeds; the standard deviation over seeds; why there is none.

    A clip without a value has none for the whole: a mean over other clips would not be comparable.
    """
    if lacking := next((row for row in rows if row["value"] is None), None):
        every = all(row["reason"] == lacking["reason"] for row in rows)
        return None, None, lacking["reason"] if every else f"{lacking['reason']} in clip {lacking['clip']}"
    seeds = {row["seed"]: [r["value"] for r in rows if r["seed"] == row["seed"]] for row in rows}
    means = [statistics.fmean(values) for values in seeds.values()]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None, None


def comparison(results: Mapping, table: Mapping | None, same: bool) -> list[dict]:
    """One line for each method and metric: measured, beside what `table` publishes for the method.

    `same`: whether clips and LQ are those of the table, so that a difference is within its tolerance or not.
    """
    lines, table = [], table or {}
    for method in results["methods"]:
        published = _of_method(table, method)
        for metric in results["metrics"]:
            rows = [r for r in results["rows"] if (r["method"], r["metric"]) == (method["name"], metric["name"])]
            measured, deviation, reason = mean_of(rows)
            printed = published.get(metric["name"])
            difference = measured - printed if None not in (measured, printed) else None
            tolerance = (table.get("tolerance") or {}).get(metric["name"]) if printed is not None else None
            judged = same and None not in (difference, tolerance)
            lines.append(
                {
                    "method": method["name"], "metric": metric["name"], "protocol": metric["protocol"],
                    "measured": measured, "sd": deviation, "published": printed,
                    "source": table.get("source") if printed is not None else None,
                    "published_protocol": table.get("protocol") if printed is not None else None,
                    "difference": difference, "tolerance": tolerance,
                    "within": abs(difference) <= tolerance if judged else None, "reason": reason,
                }
            )  # fmt: skip
    return lines


def _of_method(table: Mapping, method: Mapping) -> Mapping:
    """The figures that a table has for a method: by its name; those upscaled here are MGLD-VSR's."""
    names = {name.casefold(): name for name in table.get("methods") or {}}
    wanted = "mgld-vsr" if method["kind"] == "upscaled" else method["name"].casefold()
    return table["methods"][names[wanted]] if wanted in names else {}


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold any text."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *lines)]
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([body[0], f"|{'---|' * len(head)}", *body[1:]]) + "\n"


def main_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Head and lines: metric by metric: protocol, published, measured, difference, within tolerance?"""
    several = len(results["methods"]) > 1
    better, lines = {m["name"]: m["better"] for m in results["metrics"]}, []
    for line in results["table"]:
        metric = line["metric"]
        measured = line["reason"] or shown(line["measured"], metric)
        if line["sd"] is not None:
            measured += f" ± {shown(line['sd'], metric)}"
        within = {True: "yes", False: "no", None: "-"}[line["within"]]
        if line["within"] is not None:
            within += f" (± {line['tolerance']:g})"
        arrow = "" if metric.endswith("_truth") else f" {ARROWS[better[metric]]}"
        cells = [f"{label(metric)}{arrow}", line["protocol"] or "-", shown(line["published"], metric), measured]
        cells += [shown(line["difference"], metric, sign=True), within]
        lines.append([line["method"], *cells] if several else cells)
    head = ["metric", "protocol", "published", "measured", "difference", "within tolerance?"]
    return ["method", *head] if several else head, lines


def clip_cells(results: Mapping, method: str) -> tuple[list[str], list[list[str]]]:
    """Head and lines: one for every clip of a method, means over seeds, and the mean of all."""
    metrics = [metric["name"] for metric in results["metrics"]]
    cells = {}
    for row in results["rows"]:
        if row["method"] == method:
            cells.setdefault((row["clip"], row["metric"]), []).append(row)
    lines = []
    for clip in (clip["name"] for clip in results["clips"]):
        lines.append([clip, *(_cell(cells[clip, metric], metric) for metric in metrics)])
    whole = {line["metric"]: line for line in results["table"] if line["method"] == method}
    lines.append(["mean", *(shown(whole[metric]["measured"], metric) for metric in metrics)])
    return ["clip", *map(label, metrics)], lines


def _cell(rows: Sequence[Mapping], metric: str) -> str:
    value, deviation, reason = mean_of(rows)
    if value is None:
        return (reason or "").partition(" ")[0]
    return shown(value, metric) + (f" ± {shown(deviation, metric)}" if deviation is not None else "")


def paper_table(results: Mapping) -> str:
    """Methods side by side, the best of each metric in bold, with the published ones of the chosen table below."""
    metrics = [metric for metric in results["metrics"] if not metric["of"]]
    cells = {(line["method"], line["metric"]): line["measured"] for line in results["table"]}
    lines = []
    for method in (method["name"] for method in results["methods"]):
        row = [method]
        for metric in metrics:
            values = [cells[other["name"], metric["name"]] for other in results["methods"]]
            values = [value for value in values if value is not None]
            best = (max if metric["better"] == "higher" else min)(values, default=None)
            value = cells[method, metric["name"]]
            text = shown(value, metric["name"])
            lines_up = value is not None and value == best and len(results["methods"]) > 1
            row.append(f"**{text}**" if lines_up else text)
        lines.append(row)
    head = ["method", *(f"{label(m['name'])} {ARROWS[m['better']]}" for m in metrics)]
    return markdown(head, lines)


def published_table(results: Mapping, source: str) -> str:
    """What one source prints for this set, all of its methods."""
    return _by([entry for entry in results["published"] if entry["source"] == source], "method")


def _by(entries: Sequence[Mapping], what: str) -> str:
    """Published figures in a table with a line for each method, or each clip."""
    metrics = list(dict.fromkeys(entry["metric"] for entry in entries))
    methods = list(dict.fromkeys(entry[what] for entry in entries))
    cells = {(entry[what], entry["metric"]): entry["value"] for entry in entries}
    lines = [[method, *(_printed(cells.get((method, m)), m) for m in metrics)] for method in methods]
    return markdown([what, *map(label, metrics)], lines)


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


def _printed(value: float | None, metric: str) -> str:
    return shown(value, metric) if value is None or metric.partition(":")[0] in LABELS else f"{value:g}"


def document(results: Mapping) -> str:
    """results.md: every table, with all that decides their numbers."""
    data = results["dataset"]
    parts = [f"# {data['title']}\n", f"`{results['command']}`\n", markdown(*main_cells(results))]
    parts += [f"- {note}" for note in results["notes"]]
    parts += ["\n## For a paper\n", paper_table(results)]
    for method in results["methods"]:
        parts += [f"\n## By clip: {method['name']}\n", markdown(*clip_cells(results, method["name"]))]
    for source in dict.fromkeys(entry["source"] for entry in results["published"]):
        protocol = next(entry["protocol"] for entry in results["published"] if entry["source"] == source)
        parts += [f"\n## Published: {source}\n", f"{protocol}\n", published_table(results, source)]
    for source in dict.fromkeys(entry["source"] for entry in results["published_clips"]):
        entries = [entry for entry in results["published_clips"] if entry["source"] == source]
        parts += [f"\n## Published by clip: MGLD-VSR, {source}\n", _by(entries, "clip")]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts += ["\n## Made with\n", f"{versions}."]
    return "\n".join(parts) + "\n"


def csv_text(rows: Iterable[Mapping]) -> str:
    """All figures, one in a line."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: row[name] for name in CSV_FIELDS} for row in rows)
    return out.getvalue()


def published_entries(tables: Mapping) -> list[dict]:
    """All published figures of a set as a flat list."""
    entries = []
    for table in tables.values():
        about = {"source": table["source"], "protocol": table["protocol"]}
        for method, figures in table["methods"].items():
            entries += [{"method": method, "metric": m, "value": v, **about} for m, v in figures.items()]
    return entries


def published_clips(tables: Mapping) -> list[dict]:
    """The figures of MGLD-VSR that are published clip by clip, in the same form."""
    entries = []
    for table in tables.values():
        for clip, figures in (table.get("clips") or {}).items():
            about = {"method": "MGLD-VSR", "clip": clip, "source": table["source"], "protocol": table["protocol"]}
            entries += [{**about, "metric": metric, "value": value} for metric, value in figures.items()]
    return entries
