"""Render the report of a benchmark from page.html with jinja2: one HTML file that needs no network."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from ldm.files import read_json, write_atomically
from ldm.report import figures
from ldm.report.curves import curves_of
from ldm.report.views import pictures_of, renditions_of, selection_of, thumbnails_of, views_of

FORMAT = "mgld-vsr benchmark 1"
TEMPLATES = Path(__file__).parent  # page.html, page.css, page.js
MEGABYTES = 6.0  # of the page
KEYS = "dataset methods metrics clips rows curves table published versions command notes".split()
WRONG = (KeyError, TypeError, AttributeError, IndexError, TemplateError)  # raised for unexpected content

Bar = Callable[[Iterable], Iterable]  # yields its items, and shows the progress


def report_of(folder: Path, *, method: str | None = None, megabytes: float = MEGABYTES, bar: Bar = iter) -> Path:
    """Write report.html beside results.json in a folder, and return its path.

    `method`: the method whose worst frames are shown; default: the first that was upscaled, otherwise the first. Clips
    whose frames cannot be shown are listed on the page. Raises ValueError for invalid results or an unknown method.
    """
    folder = Path(folder)
    run = read_results(folder / "results.json")
    try:
        page = render(run, folder, chosen_method(run, method), megabytes * 1e6, bar)
    except WRONG as error:
        what = f"{type(error).__name__} {error}"
        raise ValueError(f"{folder / 'results.json'}: not as expected ({what}); run benchmark.py again") from error
    write_atomically(folder / "report.html", page.encode("utf-8"))
    return folder / "report.html"


def read_results(path: Path) -> dict:
    """Return the content of a results.json. Raises ValueError."""
    try:
        run = read_json(path)
    except OSError as error:
        line = f"{path}: cannot be read ({error.strerror}); name the folder that benchmark.py wrote"
        raise ValueError(line) from None
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
    """Return the given method, or the default one. Raises ValueError for an unknown name."""
    names = [method["name"] for method in run["methods"]]
    if name is not None and name not in names:
        raise ValueError(f"got method {name!r}, expected one of {', '.join(names)}")
    return name or next((m["name"] for m in run["methods"] if m["kind"] == "upscaled"), names[0])


def render(run: Mapping, folder: Path, method: str, most: float, bar: Bar) -> str:
    """Return the page as text of at most about `most` characters."""
    anchors = {clip["name"]: f"clip-{place}" for place, clip in enumerate(run["clips"])}
    curves = {clip["name"]: curves_of(run, clip["name"]) for clip in run["clips"]}
    worst = figures.worst_frames(run, method)
    paths = (line["path"] for each in curves.values() if each for chart in each["charts"] for line in chart["lines"])
    spare = max(most - sum(map(len, paths)) - 2e5, most / 4)
    share, clips = spare * 0.85 / len(run["clips"]), []
    for clip in bar(run["clips"]):
        entry = {"about": clip, "anchor": anchors[clip["name"]], "curves": curves[clip["name"]]}
        numbers = [frame["number"] for frame in worst if frame["clip"] == clip["name"]]
        try:
            views = views_of(renditions_of(run, clip, folder), selection_of(run, clip, method, numbers))
            entry["pictures"] = pictures_of(run, clip, views, share, method)
            for frame in (frame for frame in worst if frame["clip"] == clip["name"]):
                frame["pictures"] = thumbnails_of(views, frame["number"], run, method, spare * 0.15 / len(worst))
        except (ValueError, OSError, FloatingPointError) as error:
            entry |= {"pictures": None, "error": str(error)}
        clips.append(entry)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined)
    environment.filters["number"] = figures.number
    text = {name: Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js")}
    made = {key: run[key] for key in ("command", "versions", "dataset", "methods")}
    return environment.get_template("page.html").render(
        run={"findings": [], **run}, style=text["page.css"], script=text["page.js"], clips=clips,
        worst=figures.worst_section(run, worst, method, anchors), groups=figures.metric_groups(run),
        published=any(line["published"] is not None for line in run["table"]), odd=figures.set_differences(run),
        labels={metric["name"]: metric["label"] for metric in run["metrics"]}, seeds=figures.seeds_of(run),
        clip_table=figures.clip_table(run, anchors), made=json.dumps(made, indent=1),
    )  # fmt: skip
