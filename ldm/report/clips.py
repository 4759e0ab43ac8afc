"""A clip on the page of a report: slider, detail, profile, difference maps, curves."""

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from ldm.report.curves import COLOURS, Curve, drawn
from ldm.report.elements import element
from ldm.report.views import INPUT, TRUTH, Strand, Views, Wanted, inlined

SHARES = {"middle": 0.5, "detail": 0.2, "profiles": 0.15, "maps": 0.15}  # of what a clip may take


def strands_of(run: Mapping, clip: Mapping, folder: Path) -> list[Strand]:
    """Input, results and truth of a clip, in the order of the page. Raises ValueError where no result is named."""
    size, strands, scored = (clip["width"], clip["height"]), [], clip.get("sha256") or {}
    if clip["lq"]:
        strands.append(Strand(INPUT, folder / clip["lq"], size))
    for place, method in enumerate(run["methods"]):
        for seed, path in [*(clip["results"].get(method["name"]) or {}).items()][:1]:
            known = scored.get(f"{method['name']}/{seed}" if seed else method["name"])
            strands.append(Strand(f"result-{place}", folder / path, size, known))
    if clip["gt"]:
        strands.append(Strand(TRUTH, folder / clip["gt"], size, scored.get("gt")))
    if not strands:
        raise ValueError(f"{clip['name']}: results.json names no frames")
    return strands


def name_of(key: str, run: Mapping) -> str:
    """What a strand is called on the page."""
    words = {INPUT: "input", TRUTH: "truth"}
    return words.get(key) or run["methods"][int(key.removeprefix("result-"))]["name"]


def curve_of(run: Mapping, clip: str, metric: str, method: str) -> Mapping | None:
    """The curve of the first seed, None where there is none."""
    wanted = {"clip": clip, "metric": metric, "method": method}
    return next((curve for curve in run["curves"] if wanted.items() <= curve.items()), None)


