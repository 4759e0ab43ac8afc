"""The page of a benchmark run: one HTML file that needs no network."""

import json
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from string import Template

from ldm.files import write_whole
from ldm.report.clips import curve_of, curves_of, name_of, pictures_of, strands_of, wanted_of
from ldm.report.elements import digits_for, element, number
from ldm.report.tables import clip_table, main_table, published_table
from ldm.report.views import INPUT, TRUTH, Views, inlined, views_of

FORMAT = "mgld-vsr benchmark 1"
TEMPLATE = Path(__file__).parent  # page.html, page.css, page.js
MEGABYTES = 6.0  # of the page
WORST = 10  # frames
KEYS = (
    "dataset",
    "methods",
    "metrics",
    "clips",
    "rows",
    "curves",
    "table",
    "published",
    "versions",
    "command",
    "notes",
)

Follow = Callable[[Iterable], Iterable]  # hands its items on, and shows how far it is


def report_of(folder: Path, *, method: str | None = None, megabytes: float = MEGABYTES, follow: Follow = iter) -> Path:
    """Write report.html beside the results.json of a folder, and return its path.

    `method`: whose worst frames are shown; by default the first that was upscaled, else the first. `follow` is handed
    the clips. Clips whose frames cannot be read are named on the page. Raises ValueError for a folder without good
    results, or an unknown method.
    """
    folder = Path(folder)
    run = read_results(folder / "results.json")
    try:
        page = page_of(run, folder, chosen_method(run, method), megabytes * 1e6, follow)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__} {error}"
        raise ValueError(f"{folder / 'results.json'}: not as expected ({what}); run benchmark.py again") from error
    write_whole(folder / "report.html", page.encode("utf-8"))
    return folder / "report.html"


