"""Measured figures beside published ones: means over clips and seeds, differences, tolerances."""

import statistics
from collections.abc import Mapping, Sequence


def mean_of(rows: Sequence[Mapping]) -> tuple[float | None, float | None, str | None]:
    """The mean over clips of each seed, then over seeds; the standard deviation over seeds; why there is no mean.

    A clip without a value leaves no mean: one over the other clips would not be comparable.
    """
    if missing := next((row for row in rows if row["value"] is None), None):
        every = all(row["reason"] == missing["reason"] for row in rows)
        return None, None, missing["reason"] if every else f"{missing['reason']} in clip {missing['clip']}"
    seeds = {row["seed"]: [r["value"] for r in rows if r["seed"] == row["seed"]] for row in rows}
    means = [statistics.fmean(values) for values in seeds.values()]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None, None


def compared_with(results: Mapping, table: Mapping | None, same: bool) -> list[dict]:
    """One line for each method and metric: the measured figure beside that of the method in `table`.

    `same`: whether clips and input are those of the table; only then is a difference held against its tolerance.
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
    """The figures of a method in a table, by its name; a method restored here is MGLD-VSR."""
    names = {name.casefold(): name for name in table.get("methods") or {}}
    wanted = "mgld-vsr" if method["kind"] == "upscaled" else method["name"].casefold()
    return table["methods"][names[wanted]] if wanted in names else {}


def published_entries(tables: Mapping) -> list[dict]:
    """All published figures of a set, in one list."""
    entries = []
    for table in tables.values():
        about = {"source": table["source"], "protocol": table["protocol"]}
        for method, figures in table["methods"].items():
            entries += [{"method": method, "metric": m, "value": v, **about} for m, v in figures.items()]
    return entries


def published_clips(tables: Mapping) -> list[dict]:
    """The figures of MGLD-VSR that are published clip by clip, in one list."""
    entries = []
    for table in tables.values():
        for clip, figures in (table.get("clips") or {}).items():
            about = {"method": "MGLD-VSR", "clip": clip, "source": table["source"], "protocol": table["protocol"]}
            entries += [{**about, "metric": metric, "value": value} for metric, value in figures.items()]
    return entries
