"""Measures of other packages: their inputs, and the reasons that are given when they fail.

The packages are stand-ins, and the real ones with random weights where they are installed.
"""

import importlib
import importlib.metadata
import os
import socket
import sys
import urllib.error
import urllib.request
import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from ldm.metrics import learned
from ldm.metrics.protocol import measures
from ldm.metrics.scored_frame import Unavailable
from tests.metrics.pictures import VALUES, original


def grey(value):
    return np.full((8, 8, 3), value, np.uint8)


class Net:
    """Returns the mean difference of two inputs, or the mean of one; records its arguments."""

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
    """Fakes of all packages, and the networks they create."""
    made = []

    def maker(*names, **words):
        made.append(Net(**dict(zip(("name",), names, strict=False)), **words))
        return made[-1]

    stand_ins = {"lpips": "LPIPS", "DISTS_pytorch": "DISTS", "pyiqa": "create_metric"}
    for module, name in stand_ins.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: maker}))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.2.3")
    return made


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    """No model is loaded before or kept after, and the network is not used."""
    with monkeypatch.context() as patched:
        patched.setattr(learned, "_models", {})
        patched.setattr(learned, "hub_is_reachable", lambda: True)
        patched.delenv("HF_HUB_OFFLINE", raising=False)
        yield


def test_lpips_receives_its_network_and_range(packages):
    score = learned.lpips_score("vgg", "cpu")
    assert not packages, "no model is loaded before the first frame"
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


def test_a_model_is_kept_for_later_clips(packages):
    for _ in range(2):
        (measure,) = measures(["musiq"])
        measure.push(grey(10))
    assert len(packages) == 1


def test_a_missing_package_is_the_reason():
    name = "no-such-package-of-metrics"
    with pytest.raises(Unavailable, match=f"^{name} is not installed: pip install {name}$"):
        learned.version_of(name)


def pyiqa_that(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=make))


def test_unavailable_weights_are_the_reason_and_requested_once(packages, monkeypatch):
    asked = []

    def offline(*names, **words):
        asked.append(names)
        raise OSError("no route to host\nand more")

    pyiqa_that(monkeypatch, offline)
    for name in ("musiq", "musiq", "clipiqa"):
        (measure,) = measures([name])
        measure.push(grey(10))
        assert measure.missing.startswith("pyiqa failed: OSError: no route to host; it looks for its weights in ")
    assert asked == [("musiq",), ("clipiqa",)]


def test_a_network_without_an_answer_times_out(packages, monkeypatch):
    monkeypatch.setattr(learned, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        address = f"http://127.0.0.1:{server.getsockname()[1]}/net.pth"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        pyiqa_that(monkeypatch, lambda name, device: urllib.request.urlopen(address))
        (measure,) = measures(["musiq"])
        measure.push(grey(10))
    assert "timed out" in measure.missing and socket.getdefaulttimeout() is None


@pytest.mark.parametrize("answers", [True, False])
def test_the_client_of_an_unreachable_hub_is_set_offline(packages, monkeypatch, answers):
    monkeypatch.setattr(learned, "hub_is_reachable", lambda: answers)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    learned.pyiqa_score("musiq", "cpu")(grey(10))
    assert os.environ.get("HF_HUB_OFFLINE") == (None if answers else "1")


def test_a_torchvision_of_another_torch_is_the_reason(packages, monkeypatch):
    def load(module):
        if module == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return sys.modules[module]

    monkeypatch.setattr(importlib, "import_module", load)
    for name in ("lpips", "dists", "musiq"):
        (measure,) = measures([name])
        measure.push(grey(10), grey(20))
        assert measure.missing.startswith("torchvision does not import, take the torchvision build of your torch")


def test_output_of_packages_goes_to_stderr(packages, monkeypatch, capsys):
    def load(name, device):
        print("loading")
        warnings.warn("deprecated", UserWarning, stacklevel=1)
        return Net()

    pyiqa_that(monkeypatch, load)
    learned.pyiqa_score("musiq", "cpu")(grey(10))
    assert capsys.readouterr() == ("", "loading\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_frame_without_a_value_is_not_left_out_of_the_mean(packages, monkeypatch, value):
    pyiqa_that(monkeypatch, lambda name, device: lambda frame: torch.tensor(value if frame.mean() < 0.1 else 1.0))
    (measure,) = measures(["nrqm"])
    for level in (100, 0, 100):
        measure.push(grey(level))
    assert measure.missing == f"pyiqa gave {value} for a frame"
    assert np.isnan(measure.figures()["nrqm"])


def test_frames_that_a_model_rejects_are_the_reason(packages, monkeypatch):
    def small(*frames):
        raise RuntimeError("kernel size can't be greater than actual input size")

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=lambda name, device: small))
    (measure,) = measures(["clipiqa"])
    measure.push(grey(10))
    assert measure.missing.startswith("pyiqa failed: RuntimeError: kernel size")


