"""The HTML report of a benchmark: its content, its links, and invalid results."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ldm.engine import provenance
from ldm.picture import busiest_box
from ldm.report import curves, figures, views
from ldm.report.page import report_of
from scripts import report
from tests.scripts import results

TINT = {"lq": (230, 40, 40), "ours": (40, 60, 230), "other": (40, 200, 60), "gt": (128, 128, 128)}


class Reader(HTMLParser):
    """Elements with their attributes, and the text of a page; fails for elements that are not closed."""

    VOID = {"meta", "img", "input"}

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.within = [], [], []
        self.feed(text)
        self.close()
        assert not self.within, f"not closed: {self.within}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.within.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.within and self.within.pop() == tag, f"{tag} closes {self.within[-3:]}"

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag, **attributes):
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [attrs for name, attrs in self.elements if name == tag and wanted.items() <= attrs.items()]


def read(folder):
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def pixels(uri):
    data = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    run = results.make_results(folder)
    assert report_of(folder) == folder / "report.html"
    return folder, run, read(folder)


def test_the_page_loads_no_other_file(made):
    folder, _, page = made
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r'"data:[^"]*"', '""', text))
    assert all(image["src"].startswith("data:image/webp;base64,") for image in page.all("img"))
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not page.all("link") and not [script for script in page.all("script") if "src" in script]


def test_ids_are_unique_and_links_have_targets(made):
    page = made[2]
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    links = [link["href"] for tag in ("a", "use") for link in page.all(tag)]
    assert links and {link.removeprefix("#") for link in links} <= set(names)
    assert all(image["alt"] for image in page.all("img"))


def test_the_table_shows_measured_and_published_values(made):
    text = " ".join(made[2].text)
    for shown in (
        "27.50 ± 0.02",
        "26.53",
        "+0.97",
        "0.20",
        "RGB, all pixels",
        "n/a: lpips is not installed",
        "A note.",
    ):
        assert shown in text, shown
    assert "S12; bicubic LR" in {cell.get("title") for cell in made[2].all("td")}
    assert len(made[2].all("td", class_="no")) == 2 and len(made[2].all("td", class_="yes")) == 2
    assert "Not the published set" not in text


def write(folder, run):
    """Write the page of a modified results.json."""
    (folder / "results.json").write_text(json.dumps(run))
    report_of(folder)
    return read(folder)


def test_a_cut_set_is_named(tmp_path):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=2)
    run["dataset"]["cut"] = {"max_clips": 1, "max_frames": 2}
    text = " ".join(write(tmp_path / "run", run).text)
    assert "Not the published set: cut to at most 1 clip and 2 frames a clip." in text
    run["dataset"]["odd"] = ["clips of another length"]
    assert "2 frames a clip; clips of another length." in " ".join(write(tmp_path / "run", run).text)
    own = " ".join(write(tmp_path / "run", run | {"published": []}).text)
    assert "Not the published set" not in own  # a user's own clips


def test_columns_of_published_values_need_published_values(tmp_path):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=2)
    assert {"Published", "Within"} <= set(write(tmp_path / "run", run).text)
    bare = [line | {"published": None, "difference": None, "within": None} for line in run["table"]]
    page = write(tmp_path / "run", run | {"table": bare})
    assert "Measured" in page.text and not {"Published", "Within"} & set(page.text)


def test_findings_of_an_ablation_are_shown(tmp_path):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=1)
    run["findings"] = [{"claim": "x: better", "measured": "+1 %", "holds": "yes"}]
    assert {"x: better", "+1 %", "Holds"} <= set(write(tmp_path / "run", run).text)


def test_worst_frames_follow_the_values(made):
    run = made[1]
    worst = figures.worst_frames(run, "ours")
    expected = [(30.0 - k / 2 - t, name) for k, name in enumerate(("000", "011")) for t in range(5)]
    assert [(frame["value"], frame["clip"]) for frame in worst] == sorted(expected)
    assert worst[0] == {"value": 25.5, "clip": "011", "number": 4}
    lower = run | {"metrics": [run["metrics"][0] | {"better": "lower"}, *run["metrics"][1:]]}
    assert figures.worst_frames(lower, "ours")[0]["value"] == 30.0


def test_worst_frames_show_the_result_and_the_truth(tmp_path):
    results.make_results(tmp_path / "run", clips=("a",), tint=TINT)
    report_of(tmp_path / "run", method="other")
    page = read(tmp_path / "run")
    shown = [image for image in page.all("img") if image["alt"] in ("other, frame 4", "truth, frame 4")]
    colours = {image["alt"].split(",")[0]: pixels(image["src"]).mean(axis=(0, 1)) for image in shown}
    assert np.abs(colours["other"] - TINT["other"]).max() < 6 and np.abs(colours["truth"] - TINT["gt"]).max() < 6
    assert len([image for image in page.all("img") if image["alt"].startswith("other, frame")]) == 5 + 1


def test_the_shown_pair_is_the_one_with_the_greatest_warping_error(made):
    run = made[1]
    assert views.selection_of(run, run["clips"][0], "ours", ())[:3] == (6, 3, 4)
    bare = run | {"curves": []}
    assert views.selection_of(bare, run["clips"][0], "ours", ())[:3] == (6, 3, 4)
    assert views.selection_of(bare, run["clips"][0] | {"frames": 1}, "ours", ())[:2] == (1, 0)


def test_a_profile_is_one_row_of_every_frame(made):
    folder, run, _ = made
    clip = run["clips"][1]
    renditions = views.renditions_of(run, clip, folder)
    assert [rendition.key for rendition in renditions] == ["input", "result-0", "result-1", "truth"]
    shown = views.views_of(renditions, views.Selection(6, 3, 2))
    left, top, width, height = shown.box
    frames = [np.roll(frame, 3, axis=1) for frame in results.toy.make_frames(6, *results.SIZE)]
    rows = np.stack([frame[top + height // 2] for frame in frames])
    assert np.array_equal(shown.profiles["truth"][:: len(shown.profiles["truth"]) // 6], rows)
    assert np.array_equal(shown.detail["truth"], frames[3][top : top + height, left : left + width])


def test_frames_are_cropped_to_the_scale_as_in_scoring(tmp_path):
    frames = results.toy.make_frames(1, 66, 98)
    path = results.write_clip(tmp_path / "gt", frames)
    known = {"sha256": provenance.digest(path), "folders": [tmp_path]}
    rendition = views.Rendition("truth", path, (96, 64), **known)
    (shown,) = rendition.frames(rendition.open(1), 0, 1)
    assert np.array_equal(shown, frames[0][:64, :96])
    with pytest.raises(ValueError, match="got frames of 98x66, expected 100x64"):
        next(views.Rendition("truth", path, (100, 64), **known).frames(rendition.open(1), 0, 1))


def test_pictures_need_a_hash_and_a_path_inside_the_folders(tmp_path):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=2)
    clip = run["clips"][0]
    outside = results.write_clip(tmp_path / "outside", results.toy.make_frames(2, *results.SIZE))
    (tmp_path / "run" / "link").symlink_to(outside)
    for change, expected in (
        ({"sha256": {**clip["sha256"], "lq": None}}, "holds no hash of it"),
        ({"sha256": {**clip["sha256"], "gt": "0" * 64}}, "has changed since it was scored"),
        ({"gt": "../outside", "sha256": {**clip["sha256"], "gt": provenance.digest(outside)}}, "outside the folders"),
        ({"gt": "link", "sha256": {**clip["sha256"], "gt": provenance.digest(outside)}}, "outside the folders"),
    ):
        page = write(tmp_path / "run", run | {"clips": [clip | change]})
        assert expected in " ".join(page.text) and not page.all("figure", class_="compare")


def test_difference_maps_follow_the_motion():
    still, moved = results.toy.make_frames(4, 64, 96)[::3]
    maps, errors, scale = views.difference_maps({"truth": (still, moved), "twice": (still, still)}, "truth")
    assert errors["truth"] < 0.1 * errors["twice"] and 0.1 <= scale <= 1
    assert np.median(maps["truth"][8:-8, 8:-8].sum(axis=2)) < np.median(maps["twice"][8:-8, 8:-8].sum(axis=2))


def test_the_detail_is_the_region_with_the_most_texture():
    frame = np.full((60, 90, 3), 90, np.uint8)
    frame[30:50, 60:80] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    assert busiest_box(frame, (30, 30))[:2] == pytest.approx((55, 25), abs=6)
    assert busiest_box(frame, (500, 300)) == (0, 0, 90, 60)


def test_pictures_are_shrunk_by_one_factor():
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    whole = views.inlined({"a": noise, "b": noise // 2}, 1e6)
    small = views.inlined({"a": noise, "b": noise // 2}, 60_000)
    assert pixels(whole["a"]).shape == noise.shape
    assert sum(map(len, small.values())) <= 60_000
    assert pixels(small["a"]).shape == pixels(small["b"]).shape < noise.shape


def test_the_size_of_a_page_is_limited(tmp_path):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=2)
    noise = np.random.default_rng(0)
    for key, scale in (("lq", 4), ("gt", 1)):
        shutil.rmtree(tmp_path / "run" / key)
        frames = [noise.integers(0, 255, (360 // scale, 480 // scale, 3), dtype=np.uint8) for _ in range(2)]
        run["clips"][0][key] = key
        results.write_clip(tmp_path / "run" / key, frames)
        run["clips"][0]["sha256"][key] = provenance.digest(tmp_path / "run" / key)
    run["clips"][0] |= {"width": 480, "height": 360, "results": {}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(run))
    sizes = []
    for megabytes in (0.3, 5):
        report_of(tmp_path / "run", megabytes=megabytes)
        sizes.append((tmp_path / "run" / "report.html").stat().st_size)
    assert sizes[0] < 300_000 < sizes[1]


def test_no_name_becomes_markup(tmp_path):
    odd = '<script>alert("x")</script>&\'$title'
    run = results.make_results(tmp_path / "run", clips=(odd,), frames=2)
    run["metrics"][0]["label"] = run["table"][0]["method"] = run["notes"][0] = odd
    run["methods"][0]["name"] = odd
    run["clips"][0]["results"] = {odd: run["clips"][0]["results"]["ours"]}
    run["clips"][0]["sha256"][f"{odd}/42"] = run["clips"][0]["sha256"]["ours/42"]
    for row in (*run["rows"], *run["curves"]):
        row["method"] = odd if row["method"] == "ours" else row["method"]
    (tmp_path / "run" / "results.json").write_text(json.dumps(run))
    report_of(tmp_path / "run")
    page = read(tmp_path / "run")
    assert len(page.all("script")) == 1 and odd in page.text


def test_an_unreadable_clip_is_named_and_the_others_are_shown(tmp_path):
    results.make_results(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "lq" / "1")
    max((tmp_path / "run" / "sr" / "ours" / "42" / "0").iterdir()).unlink()
    report_of(tmp_path / "run")
    page = read(tmp_path / "run")
    text = " ".join(page.text)
    assert "No pictures: " in text and "has changed since it was scored" in text and "no such file or folder" in text
    assert len(page.all("figure", class_="curves")) == 2 and not page.all("figure", class_="compare")


def test_a_clip_of_one_frame_has_no_difference_map(tmp_path):
    results.make_results(tmp_path / "run", clips=("a",), frames=1)
    report_of(tmp_path / "run")
    assert "Difference along the motion" not in " ".join(read(tmp_path / "run").text)


def test_curves_have_gaps_where_values_are_missing_and_colours_of_the_page():
    drawn = [curves.Curve("a", 0, [1.0, None, 2.0, 3.0], series=7), curves.Curve("t", 1, [1.0, 1.5], dashed=True)]
    chart = curves.chart_of("PSNR", drawn)
    assert chart["lines"][0]["path"] == "M62.0 192.0h0M360.7 113.0h0L510.0 34.0h0"
    assert drawn[0].colour == "var(--series-1)" and drawn[0].dash and drawn[1].colour == "var(--faint)"
    assert [text for _, text in chart["rows"]] == ["1.0", "1.5", "2.0", "2.5", "3.0"]
    assert [text for _, text in chart["columns"]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0011, 0.0019, ["0.0012", "0.0014", "0.0016", "0.0018"]),
        (-3, 98, ["0", "50"]),
        (-0.5, 0.4, ["\u22120.5", "0.0"]),
    ],
)
def test_ticks_are_round_numbers(low, high, texts):
    assert [text for _, text in curves.axis_ticks(low, high)] == texts


def test_curves_of_equal_values_and_of_one_frame():
    assert curves.chart_of("x", [curves.Curve("a", 3, [2.0])])["lines"][0]["path"] == "M62.0 113.0h0"
    assert curves.chart_of("x", [curves.Curve("a", 0, [0.0, 0.0])])["rows"]


def test_clips_have_columns_of_measured_metrics(made):
    assert {"PSNR (dB)", "E_warp", "28.00", "0.001200"} <= set(made[2].text) and made[2].all("a", href="#clip-1")
    run, anchors = made[1], {"000": "a", "011": "b"}
    table = figures.clip_table(run, anchors)
    assert [metric["name"] for metric in table["metrics"]] == ["psnr", "e_warp", "e_warp_truth"]
    run = run | {"rows": [row | {"value": None, "reason": "inf: equal to the truth"} for row in run["rows"]]}
    table = figures.clip_table(run, anchors)
    cells = [cell["text"] for clip in table["clips"] for row in clip["rows"] for cell in row["cells"]]
    assert cells == ["\u221e"] * 4 * len(run["metrics"])


@pytest.mark.parametrize(("value", "digits"), [(27.123, 2), (0.7, 4), (0.0012, 6), (1234.0, 2), (0.0, 4), (7.7, 3)])
def test_decimals_depend_on_the_size_of_the_values(value, digits):
    assert figures.digits_for([None, value, -value / 2]) == digits


BAD = {
    "no folder": (None, "cannot be read"),
    "no JSON": ("{", "not JSON"),
    "another file": ('{"format": "x"}', "not the results of a benchmark"),
    "a list": ("[]", "not the results of a benchmark"),
    "half": ('{"format": "mgld-vsr benchmark 1"}', "has no 'dataset'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_results_are_one_line(tmp_path, case, capsys):
    content, message = BAD[case]
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert report.main([str(tmp_path if content is not None else tmp_path / "none")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("report.py: ") and said.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_the_script_takes_a_method_and_a_size(made, capsys):
    assert report.main([str(made[0]), "--method", "unknown"]) == 2
    assert "expected one of ours, other" in capsys.readouterr().err
    assert report.main([str(made[0]), "--megabytes", "900"]) == 2
    assert "expected 0.5 to 100" in capsys.readouterr().err
    assert report.main([str(made[0]), "--method", "other"]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_results_with_values_of_another_type_are_refused(tmp_path, capsys):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=1)
    for key, value in (("clips", [3]), ("methods", [{}]), ("table", [{}]), ("dataset", None), ("clips", [])):
        (tmp_path / "run" / "results.json").write_text(json.dumps(run | {key: value}))
        assert report.main([str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