def read_results(path: Path) -> dict:
    """The content of a results.json. Raises ValueError."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); name the folder that benchmark.py wrote"
        ) from None
    except ValueError:
        raise ValueError(f"{path}: not JSON; run benchmark.py again") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise ValueError(f"{path}: not the results of a benchmark, expected format {FORMAT!r}")
    if missing := [key for key in KEYS if key not in run]:
        raise ValueError(f"{path}: has no {missing[0]!r}; run benchmark.py again")
    if not run["methods"] or not run["clips"]:
        raise ValueError(f"{path}: has no {'methods' if not run['methods'] else 'clips'}, nothing to show")
    return run


def chosen_method(run: Mapping, name: str | None) -> str:
    names = [method["name"] for method in run["methods"]]
    if name is not None and name not in names:
        raise ValueError(f"got method {name!r}, expected one of {', '.join(names)}")
    return name or next((m["name"] for m in run["methods"] if m["kind"] == "upscaled"), names[0])


def page_of(run: Mapping, folder: Path, method: str, most: float, follow: Follow) -> str:
    """The page as text of about `most` characters at most."""
    anchors = {clip["name"]: f"clip-{place}" for place, clip in enumerate(run["clips"])}
    curves = {clip["name"]: curves_of(run, clip["name"], key=anchors[clip["name"]]) for clip in run["clips"]}
    worst = worst_frames(run, method)
    spare = max(most - sum(map(len, curves.values())) - 2e5, most / 4)
    share = spare * 0.85 / len(run["clips"])
    sections, thumbnails = [], {}
    for clip in follow(run["clips"]):
        numbers = [frame for _, name, frame in worst if name == clip["name"]]
        try:
            views = views_of(strands_of(run, clip, folder), wanted_of(run, clip, method, numbers))
            pictures = pictures_of(run, clip, views, share, method)
            taken = {number: thumbnail_of(views, number, run, method, spare * 0.15 / WORST) for number in numbers}
            thumbnails |= {(clip["name"], number): picture for number, picture in taken.items()}
        except (ValueError, OSError, FloatingPointError) as error:
            pictures = element("p", f"No pictures: {escape(str(error))}", class_="notice")
        title = element("h3", escape(clip["name"]))
        sections.append(
            element("section", title + pictures + curves[clip["name"]], class_="clip", id=anchors[clip["name"]])
        )
    parts = [
        header(run), main_table(run), notes(run), element("h2", "Each clip"), clip_table(run, anchors), *sections,
        worst_section(run, worst, thumbnails, anchors, method), making(run),
    ]  # fmt: skip
    title = f"{run['dataset']['title']}: benchmark of {', '.join(m['name'] for m in run['methods'])}"
    assets = {name: (TEMPLATE / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    fields = {"title": escape(title), "body": "\n".join(parts), "style": assets["css"], "script": assets["js"]}
    return Template(assets["html"]).substitute(fields)


def header(run: Mapping) -> str:
    data, methods = run["dataset"], run["methods"]
    seeds = sorted({seed for method in methods for seed in method["seeds"] if seed is not None})
    facts = [f"{data['clips']} clip{'s' * (data['clips'] != 1)}, {data['frames']} frames, scale {data['scale']}"]
    facts += [f"input: {data['degradation']}"] if data["degradation"] else []
    facts += [f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"] if seeds else []
    for method in methods:
        if method["seconds_per_frame"] is not None:
            memory = f", peak memory {method['peak_memory'] / 1e9:.2f} GB" if method["peak_memory"] else ""
            facts.append(f"{method['name']}: {method['seconds_per_frame']:.2f} s per frame{memory}")
    title = element("h1", f"{escape(data['title'])}: {escape(', '.join(method['name'] for method in methods))}")
    text = title + element("p", escape("; ".join(facts) + "."), class_="lead")
    limits = (("max_clips", "clip", ""), ("max_frames", "frame", " a clip"))
    cut = [f"{most} {what}{'s' * (most != 1)}{each}" for key, what, each in limits if (most := data["cut"][key])]
    reasons = [f"cut to at most {' and '.join(cut)}"] if cut else []
    reasons += data.get("odd") or []
    if reasons and run["published"]:
        line = f"Not the published set: {'; '.join(reasons)}. These figures do not compare with a paper's."
        text += element("p", escape(line), class_="notice")
    return text


def notes(run: Mapping) -> str:
    text = "".join(element("p", escape(note)) for note in run["notes"])
    if published := published_table(run):
        text += element("details", element("summary", "Published figures, with their sources") + published)
    return text


def ranking(run: Mapping) -> Mapping | None:
    """The metric that ranks frames: the first with values frame by frame."""
    known = {curve["metric"] for curve in run["curves"]}
    metrics = [metric for metric in run["metrics"] if metric["name"] in known and not metric["of"]]
    return min(metrics, key=lambda metric: metric["per"] != "frame", default=None)


def worst_frames(run: Mapping, method: str) -> list[tuple[float, str, int]]:
    """(value, clip, frame number), the worst first."""
    metric = ranking(run)
    if metric is None:
        return []
    found = []
    for clip in run["clips"]:
        if curve := curve_of(run, clip["name"], metric["name"], method):
            numbered = enumerate(curve["values"][: clip["frames"]], curve["first"])
            found += [(value, clip["name"], number) for number, value in numbered if value is not None]
    return sorted(found, key=lambda entry: entry[0], reverse=metric["better"] == "lower")[:WORST]


def thumbnail_of(views: Views, number: int, run: Mapping, method: str, most: float) -> str:
    """A worst frame: the result beside the truth, or the input where there is no truth."""
    frames = views.worst[number]
    place = next(place for place, other in enumerate(run["methods"]) if other["name"] == method)
    keys = [key for key in (f"result-{place}", TRUTH if TRUTH in frames else INPUT) if key in frames]
    uris = inlined({key: frames[key] for key in keys}, most)
    images = (element("img", src=uri, alt=f"{name_of(key, run)}, frame {number}") for key, uri in uris.items())
    captions = (element("small", escape(name_of(key, run))) for key in uris)
    return element("div", "".join([*images, *captions]), class_="pair")


def worst_section(run: Mapping, worst, thumbnails: Mapping, anchors: Mapping[str, str], method: str) -> str:
    if not worst:
        return ""
    metric = ranking(run)
    digits = digits_for(value for value, _, _ in worst)
    items = []
    for value, clip, frame in worst:
        link = element("a", escape(clip), href=f"#{anchors[clip]}")
        caption = element("p", f"{link}, frame {frame}: {element('strong', number(value, digits))}")
        items.append(element("li", caption + thumbnails.get((clip, frame), "")))
    title = element("h2", f"The worst {len(worst)} frames", id="worst")
    line = element("p", escape(f"{method}, by {metric['label']} ({metric['protocol']})."), class_="lead")
    return title + line + element("ol", "".join(items), class_="worst")


def making(run: Mapping) -> str:
    """What the figures were made with and of."""
    about = {key: run[key] for key in ("command", "versions", "dataset")}
    about["methods"] = run["methods"]
    text = element("pre", escape(json.dumps(about, indent=1)), tabindex="0")
    command = element("p", element("code", escape(run["command"])))
    return (
        element("h2", "How it was made")
        + command
        + element("details", element("summary", "Versions and settings") + text)
    )
