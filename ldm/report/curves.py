"""Per-frame curves of a clip, as lines and ticks of an SVG that page.html draws."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

COLOURS = 6  # series colours of the page's style; --series-0 ... in page.css
LEFT, RIGHT, TOP, BOTTOM = 62, 510, 34, 192  # of the axes of a chart, in units of its SVG (520 x 220)
DASHES = ("", "6 4", "2 3", "8 3 2 3")
TICKS = 4  # approximate number per axis


class Curve(NamedTuple):
    """Values of consecutive frames, None for frames without a value.

    Args:
        label: name in the legend.
        first: number of the first frame.
        values: one value per frame.
        series: index of the colour.
        faint: another seed of the same method.
        dashed: the value of the ground truth itself.
    """

    label: str
    first: int
    values: Sequence[float | None]
    series: int = 0
    faint: bool = False
    dashed: bool = False

    @property
    def colour(self) -> str:
        """Name of the colour in page.css."""
        return "var(--faint)" if self.dashed else f"var(--series-{self.series % COLOURS})"

    @property
    def dash(self) -> str:
        """Dash pattern; it distinguishes methods if there are more than colours."""
        return DASHES[1] if self.dashed else DASHES[self.series // COLOURS % len(DASHES)]


def curves_of(run: Mapping, clip: str) -> dict | None:
    """Return `{charts, legend}` of the curves of a clip; None without curves."""
    places = {method["name"]: place for place, method in enumerate(run["methods"])}
    seeds = {method["name"]: method["seeds"][:1] for method in run["methods"]}
    owner = {metric["name"]: metric["of"] or metric["name"] for metric in run["metrics"]}
    curves: dict[str, list[Curve]] = {metric["name"]: [] for metric in run["metrics"] if not metric["of"]}
    for curve in (curve for curve in run["curves"] if curve["clip"] == clip and owner.get(curve["metric"]) in curves):
        name, method, chart = curve["metric"], curve["method"], curves[owner[curve["metric"]]]
        faint, own = curve["seed"] not in seeds[method], owner[name] != name
        if own and (faint or any(other.dashed for other in chart)):
            continue  # the truth's own value is the same for every method
        chart.append(
            Curve("truth's own" if own else method, curve["first"], curve["values"], places[method], faint, own)
        )
    labels = {metric["name"]: metric["label"] for metric in run["metrics"]}
    charts = [chart_of(labels[name], chart) for name, chart in curves.items() if chart]
    legend = {curve.label: curve for chart in curves.values() for curve in chart}
    return {"charts": charts, "legend": [*legend.values()]} if charts else None


def chart_of(title: str, curves: Sequence[Curve]) -> dict:
    """Return `{title, lines, rows, columns}`: paths, and ticks as (position, text), in units of the SVG."""
    known = [value for curve in curves for value in curve.values if value is not None] or [0.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - abs(low) / 10 - 1e-9, high + abs(high) / 10 + 1e-9
    first = min(curve.first for curve in curves)
    last = max(max(curve.first + len(curve.values) - 1 for curve in curves), first + 1)

    def x(number: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (number - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    lines = []
    for curve in curves:
        points = [(x(curve.first + k), y(v)) if v is not None else None for k, v in enumerate(curve.values)]
        before = [None, *points][: len(points)]
        steps = [f"{'L' if old else 'M'}{at[0]} {at[1]}h0" for old, at in zip(before, points, strict=True) if at]
        lines.append({"path": "".join(steps), "curve": curve})
    rows = [(y(value), text) for value, text in axis_ticks(low, high)]
    columns = [(x(number), text) for number, text in axis_ticks(first, last, least=1)]
    return {"title": title, "lines": lines, "rows": rows, "columns": columns}


def axis_ticks(low: float, high: float, *, least: float = 0.0) -> list[tuple[float, str]]:
    """Return about four round values from `low` to `high`, at least `least` apart, and their texts."""
    rough = max((high - low) / TICKS, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(number * step, f"{number * step:.{digits}f}".replace("-", "\u2212")) for number in numbers]
