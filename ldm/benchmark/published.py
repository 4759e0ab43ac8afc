"""Compare measured values with published ones: means over clips and seeds, differences, tolerances."""

import statistics
from collections.abc import Mapping, Sequence


def mean_of(rows: Sequence[Mapping]) -> tuple[float | None, float | None, str | None]:
    """Return the mean over clips and seeds, the standard deviation over seeds, and the reason why there is no mean.

    There is no mean if a clip has no value, since the mean of the other clips would not be comparable.
    """
    if missing := next((row for row in rows if row["value"] is None), None):
        every = all(row["reason"] == missing["reason"] for row in rows)
        return None, None, missing["reason"] if every else f"{missing['reason']} in clip {missing['clip']}"
    seeds = {row["seed"]: [r["value"] for r in rows if r["seed"] == row["seed"]] for row in rows}
    means = [statistics.fmean(values) for values in seeds.values()]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else None, None


def compared_with(results: Mapping, table: Mapping | None, same: bool) -> list[dict]:
    """Return one line per method and metric: the measured value and the published one of the method in `table`.

    `same`: whether clips and input are those of the table; otherwise differences are not compared with tolerances.
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
    """Return the published values of a method, by name; a method that was restored here has that of its family."""
    names = {name.casefold(): name for name in table.get("methods") or {}}
    wanted = method["name"].casefold()
    if method["kind"] == "upscaled":
        wanted = (method.get("title") or "MGLD-VSR").casefold()
    return table["methods"][names[wanted]] if wanted in names else {}


def published_entries(tables: Mapping) -> list[dict]:
    """Return all published values of a test set as a list."""
    entries = []
    for table in tables.values():
        about = {"source": table["source"], "protocol": table["protocol"]}
        for method, figures in table["methods"].items():
            entries += [{"method": method, "metric": m, "value": v, **about} for m, v in figures.items()]
    return entries


def published_clips(tables: Mapping) -> list[dict]:
    """Return the per-clip values of MGLD-VSR that are published, as a list."""
    entries = []
    for table in tables.values():
        for clip, figures in (table.get("clips") or {}).items():
            about = {"method": "MGLD-VSR", "clip": clip, "source": table["source"], "protocol": table["protocol"]}
            entries += [{**about, "metric": metric, "value": value} for metric, value in figures.items()]
    return entries
