"""Findings of an ablation: what changes are, when a claim holds, and what the file of rows must say."""

import pytest

from ldm.benchmark.ablation import Ablation, relative_changes, seed_means, verdict
from ldm.engine import jobs
from ldm.engine.restoring import model_of
from scripts import benchmark

METRICS = ("psnr", "ssim", "sharpness", "e_warp", "tof")


@pytest.fixture
def ablation():
    return benchmark.read_node(benchmark.SETS.parent / "ablation.yaml", "ablation")


def results(ablation, **changes):
    """Results of two seeds, equal in all rows but for `row_metric=[...]`."""
    rows = []
    for name in ablation.rows:
        for metric in METRICS:
            values = changes.get(f"{name}_{metric}", [1.0] if name == "bicubic" else [1.0, 1.0])
            seeds = [None] if len(values) == 1 else range(len(values))
            rows += [
                {"method": name, "metric": metric, "clip": "a", "seed": seed, "value": value}
                for seed, value in zip(seeds, values, strict=True)
            ]
    better = {"e_warp": "lower", "tof": "lower"}
    return {"rows": rows, "metrics": [{"name": m, "better": better.get(m, "higher")} for m in METRICS]}


def test_a_change_is_relative_or_absolute():
    assert relative_changes([0.6, 0.8], [1.0, 1.0]) == pytest.approx([-0.4, -0.2])
    assert relative_changes([24.0, 24.5], [25.0], absolute=True) == pytest.approx([-1.0, -0.5])


def test_a_verdict_needs_more_than_the_spread_over_seeds():
    assert verdict([0.30, 0.31], 0.25) == "yes" and verdict([0.20, 0.21], 0.25) == "no"
    assert verdict([0.20, 0.31], 0.25).startswith("undecided") and verdict([0.25], 0.25) == "no"
    assert verdict([]).startswith("undecided") and verdict(relative_changes([1.0], [0.0])).startswith("undecided")


def test_seeds_are_averaged_over_clips_and_a_missing_figure_leaves_none():
    rows = [
        {"method": "full", "metric": "psnr", "seed": seed, "value": value}
        for seed, value in ((1, 2.0), (2, 5.0), (1, 4.0), (2, 7.0))
    ]
    assert seed_means(rows, "full", "psnr") == [3.0, 6.0]
    assert seed_means([*rows, rows[0] | {"value": None}], "full", "psnr") == []


def test_findings_state_what_was_measured(ablation):
    found = ablation.findings(results(ablation, full_e_warp=[0.6, 0.8], full_sharpness=[1.5, 1.5]))
    found = {finding["claim"]: (finding["measured"], finding["holds"]) for finding in found}
    assert found["full method: sharper than bicubic"] == ("sharpness +50.0 ± 0.0 %", "yes")
    assert found["full method: steadier than frame by frame by 25 %"][0] == "E_warp -30.0 ± 14.1 %"
    assert found["temporal layers: steadier than frame by frame"][1] == "no"
    assert found["full method: less than 1.5 dB below bicubic"] == ("PSNR +0.00 ± 0.00 dB", "yes")


def test_a_claim_about_an_unknown_row_is_refused():
    claim = {"text": "", "metric": "psnr", "row": "a", "than": "c"}
    with pytest.raises(ValueError, match="got than 'c' in a claim"):
        Ablation(["psnr"], {"a": {"label": "a"}, "b": {"label": "b"}}, [claim])


def test_rows_share_networks_if_they_have_the_same_weights_and_settings(monkeypatch):
    """The student has weight files of its own, and another flow is another network."""
    monkeypatch.setattr(jobs, "build_networks", lambda settings, *args, **how: {"unet": object(), "text": 1})
    models = {
        name: model_of(overrides=words, device="cpu")
        for name, words in {
            "student": [],
            "teacher": ["method.params.sampling.params.initial=noised"],
            "steps": ["method.params.sampling.params.initial=noised", "method.params.sampling.params.steps=8"],
            "flow": ["method.params.sampling.params.initial=noised", "flow=raft"],
        }.items()
    }
    shared = jobs.share_networks(models, {"steps": {"text": "unet"}})
    unets = {name: model.networks["unet"] for name, model in shared.items()}
    assert unets["teacher"] is unets["steps"] and len({id(net) for net in unets.values()}) == 3
    assert shared["steps"].networks["text"] is unets["steps"] and shared["teacher"].networks["text"] == 1
