"""The curves of a report, frame by frame, as pictures that take their colours from the page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

COLOURS = 6  # series colours of the page's style; --series-0 ... in assets/report/page.css
INK, FAINT = "#010101", "#020202"  # stand for colours of the page
SERIES = tuple(f"#03030{number}" for number in range(COLOURS))
DASHES = ("solid", "dashed", "dotted", "dashdot")
WIDTH, TALL = 5.2, 2.3  # inches of one set of axes


class Curve(NamedTuple):
    """Values of consecutive frames from `first`; None where there is none. `series` picks the colour; a faint one is
    another seed of the same method, a dashed one the truth's own value."""

    label: str
    first: int
    values: Sequence[float | None]
    series: int = 0
    faint: bool = False
    dashed: bool = False


def drawn(charts: Mapping[str, Sequence[Curve]], key: str) -> str:
    """One set of axes per title, side by side in twos, as the text of an inline SVG; `key` keeps its names unique.

    Raises ImportError where matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    across = min(2, len(charts))
    down = math.ceil(len(charts) / across)
    style = {"svg.fonttype": "none", "svg.hashsalt": key, "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH * across, TALL * down), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(down, across, squeeze=False).ravel()
        for axes, (title, curves) in zip(grid[: len(charts)], charts.items(), strict=True):
            draw_axes(axes, title, curves)
        for axes in grid[len(charts) :]:
            axes.set_axis_off()
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return themed(text.getvalue(), key)


def draw_axes(axes, title: str, curves: Sequence[Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    for curve in curves:
        numbers = range(curve.first, curve.first + len(curve.values))
        values = [math.nan if value is None else value for value in curve.values]
        style = "dashed" if curve.dashed else DASHES[curve.series // COLOURS % len(DASHES)]
        axes.plot(
            numbers, values, label=curve.label, linestyle=style,
            color=FAINT if curve.dashed else SERIES[curve.series % COLOURS],
            linewidth=0.8 if curve.faint else 1.5, alpha=0.45 if curve.faint else 1,
            marker="." if len(values) < 4 else "",
        )  # fmt: skip
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.tick_params(colors=INK, labelsize=8, length=2.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
    axes.margins(x=0.01)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
    for offset in (axes.xaxis.get_offset_text(), axes.yaxis.get_offset_text()):
        offset.set_color(INK)


def themed(svg: str, key: str) -> str:
    """An SVG for a page: without its prologue, names made unique, the page's colours, as wide as its place."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{key}-", svg.replace("xlink:href", "href"))
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    for number, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--series-{number})")
    box = re.search(r'viewBox="[^"]*"', svg)[0]
    return re.sub(r"<svg[^>]*>", f'<svg {box} aria-hidden="true">', svg, count=1).strip()
