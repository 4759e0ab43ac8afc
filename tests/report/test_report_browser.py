"""The page of a benchmark in a browser: slider, choices, themes; skipped where none is installed."""

import numpy as np
import pytest

from ldm.report.page import report_of
from tests.scripts import browser, results

TINT = {"lq": (230, 40, 40), "ours": (40, 60, 230), "other": (40, 200, 60), "gt": (128, 128, 128)}
pytestmark = pytest.mark.slow  # starts a browser
STAGE, SLIDER = "#clip-0 .stage", "#clip-0 .stage input"


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


def test_the_page_is_dark_where_the_reader_wants_it_and_narrow(window, tmp_path):
    assert window.picture("h1").mean() > 180
    with browser.Browser(size=(420, 700), dark=True) as other:
        results.make_results(tmp_path / "run")
        other.open(report_of(tmp_path / "run"))
        assert other.picture("h1").mean() < 90
        wide = other.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, "a narrow window scrolls sideways"
