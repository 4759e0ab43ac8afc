"""Published figures of configs/benchmark: plausible, of a measure or known not to be, judged only where they can be."""

import re
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from ldm import config
from ldm.metrics.protocol import measures

ROOT = Path(__file__).parents[2]
SETS = sorted(path.stem for path in (ROOT / "configs" / "benchmark").glob("*.yaml"))
MADE_HERE = {"given", *(path.stem for path in (ROOT / "configs" / "degradations").glob("*.yaml"))}
NOT_MEASURED = {  # of another definition than any measure here, or without one
    "fastervqa", "pi", "dover_technical", "dover_percent", "e_warp_star", "e_warp_uav", "e_warp_daflow",
}  # fmt: skip
UNIT = (0.02, 1.0)
RANGES = {  # of any restored set: a figure outside has lost its point or its row
    "psnr": (12, 40), "ssim": UNIT, "lpips": UNIT, "dists": UNIT, "clipiqa": UNIT, "maniqa": UNIT, "dover": UNIT,
    "fastervqa": UNIT, "vmaf": (10, 100), "niqe": (1.5, 10), "pi": (1.5, 10), "nrqm": (3, 10), "ilniqe": (10, 50),
    "brisque": (5, 70), "musiq": (20, 80), "dover_technical": (3, 16), "dover_percent": (20, 100), "tlpips": (1, 40),
    "e_warp_quantvsr": (0.3, 30), "e_warp_star": (0.3, 30), "e_warp_daflow": (0.3, 30), "e_warp_uav": (0.03, 3),
    "tof_stablevsr": (1, 40),
}  # fmt: skip
FAMILY = ("dove", "infvsr", "rerun")  # tables on the same files, by the same script


@cache
def params(name):
    return config.plain(config.load(ROOT / "configs" / "benchmark" / f"{name}.yaml").benchmark.params)


def tables():
    """Set, table's name, table."""
    return [(name, key, table) for name in SETS for key, table in (params(name).get("published") or {}).items()]


def keys_of(table):
    return {key for figures in (*table["methods"].values(), *table.get("clips", {}).values()) for key in figures}


def test_a_table_says_what_it_is_and_every_figure_is_plausible():
    for place in tables():
        table = place[2]
        assert all(isinstance(table[word], str) and table[word].strip() for word in ("source", "protocol", "lq")), place
        assert table["methods"] and all(re.fullmatch(r"[\w.+-]+", method) for method in table["methods"])  # as NAME=DIR
        for figures in (*table["methods"].values(), *table.get("clips", {}).values()):
            for metric, value in figures.items():
                low, high = RANGES[metric.partition(":")[0]]
                assert low < value < high, (*place[:2], metric, value)


def test_every_figure_is_a_measure_or_known_not_to_be_one():
    for _, _, table in tables():
        measures([metric for metric in keys_of(table) if metric.partition(":")[0] not in NOT_MEASURED], count=1)


def test_only_what_can_be_compared_is_judged():
    """The LQ is found or made here, the measure is the published one, and the set takes it unasked."""
    for name, key, table in (one for one in tables() if one[2].get("tolerance")):
        assert table["lq"] in MADE_HERE, (name, key)
        protocols = params(name)["protocols"].values()
        taken = set(params(name)["metrics"]).union(*(protocol["metrics"] for protocol in protocols))
        assert set(table["tolerance"]) <= keys_of(table) & taken, (name, key)
        for metric, most in table["tolerance"].items():
            low, high = RANGES[metric.partition(":")[0]]
            assert 0 < most < (high - low) / 10, (name, key, metric)


@pytest.mark.parametrize("name", SETS)
def test_tables_on_the_same_files_agree(name):
    """All that print a figure of one method differ by no more than their tolerance."""
    published = params(name).get("published") or {}
    family = [table for key, table in published.items() if key in FAMILY and "dove" in published and table.get("scale")
              == published["dove"].get("scale")]  # fmt: skip
    for method, figures in (pair for table in family for pair in table["methods"].items()):
        for table in family:
            for metric in set(figures) & set(table["methods"].get(method, {})) & set(table["tolerance"]):
                most = table["tolerance"][metric]
                assert figures[metric] == pytest.approx(table["methods"][method][metric], abs=most), (method, metric)


def test_figures_by_clip_have_the_mean_of_the_table():
    table = params("udm10")["published"]["rerun"]
    for metric, mean in table["methods"]["MGLD-VSR"].items():
        assert fmean(clip[metric] for clip in table["clips"].values()) == pytest.approx(mean, abs=1.01e-4), metric
