"""The arithmetic of clips: sums of calls, and the figures of the published size."""

import json

import pytest

from scripts import clip_flops

W = "+method.params.windows.params"


def totals(tmp_path, *words):
    out = tmp_path / "count.json"
    assert clip_flops.main([*words, "-o", str(out)]) == 0
    return json.loads(out.read_text())


def test_the_arithmetic_is_that_of_the_calls(tmp_path):
    """The toy's windows of 3 frames share one; without overlap there are 2/3 as many, however they alternate."""
    words = ["16x16", "--size", "toy", "--steps", "4", "2", "--frames", "3001"]
    usual, apart = totals(tmp_path, *words), totals(tmp_path, *words, f"{W}.frame_overlap=0", f"{W}.alternate=true")
    for stage, ratio in {"encode": 1, "structure": 2 / 3, "unet": 2 / 3, "decode": 1}.items():
        assert apart["4"]["stages"][stage] == pytest.approx(ratio * usual["4"]["stages"][stage], rel=2e-3)
    assert usual["4"]["stages"]["unet"] == 2 * usual["2"]["stages"]["unet"] > 0
    assert usual["4"]["total"] == pytest.approx(sum(usual["4"]["stages"].values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "most", "few"),
    [
        (["--preset", "released"], 610.3, 78.5),
        ([], 292.2, 60.5),
        ([f"{W}.frame_overlap=0", f"{W}.sharing_steps=null"], 275.8, 47.3),
        (["--preset", "overlapped"], 676.7, 86.4),
    ],
)
def test_the_figures_of_the_published_size(tmp_path, words, most, few):
    """docs/PERFORMANCE.md; the first row is the count of the released cuts."""
    figures = totals(tmp_path, "320x180", *words)
    assert (round(figures["50"]["total"], 1), round(figures["4"]["total"], 1)) == (most, few)
