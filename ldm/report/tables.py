"""The tables of a page."""

from collections.abc import Mapping, Sequence
from html import escape

from ldm.report.elements import NONE, column, digits_for, element, number, table

ARROWS = {"higher": ("\u2191", "higher is better"), "lower": ("\u2193", "lower is better")}


def heading(metric: Mapping) -> str:
    """A metric's name, which way is better, and how it was measured."""
    arrow, meaning = ARROWS.get(metric["better"], ("", ""))
    sign = f' <span title="{meaning}" aria-hidden="true">{arrow}</span><span class="aside">, {meaning}</span>'
    protocol = element("span", escape(metric["protocol"]), class_="protocol")
    return escape(metric["label"]) + (sign if arrow and not metric["of"] else "") + protocol


def main_table(run: Mapping) -> str:
    """metric, protocol | method | measured | published | difference | within tolerance?"""
    lines = {(line["metric"], line["method"]): line for line in run["table"]}
    rows, published = [], any(line["published"] is not None for line in run["table"])
    for metric in run["metrics"]:
        group = [lines[metric["name"], m["name"]] for m in run["methods"] if (metric["name"], m["name"]) in lines]
        if metric["of"] and len({line["measured"] for line in group}) == 1:  # the truth's own, whatever the method
            group = [group[0] | {"method": "truth"}]
        elif len(group) > 1 and len({bare_reason(line) for line in group}) == 1 and bare_reason(group[0]):
            group = [group[0] | {"method": "every method"}]
        digits = digits_for([line[key] for line in group for key in ("measured", "published")])
        best = best_of(metric, [line["measured"] for line in group])
        for place, line in enumerate(group):
            title = element("th", heading(metric), class_="metric", scope="rowgroup", rowspan=len(group))
            rows.append(element("tr", (title if place == 0 else "") + line_cells(line, digits, best, published)))
    head = [column("Metric", class_="text"), column("Method", class_="text")]
    head += [
        column(text) for text in ("Measured", "Published", "Difference", "Tolerance", "Within")[: 5 if published else 1]
    ]
    return table(head, rows, "Measured and published figures")


def bare_reason(line: Mapping) -> str | None:
    """Why there is no figure, in a line that has no published one either; else None."""
    return line["reason"] if line["measured"] is None and line["published"] is None else None


def best_of(metric: Mapping, values: Sequence[float | None]) -> float | None:
    """The value to stress, where several compete."""
    values = [value for value in values if value is not None]
    if len(values) < 2 or metric["of"] or metric["better"] not in ARROWS:
        return None
    return max(values) if metric["better"] == "higher" else min(values)


def line_cells(line: Mapping, digits: int, best: float | None, published: bool) -> str:
    """The cells of a method's line behind the metric's name; what is published and its verdict where there is any."""
    cells = [element("td", escape(line["method"]), class_="text")]
    if reason := bare_reason(line):
        return cells[0] + element("td", escape(reason), class_="none text", colspan=5 if published else 1)
    measured = number(line["measured"], digits)
    if line["sd"] is not None:
        measured += f" \u00b1 {number(line['sd'], digits)}"
    if line["measured"] is None:
        cells.append(element("td", escape(line["reason"] or NONE), class_="none"))
    else:
        cells.append(element("td", measured, class_="best" if line["measured"] == best else None))
    if not published:
        return "".join(cells)
    source = "; ".join(filter(None, (line["source"], line["published_protocol"])))
    cells.append(element("td", number(line["published"], digits), title=source or None))
    cells.append(element("td", number(line["difference"], digits, signed=True)))
    cells.append(element("td", number(line["tolerance"], digits)))
    word = {True: "yes", False: "no"}.get(line["within"])
    cells.append(element("td", word or NONE, class_=word))
    return "".join(cells)


def clip_table(run: Mapping, anchors: Mapping[str, str]) -> str:
    """One row per clip and method, means over seeds, of the metrics that have figures; clip names lead to `anchors`."""
    groups: dict = {}
    for row in run["rows"]:
        groups.setdefault((row["clip"], row["method"]), {}).setdefault(row["metric"], []).append(row)
    known = {row["metric"] for row in run["rows"] if row["value"] is not None or is_infinite(row)}
    metrics = [metric for metric in run["metrics"] if metric["name"] in known]
    names = [metric["name"] for metric in metrics]
    digits = {name: digits_for(r["value"] for r in run["rows"] if r["metric"] == name) for name in names}
    rows, several = [], len(run["methods"]) > 1
    for clip in run["clips"]:
        methods = [m["name"] for m in run["methods"] if (clip["name"], m["name"]) in groups]
        for place, method in enumerate(methods):
            link = element("a", escape(clip["name"]), href=f"#{anchors[clip['name']]}")
            cells = [element("th", link, class_="text", scope="rowgroup", rowspan=len(methods))] if place == 0 else []
            cells += [element("td", escape(method), class_="text")] if several else []
            cells += [mean_cell(groups[clip["name"], method].get(name, []), digits[name]) for name in names]
            rows.append(element("tr", "".join(cells)))
    head = [column("Clip", class_="text")] + [column("Method", class_="text")] * several
    return table(head + [column(metric["label"]) for metric in metrics], rows, "Figures of each clip")


def mean_cell(rows: Sequence[Mapping], digits: int) -> str:
    values = [row["value"] for row in rows if row["value"] is not None]
    if values and len(values) == len(rows):
        return element("td", number(sum(values) / len(values), digits))
    reason = next((row["reason"] for row in rows if row["reason"]), None)
    return element(
        "td", "\u221e" if any(map(is_infinite, rows)) else "n/a" if reason else NONE, class_="none", title=reason
    )


def is_infinite(row: Mapping) -> bool:
    """Whether a figure is missing because it is infinite: a PSNR of equal pictures."""
    return row["value"] is None and str(row["reason"]).startswith("inf")


def published_table(run: Mapping) -> str:
    """Every published figure of the data set, peers included; '' where there is none."""
    labels = {metric["name"]: metric["label"] for metric in run["metrics"]}
    rows = []
    for figure in run["published"]:
        texts = [figure["method"], labels.get(figure["metric"], figure["metric"])]
        cells = [element("td", escape(text), class_="text") for text in texts]
        cells.append(element("td", escape(f"{figure['value']:g}")))
        cells += [element("td", escape(figure[key] or ""), class_="text") for key in ("source", "protocol")]
        rows.append(element("tr", "".join(cells)))
    if not rows:
        return ""
    head = [column(text, class_="text") for text in ("Method", "Metric")] + [column("Figure")]
    head += [column(text, class_="text") for text in ("Source", "Protocol")]
    return table(head, rows, "Published figures")
