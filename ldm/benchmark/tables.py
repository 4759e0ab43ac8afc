"""The tables of a benchmark run, as Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from ldm.benchmark.published import mean_of

LABELS = {  # metric: heading and digits
    "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "sharpness": ("sharpness", 3), "e_warp": ("E_warp", 6),
    "tof": ("tOF, px", 3), "lpips": ("LPIPS", 4), "dists": ("DISTS", 4),
    "niqe": ("NIQE", 3), "brisque": ("BRISQUE", 3), "musiq": ("MUSIQ", 2), "clipiqa": ("CLIP-IQA", 4),
    "dover": ("DOVER", 4), "vmaf": ("VMAF", 2), "e_warp_quantvsr": ("E*_warp, x1000", 2), "maniqa": ("MANIQA", 4),
    "ilniqe": ("ILNIQE", 2), "nrqm": ("NRQM", 3), "fastervqa": ("FasterVQA", 4), "dover_technical": ("DOVER, x100", 3),
    "e_warp_star": ("E*_warp of STAR, x1000", 2), "e_warp_uav": ("E*_warp of Upscale-A-Video", 3),
    "e_warp_daflow": ("E*_warp of DA-Flow", 3), "dover_percent": ("DOVER, of 100", 2), "pi": ("PI", 3),
    "tof_stablevsr": ("tOF, RAFT x10", 3), "tlpips": ("tLPIPS, x1000", 3), "stlpips": ("ST-LPIPS", 4),
}  # fmt: skip
ARROWS = {"higher": "↑", "lower": "↓"}
CSV_FIELDS = ("method", "seed", "clip", "metric", "value", "reason")


def label(metric: str) -> str:
    """Return the heading of a metric, such as "PSNR, dB (channels=y)" for `psnr:channels=y`."""
    name, _, settings = metric.removesuffix("_truth").partition(":")
    words = LABELS.get(name, (name, 4))[0] + (f" ({settings})" if settings else "")
    return f"{words}, the truth's own" if metric.endswith("_truth") else words


def shown(value: float | None, metric: str, *, sign: bool = False) -> str:
    """Format a value with the decimals of its metric."""
    if value is None:
        return "-"
    digits = LABELS.get(metric.removesuffix("_truth").partition(":")[0], ("", 4))[1]
    return f"{value:{'+' if sign else ''}.{digits}f}"


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells are escaped."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *lines)]
    body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([body[0], f"|{'---|' * len(head)}", *body[1:]]) + "\n"


def main_cells(results: Mapping) -> tuple[list[str], list[list[str]]]:
    """Return the head and lines of the main table, by metric.

    Columns are the protocol, the method if there are several, the published value, the measured one, their difference
    and whether it is within tolerance; only the measured value if nothing is published.
    """
    several, published = len(results["methods"]) > 1, any(line["published"] is not None for line in results["table"])
    lines = []
    for metric in results["metrics"]:
        arrow = "" if metric["of"] else f" {ARROWS[metric['better']]}"
        first = [f"{label(metric['name'])}{arrow}", metric["protocol"] or "-"]
        for line in (line for line in results["table"] if line["metric"] == metric["name"]):
            figures = _figures(line) if published else _figures(line)[1:2]
            lines.append([*first, *([line["method"]] if several else []), *figures])
            first = ["", ""]
    figures = ["published", "measured", "difference", "within tolerance?"] if published else ["measured"]
    return ["metric", "protocol", *(["method"] if several else []), *figures], lines


def _figures(line: Mapping) -> list[str]:
    """Return the published value, the measured value, their difference, and whether it is within tolerance."""
    metric = line["metric"]
    within = {True: "yes", False: "no", None: "-"}[line["within"]]
    if line["within"] is not None:
        within += f" (± {line['tolerance']:g})"
    measured = line["reason"] or with_deviation(line["measured"], line["sd"], metric)
    return [shown(line["published"], metric), measured, shown(line["difference"], metric, sign=True), within]


def with_deviation(value: float | None, deviation: float | None, metric: str) -> str:
    """Format a mean and its standard deviation over seeds, if there are several."""
    return shown(value, metric) + (f" ± {shown(deviation, metric)}" if deviation is not None else "")


def clip_cells(results: Mapping, method: str) -> tuple[list[str], list[list[str]]]:
    """Return the head and one line per clip of a method (means over seeds), and the mean of all clips.

    Metrics without values are left out.
    """
    cells = {}
    for row in results["rows"]:
        if row["method"] == method:
            cells.setdefault((row["clip"], row["metric"]), []).append(row)
    present = {metric for (_, metric), rows in cells.items() if not all(map(is_missing, rows))}
    metrics = [metric["name"] for metric in results["metrics"] if metric["name"] in present]
    lines = []
    for clip in (clip["name"] for clip in results["clips"]):
        lines.append([clip, *(_cell(cells[clip, metric], metric) for metric in metrics)])
    means = {line["metric"]: line["measured"] for line in results["table"] if line["method"] == method}
    lines.append(["mean", *(shown(means[metric], metric) for metric in metrics)])
    return ["clip", *map(label, metrics)], lines


def is_missing(row: Mapping) -> bool:
    """Whether a value is missing for another reason than being infinite."""
    return row["value"] is None and not str(row["reason"]).startswith("inf")


def _cell(rows: Sequence[Mapping], metric: str) -> str:
    value, deviation, reason = mean_of(rows)
    return (reason or "").partition(" ")[0] if value is None else with_deviation(value, deviation, metric)


def paper_table(results: Mapping) -> str:
    """Return the methods side by side, with the best value of each metric in bold and the seconds where measured."""
    metrics = [metric for metric in results["metrics"] if not metric["of"]]
    table = {(line["method"], line["metric"]): line for line in results["table"]}
    names, labels, lines = [method["name"] for method in results["methods"]], results.get("labels") or {}, []
    seconds = {method["name"]: method.get("seconds_per_frame") for method in results["methods"]}
    timed = any(value is not None for value in seconds.values())
    for method in names:
        row = [labels.get(method, method)]
        for metric in metrics:
            values = [table[name, metric["name"]]["measured"] for name in names]
            known = [value for value in values if value is not None]
            best = (max if metric["better"] == "higher" else min)(known, default=None)
            line = table[method, metric["name"]]
            text = with_deviation(line["measured"], line["sd"], metric["name"])
            bold = line["measured"] is not None and line["measured"] == best and len(names) > 1
            row.append(f"**{text}**" if bold else text)
        row += ["-" if seconds[method] is None else f"{seconds[method]:.3g}"] if timed else []
        lines.append(row)
    head = ["method", *(f"{label(m['name'])} {ARROWS[m['better']]}" for m in metrics), *["s per frame"] * timed]
    return markdown(head, lines)


def findings_table(results: Mapping) -> str:
    """Return the claims of an ablation with what was measured and whether they hold."""
    return markdown(["claim", "measured", "holds"], [list(finding.values()) for finding in results["findings"]])


def _table_by(entries: Sequence[Mapping], what: str) -> str:
    """Return a table of published values with one line per "method" or "clip"."""
    metrics = list(dict.fromkeys(entry["metric"] for entry in entries))
    methods = list(dict.fromkeys(entry[what] for entry in entries))
    cells = {(entry[what], entry["metric"]): entry["value"] for entry in entries}
    lines = [[method, *(_printed(cells.get((method, m)), m) for m in metrics)] for method in methods]
    return markdown([what, *map(label, metrics)], lines)


def _printed(value: float | None, metric: str) -> str:
    return shown(value, metric) if value is None or metric.partition(":")[0] in LABELS else f"{value:g}"


def document(results: Mapping) -> str:
    """Return results.md: all tables, and everything that determines their values."""
    data = results["dataset"]
    parts = [f"# {data['title']}\n", f"`{results['command']}`\n", markdown(*main_cells(results))]
    parts += [f"- {note}" for note in results["notes"]]
    parts += ["\n## Methods side by side\n", paper_table(results)]
    if results.get("findings"):
        parts += ["\n## Findings\n", findings_table(results)]
    for method in results["methods"]:
        parts += [f"\n## By clip: {method['name']}\n", markdown(*clip_cells(results, method["name"]))]
    for source in dict.fromkeys(entry["source"] for entry in results["published"]):
        entries = [entry for entry in results["published"] if entry["source"] == source]
        parts += [f"\n## Published: {source}\n", f"{entries[0]['protocol']}\n", _table_by(entries, "method")]
    for source in dict.fromkeys(entry["source"] for entry in results["published_clips"]):
        entries = [entry for entry in results["published_clips"] if entry["source"] == source]
        parts += [f"\n## Published by clip: MGLD-VSR, {source}\n", _table_by(entries, "clip")]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts += ["\n## Made with\n", f"{versions}."]
    return "\n".join(parts) + "\n"


def csv_text(rows: Iterable[Mapping]) -> str:
    """Return all values, one per line."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: row[name] for name in CSV_FIELDS} for row in rows)
    return out.getvalue()
