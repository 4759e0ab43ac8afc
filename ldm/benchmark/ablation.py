"""Ablations: rows of a benchmark, each a method with different settings, and claims that compare two rows."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ldm.benchmark.tables import label

BUILDABLE = ("Ablation",)
BICUBIC = "bicubic"  # a row without a model


@dataclass(frozen=True)
class Ablation:
    """An ablation study, described by a file such as configs/ablation.yaml.

    Args:
        metrics: names of metrics.
        rows: name -> {label, options, networks}: arguments of scripts/benchmark.py, and a map from a network to the
            network that replaces it.
        claims: {text, metric, row, than, least}: `row` is better than the row `than` by more than `least`, a fraction
            of the other's value, or dB for PSNR.

    Raises ValueError for a claim about an unknown metric or row.
    """

    metrics: Sequence[str]
    rows: Mapping[str, Mapping]
    claims: Sequence[Mapping] = ()

    def __post_init__(self):
        known = {"metric": set(self.metrics), "row": set(self.rows), "than": set(self.rows)}
        for claim in self.claims:
            for key, names in known.items():
                if claim.get(key) not in names:
                    raise ValueError(f"got {key} {claim.get(key)!r} in a claim, expected one of {sorted(names)}")

    @property
    def labels(self) -> dict[str, str]:
        """Labels of the rows by name."""
        return {name: row["label"] for name, row in self.rows.items()}

    def findings(self, results: Mapping) -> list[dict]:
        """Return `{claim, measured, holds}` for each claim."""
        better = {metric["name"]: metric["better"] for metric in results["metrics"]}
        return [self._finding(claim, results["rows"], better) for claim in self.claims]

    def _finding(self, claim: Mapping, rows: Sequence[Mapping], better: Mapping[str, str]) -> dict:
        metric, least = claim["metric"], claim.get("least", 0)
        one, other = (seed_means(rows, claim[key], metric) for key in ("row", "than"))
        changes = [] if not one or not other else relative_changes(one, other, absolute=metric == "psnr")
        sign = 1 if better.get(metric) == "higher" else -1
        factor, unit, digits = (1, " dB", 2) if metric == "psnr" else (100, " %", 1)
        measured = "no values"
        if changes:
            spread = f" ± {factor * statistics.stdev(changes):.{digits}f}" if len(changes) > 1 else ""
            change = f"{factor * statistics.fmean(changes):+.{digits}f}"
            measured = f"{label(metric).split(',')[0]} {change}{spread}{unit}"
        return {"claim": claim["text"], "measured": measured, "holds": verdict([sign * c for c in changes], least)}


def seed_means(rows: Sequence[Mapping], method: str, metric: str) -> list[float]:
    """Return the mean over clips for each seed; an empty list if a value is missing."""
    seeds: dict = {}
    for row in rows:
        if (row["method"], row["metric"]) == (method, metric):
            seeds.setdefault(row["seed"], []).append(row["value"])
    complete = all(value is not None for values in seeds.values() for value in values)
    return [statistics.fmean(values) for values in seeds.values()] if complete else []


def relative_changes(one: Sequence[float], other: Sequence[float], *, absolute: bool = False) -> list[float]:
    """Return `(a - b) / b` per seed, or `a - b`; a single value is compared with each. NaN if b is 0."""
    count = max(len(one), len(other))
    pairs = zip(*(list(values) * (count if len(values) == 1 else 1) for values in (one, other)), strict=True)
    return [(a - b) / (1 if absolute else b or math.nan) for a, b in pairs]


def verdict(gains: Sequence[float], least: float = 0.0) -> str:
    """Return "yes", "no", or the reason why the claim is undecided."""
    if not gains or any(map(math.isnan, gains)):
        return "undecided: no values to compare"
    margin = statistics.fmean(gains) - least
    if len(gains) > 1 and abs(margin) < statistics.stdev(gains):
        return "undecided: within the spread over seeds"
    return "yes" if margin > 0 else "no"
