"""The page of a benchmark: what it says, how it behaves in a browser, and what becomes of bad results."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ldm.report import clips, curves, elements, tables, views
from ldm.report.page import header, report_of, worst_frames
from scripts import report
from tests.scripts import browser, results

TINT = {"lq": (230, 40, 40), "ours": (40, 60, 230), "other": (40, 200, 60), "gt": (128, 128, 128)}
STAGE, SLIDER = "#clip-0 .stage", "#clip-0 .stage input"


class Reader(HTMLParser):
    """Elements with their attributes, and the text of a page; complains of elements that are not closed."""

    VOID = {"meta", "img", "input", "path", "use", "rect"}

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.within = [], [], []
        self.feed(text)
        self.close()
        assert not self.within, f"not closed: {self.within}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID or self.get_starttag_text().endswith(("path>", "use>", "rect>")):
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


def test_the_page_needs_nothing_else(made):
    folder, _, page = made
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r'"data:[^"]*"', '""', text))
    assert all(image["src"].startswith("data:image/webp;base64,") for image in page.all("img"))
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not page.all("link") and not [script for script in page.all("script") if "src" in script]


def test_names_on_the_page_are_unique_and_links_lead_somewhere(made):
    page = made[2]
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    links = [link["href"] for tag in ("a", "use") for link in page.all(tag)]
    assert links and {link.removeprefix("#") for link in links} <= set(names)
    assert all(image["alt"] for image in page.all("img"))


def test_the_table_says_what_was_measured_and_published(made):
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


def test_a_cut_set_is_named(tmp_path):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=2)
    run["dataset"]["cut"] = {"max_clips": 1, "max_frames": 2}
    text = header(run)
    assert "Not the published set: cut to at most 1 clip and 2 frames a clip." in text
    run["dataset"]["odd"] = ["clips of another length"]
    assert "2 frames a clip; clips of another length." in header(run)
    assert "notice" not in header(run | {"published": []})  # clips of one's own


def test_without_published_figures_there_are_no_columns_for_them(made):
    run = made[1]
    assert "Published" in tables.main_table(run) and "Within" in tables.main_table(run)
    bare = [line | {"published": None, "difference": None, "within": None} for line in run["table"]]
    text = tables.main_table(run | {"table": bare})
    assert "Measured" in text and "Published" not in text and "Within" not in text
    assert len({row.count("</td>") for row in text.split("<tr>")[2:]}) == 1


def test_worst_frames_are_those_of_the_values(made):
    run = made[1]
    worst = worst_frames(run, "ours")
    expected = [(30.0 - k / 2 - t, name) for k, name in enumerate(("000", "011")) for t in range(5)]
    assert [(value, name) for value, name, _ in worst] == sorted(expected)
    assert worst[0] == (25.5, "011", 4)
    run["metrics"][0]["better"] = "lower"
    assert worst_frames(run, "ours")[0][0] == 30.0
    run["metrics"][0]["better"] = "higher"


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
    assert clips.wanted_of(run, run["clips"][0], "ours", ())[:3] == (6, 3, 4)
    bare = run | {"curves": []}
    assert clips.wanted_of(bare, run["clips"][0], "ours", ())[:3] == (6, 3, 4)
    assert clips.wanted_of(bare, run["clips"][0] | {"frames": 1}, "ours", ())[:2] == (1, 0)


def test_a_profile_is_one_row_of_every_frame(made):
    folder, run, _ = made
    clip = run["clips"][1]
    strands = clips.strands_of(run, clip, folder)
    assert [strand.key for strand in strands] == ["input", "result-0", "result-1", "truth"]
    shown = views.views_of(strands, views.Wanted(6, 3, 2))
    left, top, width, height = shown.box
    frames = [np.roll(frame, 3, axis=1) for frame in results.toy.make_frames(6, *results.SIZE)]
    rows = np.stack([frame[top + height // 2] for frame in frames])
    assert np.array_equal(shown.profiles["truth"][:: len(shown.profiles["truth"]) // 6], rows)
    assert np.array_equal(shown.detail["truth"], frames[3][top : top + height, left : left + width])


def test_what_is_too_much_for_the_scale_is_left_out_as_in_scoring(tmp_path):
    frames = results.toy.make_frames(1, 66, 98)
    path = results.write_clip(tmp_path / "gt", frames)
    strand = views.Strand("truth", path, (96, 64))
    (shown,) = strand.frames(strand.open(1), 0, 1)
    assert np.array_equal(shown, frames[0][:64, :96])
    with pytest.raises(ValueError, match="got frames of 98x66, expected 100x64"):
        next(views.Strand("truth", path, (100, 64)).frames(strand.open(1), 0, 1))


def test_difference_maps_follow_the_motion():
    still, moved = results.toy.make_frames(4, 64, 96)[::3]
    maps, errors, scale = views.difference_maps({"truth": (still, moved), "twice": (still, still)}, "truth")
    assert errors["truth"] < 0.1 * errors["twice"] and 0.1 <= scale <= 1
    assert np.median(maps["truth"][8:-8, 8:-8].sum(axis=2)) < np.median(maps["twice"][8:-8, 8:-8].sum(axis=2))


def test_a_region_of_detail_is_where_the_texture_is():
    frame = np.full((60, 90, 3), 90, np.uint8)
    frame[30:50, 60:80] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    assert views.busiest_box(frame, (30, 30))[:2] == pytest.approx((55, 25), abs=6)
    assert views.busiest_box(frame, (500, 300)) == (0, 0, 90, 60)


def test_pictures_shrink_together_to_their_share():
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    whole = views.inlined({"a": noise, "b": noise // 2}, 1e6)
    small = views.inlined({"a": noise, "b": noise // 2}, 60_000)
    assert pixels(whole["a"]).shape == noise.shape
    assert sum(map(len, small.values())) <= 60_000
    assert pixels(small["a"]).shape == pixels(small["b"]).shape < noise.shape


def test_a_page_keeps_to_its_size(tmp_path):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=2)
    noise = np.random.default_rng(0)
    for key, scale in (("lq", 4), ("gt", 1)):
        shutil.rmtree(tmp_path / "run" / key)
        frames = [noise.integers(0, 255, (360 // scale, 480 // scale, 3), dtype=np.uint8) for _ in range(2)]
        run["clips"][0][key] = key
        results.write_clip(tmp_path / "run" / key, frames)
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
    for row in (*run["rows"], *run["curves"]):
        row["method"] = odd if row["method"] == "ours" else row["method"]
    (tmp_path / "run" / "results.json").write_text(json.dumps(run))
    report_of(tmp_path / "run")
    page = read(tmp_path / "run")
    assert len(page.all("script")) == 1 and odd in page.text


def test_a_clip_that_cannot_be_read_is_named_and_the_rest_is_there(tmp_path):
    results.make_results(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "lq" / "1")
    max((tmp_path / "run" / "sr" / "ours" / "42" / "0").iterdir()).unlink()
    report_of(tmp_path / "run")
    page = read(tmp_path / "run")
    text = " ".join(page.text)
    assert "No pictures: " in text and "has 5 frames, expected 6" in text and "no such file or folder" in text
    assert len(page.all("figure", class_="curves")) == 2 and not page.all("figure", class_="compare")


def test_without_matplotlib_the_page_says_what_is_missing(tmp_path, monkeypatch):
    results.make_results(tmp_path / "run", clips=("a",), frames=1)
    monkeypatch.setattr(clips, "drawn", lambda charts, key: (_ for _ in ()).throw(ImportError("matplotlib")))
    report_of(tmp_path / "run")
    text = " ".join(read(tmp_path / "run").text)
    assert "Curves need matplotlib" in text and "Difference along the motion" not in text


def test_curves_take_their_colours_from_the_page():
    drawn = [curves.Curve("a", 0, [1.0, None, 2.0]), curves.Curve("t", 1, [1.0, 1.5], dashed=True)]
    text = curves.drawn({"PSNR": drawn, "SSIM": drawn[:1], "tOF": drawn[:1]}, "k")
    assert "var(--series-0)" in text and "var(--faint)" in text and "currentColor" in text
    assert not re.search(r"#0[123]0\d0\d", text) and "<metadata" not in text and "http" not in text
    assert text == curves.drawn({"PSNR": drawn, "SSIM": drawn[:1], "tOF": drawn[:1]}, "k")


def test_clips_have_columns_for_what_was_measured(made):
    anchors = {"000": "a", "011": "b"}
    page = Reader(tables.clip_table(made[1], anchors))
    assert {"PSNR (dB)", "E_warp", "28.00", "0.001200"} <= set(page.text) and "LPIPS" not in page.text
    run = made[1] | {"rows": [row | {"value": None, "reason": "inf: equal to the truth"} for row in made[1]["rows"]]}
    page = Reader(tables.clip_table(run, anchors))
    assert page.text.count("\u221e") == 4 * len(run["metrics"]) and page.all("a", href="#b")


@pytest.mark.parametrize(("value", "digits"), [(27.123, 2), (0.7, 4), (0.0012, 6), (1234.0, 2), (0.0, 4), (7.7, 3)])
def test_decimals_suit_the_size_of_the_values(value, digits):
    assert elements.digits_for([None, value, -value / 2]) == digits


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
    assert report.main([str(made[0]), "--method", "nobody"]) == 2
    assert "expected one of ours, other" in capsys.readouterr().err
    assert report.main([str(made[0]), "--megabytes", "900"]) == 2
    assert "expected 0.5 to 100" in capsys.readouterr().err
    assert report.main([str(made[0]), "--method", "other"]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_results_with_parts_of_another_kind_are_refused(tmp_path, capsys):
    run = results.make_results(tmp_path / "run", clips=("a",), frames=1)
    for key, value in (("clips", [3]), ("methods", [{}]), ("table", [{}]), ("dataset", None), ("clips", [])):
        (tmp_path / "run" / "results.json").write_text(json.dumps(run | {key: value}))
        assert report.main([str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    if browser.installed() is None:
        pytest.skip(browser.MISSING)
    folder = tmp_path_factory.mktemp("page") / "run"
    results.make_results(folder, clips=("000",), tint=TINT)
    report_of(folder)
    with browser.Browser() as opened:
        opened.open(folder / "report.html")
        yield opened


def seam(window):
    """Where the divider stands and where the picture changes colour, as parts of the stage's width."""
    left, _, width, _ = window.box(STAGE)
    handle = window.run(
        "const r = document.querySelector('#clip-0 .divider').getBoundingClientRect(); return r.left + 1"
    )
    line = window.picture(STAGE)[10].astype(int)
    right = np.abs(line - np.array(TINT["ours"])).max(axis=1) < 30
    first = np.abs(line - np.array(TINT["lq"])).max(axis=1) < 30
    edge = (np.flatnonzero(right).min() if right.any() else len(line)) / len(line)
    assert first[: max(int(edge * len(line)) - 5, 0)].all() and (right | first).mean() > 0.97
    return (handle - left) / width, edge


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_the_divider_follows_the_pointer(window, kind):
    left, top, width, height = window.box(STAGE)
    middle = top + height / 2
    for start, end in ((0.5, 0.25), (0.3, 0.8), (0.8, 1.7)):
        window.drag((left + start * width, middle), (min(left + end * width, 995), middle), kind)
        expected = min((min(left + end * width, 995) - left) / width, 1)
        assert seam(window) == pytest.approx((expected, expected), abs=0.02)


