"""The values of the report: selection, order and decimals."""

import math
from collections.abc import Iterable, Mapping

ARROWS = {"higher": "\u2191", "lower": "\u2193"}
NONE = "\u2013"
WORST = 10  # frames


def number(value: float | None, digits: int, signed: bool = False) -> str:
    """Format a value with a typographic minus; a dash for None."""
    return NONE if value is None else f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "\u2212")


def digits_for(values: Iterable[float | None]) -> int:
    """Return the decimals for the values of a metric: four significant digits of the largest, 2 to 6 decimals."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if not largest:
        return 4
    return min(6, max(2, 3 - math.floor(math.log10(largest))))


def seeds_of(run: Mapping) -> list[int]:
    """Return all seeds of the methods."""
    return sorted({seed for method in run["methods"] for seed in method["seeds"] if seed is not None})


def set_differences(run: Mapping) -> list[str]:
    """Return lines on how the clips differ from the published set."""
    limits = (("max_clips", "clip", ""), ("max_frames", "frame", " a clip"))
    cut = [(run["dataset"]["cut"][key], what, each) for key, what, each in limits]
    words = [f"{most} {what}{'s' * (most != 1)}{each}" for most, what, each in cut if most]
    lines = [f"cut to at most {' and '.join(words)}"] if words else []
    return lines + (run["dataset"].get("odd") or [])


def metric_groups(run: Mapping) -> list[dict]:
    """Return `{metric, lines, digits, best, arrow}` of each metric; lines that are equal for all methods are merged."""
    lines, groups = {(line["metric"], line["method"]): line for line in run["table"]}, []
    for metric in run["metrics"]:
        group = [lines[metric["name"], m["name"]] for m in run["methods"] if (metric["name"], m["name"]) in lines]
        reasons = {line["reason"] if line["measured"] is line["published"] is None else None for line in group}
        if metric["of"] and len({line["measured"] for line in group}) == 1:  # the truth's own value
            group = [group[0] | {"method": "truth"}]
        elif len(group) > 1 and len(reasons) == 1 and reasons != {None}:
            group = [group[0] | {"method": "every method"}]
        known = [line["measured"] for line in group if line["measured"] is not None]
        best = (max if metric["better"] == "higher" else min)(known) if len(known) > 1 and not metric["of"] else None
        digits = digits_for(line[key] for line in group for key in ("measured", "published"))
        arrow = None if metric["of"] else ARROWS.get(metric["better"])
        groups.append({"metric": metric, "lines": group, "digits": digits, "best": best, "arrow": arrow})
    return groups


def clip_table(run: Mapping, anchors: Mapping[str, str]) -> dict:
    """Return `{metrics, clips: [{name, anchor, rows: [{method, cells}]}]}`: means over seeds, without empty metrics."""
    groups: dict = {}
    for row in run["rows"]:
        groups.setdefault((row["clip"], row["method"], row["metric"]), []).append(row)
    known = {row["metric"] for row in run["rows"] if row["value"] is not None or is_infinite(row)}
    metrics, clips = [metric for metric in run["metrics"] if metric["name"] in known], []
    digits = {m["name"]: digits_for(row["value"] for row in run["rows"] if row["metric"] == m["name"]) for m in metrics}
    for clip in (clip["name"] for clip in run["clips"]):
        methods = [
            m["name"] for m in run["methods"] if any((clip, m["name"], each["name"]) in groups for each in metrics)
        ]
        cells = {m: [cell(groups.get((clip, m, name), []), digits[name]) for name in digits] for m in methods}
        rows = [{"method": method, "cells": cells[method]} for method in methods]
        clips.append({"name": clip, "anchor": anchors[clip], "rows": rows})
    return {"metrics": metrics, "clips": clips}


def cell(rows: list[Mapping], digits: int) -> dict:
    """Return the mean over seeds, or a mark and the reason for a missing mean."""
    values = [row["value"] for row in rows if row["value"] is not None]
    if values and len(values) == len(rows):
        return {"text": number(sum(values) / len(values), digits), "reason": None}
    reason = next((row["reason"] for row in rows if row["reason"]), None)
    mark = "\u221e" if any(map(is_infinite, rows)) else "n/a" if reason else NONE
    return {"text": mark, "reason": reason}


def is_infinite(row: Mapping) -> bool:
    """Whether a value is infinite, such as the PSNR of equal frames."""
    return row["value"] is None and str(row["reason"]).startswith("inf")


def curve_of(run: Mapping, clip: str, metric: str, method: str) -> Mapping | None:
    """Return the curve of the first seed, or None."""
    wanted = {"clip": clip, "metric": metric, "method": method}
    return next((curve for curve in run["curves"] if wanted.items() <= curve.items()), None)


def ranking(run: Mapping) -> Mapping | None:
    """Return the metric that ranks frames: the first with a value per frame, or None."""
    known = {curve["metric"] for curve in run["curves"]}
    metrics = [metric for metric in run["metrics"] if metric["name"] in known and not metric["of"]]
    return min(metrics, key=lambda metric: metric["per"] != "frame", default=None)


def worst_frames(run: Mapping, method: str) -> list[dict]:
    """Return `{value, clip, number}` of the worst frames, the worst first."""
    metric, found = ranking(run), []
    for clip in run["clips"] if metric else ():
        if curve := curve_of(run, clip["name"], metric["name"], method):
            numbered = enumerate(curve["values"][: clip["frames"]], curve["first"])
            found += [{"value": v, "clip": clip["name"], "number": k} for k, v in numbered if v is not None]
    return sorted(found, key=lambda frame: frame["value"], reverse=bool(found) and metric["better"] == "lower")[:WORST]


def worst_section(run: Mapping, worst: list[dict], method: str, anchors: Mapping[str, str]) -> dict | None:
    """Return the data of the section on the worst frames; None without such frames."""
    if not worst:
        return None
    frames = [{"pictures": None, **frame, "anchor": anchors[frame["clip"]]} for frame in worst]
    digits = digits_for(frame["value"] for frame in worst)
    return {"frames": frames, "method": method, "metric": ranking(run), "digits": digits}
