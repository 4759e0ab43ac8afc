"""Tables: means over clips and seeds, differences and tolerances, CSV and Markdown."""

import csv
import io

import pytest

from ldm.benchmark import published, tables

TABLE = {
    "source": "a paper", "protocol": "RGB", "lq": "given", "tolerance": {"psnr": 0.5},
    "methods": {"MGLD-VSR": {"psnr": 27.0, "ssim": 0.8}, "DOVE": {"psnr": 30.0}},
}  # fmt: skip


def rows(values, method="embedded", metric="psnr"):
    """Of `{(clip, seed): value}`; a word is a reason."""
    return [
        {"method": method, "clip": clip, "seed": seed, "metric": metric,
         "value": None if isinstance(value, str) else value, "reason": value if isinstance(value, str) else None}
        for (clip, seed), value in values.items()
    ]  # fmt: skip


def metric(name, better="higher", of=None):
    return {"name": name, "label": name, "protocol": f"{name}|p", "better": better, "per": "frame", "of": of}


def results(**more):
    """Two clips, two seeds: means 26 and 28."""
    content = {
        "methods": [{"name": "embedded", "kind": "upscaled"}], "metrics": [metric("psnr")], "notes": ["A note."],
        "rows": rows({("a", 1): 25.0, ("b", 1): 27.0, ("a", 2): 27.0, ("b", 2): 29.0}),
        "clips": [{"name": "a"}, {"name": "b"}], "published": published.published_entries({"x": TABLE}),
        "published_clips": [],
        "dataset": {"title": "T"}, "command": "c", "versions": {"python": "3"},
    }  # fmt: skip
    content |= more
    content["table"] = published.compared_with(content, TABLE, True)
    return content


def test_the_mean_is_over_clips_then_over_seeds_with_its_deviation():
    mean, deviation, reason = published.mean_of(results()["rows"])
    assert (mean, reason) == (27.0, None) and deviation == pytest.approx(2**0.5)
    assert published.mean_of(rows({("a", None): 3.0, ("b", None): 5.0})) == (4.0, None, None)


def test_a_clip_without_a_figure_leaves_none_for_all():
    assert published.mean_of(rows({("a", 1): 3.0, ("b", 1): "n/a (x)"})) == (None, None, "n/a (x) in clip b")
    assert published.mean_of(rows({("a", 1): "n/a (x)", ("b", 1): "n/a (x)"})) == (None, None, "n/a (x)")


@pytest.mark.parametrize(
    ("printed", "tolerance", "within"), [(27.4, 0.5, True), (27.6, 0.5, False), (27.6, None, None)]
)
def test_a_difference_is_within_its_tolerance_or_not(printed, tolerance, within):
    table = TABLE | {"methods": {"MGLD-VSR": {"psnr": printed}}, "tolerance": {"psnr": tolerance}}
    line = published.compared_with(results(), table, True)[0]
    assert line["difference"] == pytest.approx(27 - printed) and line["within"] is within
    assert line["source"] == "a paper" and line["published_protocol"] == "RGB"
    assert published.compared_with(results(), table, False)[0]["within"] is None  # other clips
    assert published.compared_with(results(), None, True)[0]["published"] is None


def test_results_of_others_are_compared_with_their_own_figures():
    one = results(methods=[{"name": "dove", "kind": "folder"}], rows=rows({("a", None): 30.1}, "dove"))
    assert one["table"][0]["published"] == 30.0 and one["table"][0]["within"] is True
    one = results(methods=[{"name": "mine", "kind": "folder"}], rows=rows({("a", None): 30.1}, "mine"))
    assert one["table"][0]["published"] is None and one["table"][0]["source"] is None


def test_the_document_has_every_table():
    text = tables.document(results())
    assert "| PSNR, dB ↑ | psnr\\|p | 27.00 | 27.00 ± 1.41 | +0.00 | yes (± 0.5) |" in text
    assert "| a | 26.00 ± 1.41 |" in text and "| mean | 27.00 |" in text and "- A note." in text
    assert "## Published: a paper" in text and "| DOVE | 30.00 | - |" in text


def test_the_best_of_several_methods_is_bold():
    two = results(
        methods=[{"name": "embedded", "kind": "upscaled"}, {"name": "other", "kind": "folder"}],
        metrics=[metric("psnr"), metric("e_warp", "lower"), metric("e_warp_truth", "lower", "e_warp")],
        rows=[
            *rows({("a", 1): 27.0}), *rows({("a", None): 26.0}, "other"),
            *rows({("a", 1): 0.5}, metric="e_warp"), *rows({("a", None): 0.25}, "other", "e_warp"),
            *rows({("a", 1): 0.1}, metric="e_warp_truth"), *rows({("a", None): 0.1}, "other", "e_warp_truth"),
        ],
    )  # fmt: skip
    text = tables.paper_table(two)
    assert "| embedded | **27.00** | 0.500000 |" in text and "| other | 26.00 | **0.250000** |" in text


def test_csv_has_a_line_for_every_figure():
    read = list(csv.DictReader(io.StringIO(tables.csv_text(rows({("a,b", 1): 3.25, ("c", 1): "n/a (x)"})))))
    assert [(line["clip"], line["value"], line["reason"]) for line in read] == [
        ("a,b", "3.25", ""),
        ("c", "", "n/a (x)"),
    ]


def test_names_of_metrics():
    assert tables.label("psnr:channels=y,crop=4") == "PSNR, dB (channels=y,crop=4)"
    assert tables.label("e_warp_truth") == "E_warp, the truth's own" and tables.label("unheard") == "unheard"


def test_without_published_figures_the_table_is_narrow():
    head, lines = tables.main_cells(results())
    assert head == ["metric", "protocol", "published", "measured", "difference", "within tolerance?"]
    content = results()
    content["methods"] = [{"name": "embedded", "kind": "folder"}, {"name": "other", "kind": "folder"}]
    content["rows"] += [row | {"method": "other"} for row in content["rows"]]
    content["table"] = published.compared_with(content, None, True)
    head, lines = tables.main_cells(content)
    assert head == ["metric", "protocol", "method", "measured"]
    assert [line[2:] for line in lines] == [["embedded", "27.00 ± 1.41"], ["other", "27.00 ± 1.41"]]
    assert lines[0][:2] == ["PSNR, dB ↑", "psnr|p"] and lines[1][:2] == ["", ""]


def test_metrics_that_are_lacking_have_no_column_by_clip():
    content, lost = results(), {(clip, seed): "n/a (x)" for clip in ("a", "b") for seed in (1, 2)}
    content["metrics"] = [metric("psnr"), metric("lpips", "lower")]
    content["rows"] += rows(lost, metric="lpips")
    content["table"] = published.compared_with(content, None, True)
    assert tables.clip_cells(content, "embedded")[0] == ["clip", "PSNR, dB"]