def test_the_divider_follows_the_keys(window):
    window.press(SLIDER, "home")
    assert seam(window) == pytest.approx((0, 0), abs=0.02)
    window.press(SLIDER, *["right"] * 10)
    assert seam(window) == pytest.approx((0.1, 0.1), abs=0.02)
    window.press(SLIDER, "end", "left")
    assert seam(window) == pytest.approx((0.99, 0.99), abs=0.02)
    said = window.run("return document.querySelector(arguments[0]).getAttribute('aria-valuetext')", SLIDER)
    assert said == "input on the left 99 %, then ours"


def test_both_sides_can_be_chosen(window):
    window.press(SLIDER, "home", *["right"] * 50)
    choose = "const s = document.querySelectorAll('#clip-0 select')[arguments[0]]; s.value = arguments[1];" \
             "s.dispatchEvent(new Event('change'))"  # fmt: skip
    window.run(choose, 0, "truth")
    window.run(choose, 1, "result-1")
    line = window.picture(STAGE)[10].astype(int)
    width = len(line)
    assert np.abs(line[width // 4] - TINT["gt"]).max() < 30 and np.abs(line[3 * width // 4] - TINT["other"]).max() < 30
    window.run(choose, 0, "input")
    window.run(choose, 1, "result-0")


def test_the_page_loads_nothing_and_complains_of_nothing(window):
    loaded = window.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    broken = window.run("return [...document.images].filter(i => !(i.complete && i.naturalWidth)).length")
    assert broken == 0 and window.log() == []
    wide = window.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0


def test_the_page_is_dark_where_the_reader_wants_it_and_narrow(window, made):
    assert window.picture("h1").mean() > 180
    with browser.Browser(size=(420, 700), dark=True) as other:
        other.open(made[0] / "report.html")
        assert other.picture("h1").mean() < 90
        wide = other.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "a narrow window scrolls sideways"
