"""Measures of other packages: what they are given, and what is said where they fail. The packages are stand-ins."""

import importlib.metadata
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from ldm.metrics import learned
from ldm.metrics.look import Unavailable
from ldm.metrics.protocol import measures

RECORDED = Path(__file__).parents[3] / "shared" / "golden" / "metrics"


def grey(value):
    return np.full((8, 8, 3), value, np.uint8)


class Net:
    """The mean difference of what it is given, or the mean; notes how it was made and called."""

    def __init__(self, **made):
        self.made, self.settings = made, []

    def to(self, device):
        self.made["device"] = device
        return self

    def eval(self):
        return self

    def __call__(self, one, other=None, **settings):
        assert one.shape[:2] == (1, 3) and one.dtype == torch.float32 and 0 <= one.min() and one.max() <= 1
        self.settings.append(settings)
        return (one - (0 if other is None else other)).mean().view(1, 1)


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for all packages, and the networks they make."""
    made = []

    def maker(*names, **words):
        made.append(Net(**dict(zip(("name",), names, strict=False)), **words))
        return made[-1]

    stand_ins = {"lpips": "LPIPS", "DISTS_pytorch": "DISTS", "pyiqa": "create_metric"}
    for module, name in stand_ins.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: maker}))
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.2.3")
    clear()
    yield made
    clear()


def clear():
    for loader in (learned._lpips, learned._dists, learned._pyiqa, learned._brisque):
        loader.cache_clear()


def test_lpips_is_asked_for_by_net_and_told_the_range(packages):
    score = learned.lpips_score("vgg", "cpu")
    assert not packages, "nothing loads before the first frame"
    assert score(grey(51), grey(0)) == pytest.approx(0.2)
    assert score(grey(102), grey(0)) == pytest.approx(0.4)
    assert [net.made for net in packages] == [{"net": "vgg", "verbose": False, "device": "cpu"}]
    assert packages[0].settings == [{"normalize": True}] * 2


def test_every_package_measures_frames(packages):
    names = ["lpips", "dists", "musiq", "clipiqa", "maniqa", "ilniqe", "nrqm", "brisque"]
    made = measures(names)
    for measure in made:
        measure.push(grey(153), grey(51))
    assert [measure.missing for measure in made] == [None] * len(names)
    got = {name: value for measure in made for name, value in measure.figures().items()}
    assert got == {name: pytest.approx(0.4 if name in ("lpips", "dists") else 0.6) for name in names}
    assert {net.made.get("name") for net in packages} == {
        None,
        "musiq",
        "clipiqa",
        "maniqa",
        "ilniqe",
        "nrqm",
        "brisque",
    }
    assert all("1.2.3" in measure.protocol for measure in made)


def test_tlpips_is_a_thousand_times_the_difference_of_changes(packages):
    (measure,) = measures(["tlpips"])
    for frame, truth in ((0, 0), (51, 102), (51, 102)):
        measure.push(grey(frame), grey(truth))
    assert measure.per_frame()[1:] == [pytest.approx(1000 * (0.4 - 0.2), rel=1e-5), 0]
    assert "alex" in measure.protocol and packages[0].made["net"] == "alex"


def test_a_model_is_kept_for_the_clips_that_follow(packages):
    for _ in range(2):
        (measure,) = measures(["musiq"])
        measure.push(grey(10))
    assert len(packages) == 1


def test_what_is_not_installed_is_said():
    with pytest.raises(Unavailable, match="^no-such-package-of-metrics is not installed$"):
        learned.version_of("no-such-package-of-metrics")


def test_weights_that_cannot_be_had_are_the_reason(packages, monkeypatch):
    def offline(*names, **words):
        raise OSError("no route to host\nand more")

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=offline))
    (measure,) = measures(["musiq"])
    measure.push(grey(10))
    assert measure.missing == "pyiqa failed: OSError: no route to host"


def test_frames_that_a_model_cannot_take_are_the_reason(packages, monkeypatch):
    def small(*frames):
        raise RuntimeError("kernel size can't be greater than actual input size")

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=lambda name, device: small))
    (measure,) = measures(["clipiqa"])
    measure.push(grey(10))
    assert measure.missing.startswith("pyiqa failed: RuntimeError: kernel size")


@pytest.mark.filterwarnings("ignore")
def test_recorded_values_of_brisque():
    pytest.importorskip("brisque")
    if not (RECORDED / "values.json").is_file():
        pytest.skip("the recorded pictures are not beside this repository")
    score = learned.brisque_score()
    for name, values in json.loads((RECORDED / "values.json").read_text())["no_reference"].items():
        frame = cv2.imread(str(RECORDED / "images" / name))[..., ::-1]
        assert score(frame) == pytest.approx(values["brisque"]["brisque_pkg(own model in the wheel)"], abs=1), name