def wanted_of(run: Mapping, clip: Mapping, method: str, worst: Iterable[int]) -> Wanted:
    """The middle frame, and the pair where the method's warping error is greatest."""
    frames = clip["frames"]
    pair = min(frames // 2 + 1, frames - 1)
    names = [metric["name"] for metric in run["metrics"] if metric["per"] == "pair" and not metric["of"]]
    names.sort(key=lambda name: not name.startswith("e_warp"))
    if names and (curve := curve_of(run, clip["name"], names[0], method)):
        known = [(value, curve["first"] + k) for k, value in enumerate(curve["values"]) if value is not None]
        pair = max((n for n in known if 1 <= n[1] < frames), default=(0, pair))[1]
    return Wanted(frames, frames // 2, pair, list(worst))


def curves_of(run: Mapping, clip: str, key: str) -> str:
    """The per-frame curves of a clip with their legend; '' where there are none."""
    places = {method["name"]: place for place, method in enumerate(run["methods"])}
    seeds = {method["name"]: method["seeds"][:1] for method in run["methods"]}
    owner = {metric["name"]: metric["of"] or metric["name"] for metric in run["metrics"]}
    charts: dict[str, list[Curve]] = {m["name"]: [] for m in run["metrics"] if not m["of"]}
    for curve in run["curves"]:
        name, method = curve["metric"], curve["method"]
        if curve["clip"] != clip or owner.get(name) not in charts:
            continue
        faint, own = curve["seed"] not in seeds[method], owner[name] != name
        if own and (faint or any(other.dashed for other in charts[owner[name]])):
            continue  # the truth's own value is the same for every method
        label = "truth's own" if own else method
        charts[owner[name]].append(Curve(label, curve["first"], curve["values"], places[method], faint, own))
    labels = {metric["name"]: metric["label"] for metric in run["metrics"]}
    charts = {labels[name]: curves for name, curves in charts.items() if curves}
    if not charts:
        return ""
    title = element("h4", "Frame by frame")
    try:
        picture = drawn(charts, key)
    except ImportError:
        return title + element(
            "p", "Curves need matplotlib: pip install -c constraints.txt matplotlib", class_="notice"
        )
    said = f"Curves over the frames of clip {clip}: {', '.join(charts)}"
    figure = element("figure", picture, class_="curves", role="img", aria_label=said)
    return title + legend(charts.values()) + figure


def legend(charts: Iterable[Iterable[Curve]]) -> str:
    entries = {}
    for curve in (curve for curves in charts for curve in curves):
        colour = "var(--faint)" if curve.dashed else f"var(--series-{curve.series % COLOURS})"
        style = f"border-color: {colour}" + ("; border-top-style: dashed" if curve.dashed else "")
        entries.setdefault(curve.label, element("li", element("i", style=style) + escape(curve.label)))
    return element("ul", "".join(entries.values()), class_="legend")


def pictures_of(run: Mapping, clip: Mapping, views: Views, most: float, method: str) -> str:
    """Slider between the input and a method, detail, profile and difference maps of a clip."""
    names = {key: name_of(key, run) for key in views.middle}
    uris = {
        part: inlined(pictures, most * share) for part, share in SHARES.items() if (pictures := getattr(views, part))
    }
    left, top, width, height = views.box
    wanted = views.wanted
    text = slider(clip, uris["middle"], names, wanted.middle, method)
    text += element("h4", "Detail")
    text += row_of(uris["detail"], names, f"detail of {clip['name']}", class_="pixels")
    text += element("small", f"{width}x{height} pixels of frame {wanted.middle}, from column {left} and row {top}.")
    text += profile(uris["profiles"], names, wanted, row=top + height // 2)
    if views.maps:
        captions = {key: f"{names[key]}, E_warp {1000 * views.errors[key]:.3f}/1000" for key in uris["maps"]}
        text += element("h4", "Difference along the motion")
        text += row_of(uris["maps"], captions, f"difference map of {clip['name']}")
        along = "the truth" if TRUTH in views.maps else names[[*names][-1]]
        what = f"Frame {wanted.pair} minus frame {wanted.pair - 1}, fetched along the motion of {along}"
        scale = f"black is equal, the brightest a difference of {255 * views.scale:.0f} in 255, grey cannot be followed"
        text += element("small", escape(f"{what}: {scale}."))
    return text


def slider(clip: Mapping, uris: Mapping[str, str], names: Mapping[str, str], frame: int, method: str) -> str:
    """The before/after slider: at first the input and a method."""
    keys = [*uris]
    left = keys[0]
    right = next((key for key in keys[1:] if names[key] == method and key != TRUTH), keys[-1])
    choices = []
    for side, chosen in (("Left", left), ("Right", right)):
        options = [element("option", escape(names[key]), value=key, selected=key == chosen) for key in keys]
        choices.append(element("label", f"{side} {element('select', ''.join(options))}"))
    text = element("div", " ".join(choices), class_="choices")
    images = [
        element(
            "img", src=uri, alt=f"{names[key]}, frame {frame} of {clip['name']}", data_key=key, draggable="false",
            class_={left: "left", right: "right"}.get(key), hidden=key not in (left, right),
        )
        for key, uri in uris.items()
    ]  # fmt: skip
    label = f"Divider between the left and the right picture of {clip['name']}"
    handle = element("input", type="range", min=0, max=100, value=50, step=1, aria_label=label)
    stage = "".join(images) + handle + element("span", class_="divider", aria_hidden="true")
    text += element("div", stage, class_="stage", style=f"--w: {clip['width']}; --h: {clip['height']}")
    size = f"{clip['width']}x{clip['height']}"
    caption = f"Frame {frame} of 0 to {clip['frames'] - 1}, {size}. Drag, touch, or use the arrow keys."
    return element("figure", text + element("figcaption", caption), class_="compare")


def row_of(uris: Mapping[str, str], captions: Mapping[str, str], about: str, **attributes) -> str:
    figures = (
        element("figure", element("img", src=uri, alt=f"{captions[key]}: {about}", **attributes)
                + element("figcaption", escape(captions[key])))
        for key, uri in uris.items()
    )  # fmt: skip
    return element("div", "".join(figures), class_="row")


def profile(uris: Mapping[str, str], names: Mapping[str, str], wanted: Wanted, row: int) -> str:
    span = wanted.span()
    figures = (
        element("figure", element("img", src=uri, alt=f"temporal profile of {names[key]}")
                + element("figcaption", escape(names[key])))
        for key, uri in uris.items()
    )  # fmt: skip
    text = element("h4", "One row over time")
    text += element("div", "".join(figures), class_="profiles", style=f"--frames: {len(span)}")
    what = f"Row {row} of frames {span.start} to {span.stop - 1}, time downward"
    return text + element("small", f"{what}: steady video draws smooth lines, flicker combs.")