@pytest.mark.filterwarnings("ignore")
def test_recorded_values_of_brisque():
    pytest.importorskip("brisque")
    score = learned.brisque_score()
    for name, values in VALUES["no_reference"].items():
        assert score(original(name)) == pytest.approx(values["brisque"], abs=1), name


# ---- the real packages with random weights, if they are installed


def real(name):
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name}: {error}")


def noise(seed, h=96, w=128):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def as_tensor(frame):
    return torch.from_numpy(frame).permute(2, 0, 1)[None] / 255


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("net", learned.NETS)
def test_lpips_by_its_package(monkeypatch, net):
    package, nets = real("lpips"), real("torchvision").models
    name, make = {
        "alex": ("alexnet", lambda: nets.AlexNet(num_classes=2).features),
        "vgg": ("vgg16", lambda: nets.vgg.make_layers(nets.vgg.cfgs["D"])),
        "squeeze": ("squeezenet1_1", lambda: nets.SqueezeNet("1_1").features),
    }[net]
    torch.manual_seed(0)
    trunk = make()
    monkeypatch.setattr(nets, name, lambda pretrained: SimpleNamespace(features=trunk))
    direct = package.LPIPS(net=net, verbose=False)
    (measure,) = measures([f"lpips:net={net}"])
    measure.push(noise(1), noise(2))
    assert measure.missing is None
    with torch.no_grad():
        wanted = float(direct(as_tensor(noise(1)) * 2 - 1, as_tensor(noise(2)) * 2 - 1))
    assert measure.figures()[measure.name] == pytest.approx(wanted, abs=1e-6) and wanted > 1e-4


@pytest.mark.filterwarnings("ignore")
def test_dists_by_its_package(monkeypatch):
    package, nets = real("DISTS_pytorch"), real("torchvision").models
    torch.manual_seed(0)
    trunk = nets.vgg.make_layers(nets.vgg.cfgs["D"])
    monkeypatch.setattr(nets, "vgg16", lambda pretrained: SimpleNamespace(features=trunk))
    direct = package.DISTS()
    (measure,) = measures(["dists"])
    measure.push(noise(1), noise(2))
    wanted = float(direct(as_tensor(noise(1)), as_tensor(noise(2))))
    assert measure.figures()["dists"] == pytest.approx(wanted, abs=1e-6) and wanted > 1e-4


@pytest.mark.filterwarnings("ignore")
def test_musiq_by_pyiqa(monkeypatch, tmp_path):
    package, arch = real("pyiqa"), real("pyiqa.archs.musiq_arch")

    def some_weights(net, *args):
        torch.manual_seed(0)
        for value in net.parameters():
            torch.nn.init.normal_(value, std=0.05)

    monkeypatch.setattr(arch, "load_pretrained_network", some_weights)
    cv2.imwrite(str(tmp_path / "frame.png"), noise(1)[..., ::-1])
    wanted = float(package.create_metric("musiq", device=torch.device("cpu"))(str(tmp_path / "frame.png")))
    (measure,) = measures(["musiq"])
    measure.push(noise(1))
    assert measure.missing is None
    assert measure.figures()["musiq"] == pytest.approx(wanted, abs=1e-6) and wanted != 0


@pytest.mark.filterwarnings("ignore")
def test_weights_that_lpips_lacks_are_named(monkeypatch, tmp_path):
    real("lpips"), real("torchvision")

    def unreachable(*args, **words):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    (measure,) = measures(["lpips"])
    measure.push(noise(1), noise(2))
    assert measure.missing.startswith("lpips failed: URLError: <urlopen error no network>; it looks for its weights")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "no partial file is left"
