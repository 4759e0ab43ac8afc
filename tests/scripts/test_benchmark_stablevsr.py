"""The protocol of StableVSR's evaluation: its measures, its tables, a model of its family beside its own figures."""

import pytest
import torch

from ldm.nets.raft import RAFT
from ldm.weights import checkpoint
from scripts import benchmark
from tests.methods.pipeline_folder import make_pipeline
from tests.methods.toy import randomise
from tests.scripts import sets
from tests.scripts.sets import read, run

CLIPS = ("000", "011", "015", "020")
MEASURES = ["psnr", "ssim:windows=torchmetrics", "lpips", "dists", "musiq", "niqe:channels=gray", "clipiqa", "tlpips"]

WORDS = ["--dataset", "reds4", "--protocol", "stablevsr", "--no_report", "--max_clips", "1"]


@pytest.fixture(scope="module")
def reds4(tmp_path_factory):
    """A miniature REDS4 in its own layout, and results of a method."""
    root = tmp_path_factory.mktemp("reds4")
    sets.make_set(root / "REDS", gt="train_sharp", lq="train_sharp_bicubic/X4", clips=CLIPS)
    sets.make_results(root / "ours", clips=CLIPS)
    return root


def test_the_protocol_names_measures_and_tables():
    dataset = benchmark.read_set("reds4").measured_by("stablevsr")
    assert dataset.metrics == [*MEASURES, "tof_stablevsr"] and dataset.lq == ["bicubic_x4"]
    assert list(dataset.published) == ["stablevsr", "bicubic"]
    assert benchmark.read_set("vimeo90k").measured_by("stablevsr").published["stablevsr"]["methods"]["StableVSR"] == {
        "psnr": 31.97, "lpips": 0.070, "dists": 0.087, "tlpips": 3.89, "tof_stablevsr": 1.37,
    }  # fmt: skip
    for name in sorted(path.stem for path in benchmark.SETS.glob("*.yaml")):
        assert benchmark.read_set(name).measured_by("stablevsr").lq == ["bicubic_x4"], name
    with pytest.raises(ValueError, match="got protocol 'nothing', expected one of stablevsr"):
        dataset.measured_by("nothing")


def test_reds4_is_scored_beside_the_published_figures(reds4, tmp_path):
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "raft_large.safetensors", randomise(RAFT(), 1).state_dict())
    words = [*WORDS, "--root", reds4 / "REDS"]
    words += ["--results", f"StableVSR={reds4 / 'ours'}", "-o", tmp_path / "out", "--max_frames", "2"]
    words += ["--metrics", "psnr", "ssim:windows=torchmetrics", "tof_stablevsr"]
    assert run(*words, "--raft_large", tmp_path / "raft_large.safetensors") == 0
    found = read(tmp_path / "out")
    lines = {line["metric"]: line for line in found["table"]}
    assert found["dataset"]["lq"] == "bicubic_x4" and "train_sharp_bicubic/X4" in found["dataset"]["layout"]
    assert {metric: line["published"] for metric, line in lines.items()} == {
        "psnr": 27.97, "ssim:windows=torchmetrics": None, "tof_stablevsr": 2.68,
    }  # fmt: skip
    assert all(line["measured"] is not None for line in lines.values())
    assert "reflected borders" in lines["ssim:windows=torchmetrics"]["protocol"]
    assert "12 iterations, pictures and norms as released" in lines["tof_stablevsr"]["protocol"]


def test_a_model_is_held_against_the_figures_of_its_family(reds4, tmp_path):
    folder = make_pipeline(tmp_path / "pipeline")
    words = [*WORDS, "--root", reds4 / "REDS"]
    words += ["--weights", folder, "--flow", "dis", "--ddpm_steps", "1", "--device", "cpu", "-o", tmp_path / "out"]
    assert run(*words, "--max_frames", "2", "--metrics", "psnr", "tof_stablevsr", "--published", "bicubic") == 0
    found = read(tmp_path / "out")
    assert [method["name"] for method in found["methods"]] == ["stablevsr"]
    psnr, flow = found["table"]
    assert psnr["published"] == 27.928 and "Stream-DiffVSR" in psnr["source"]
    assert flow["measured"] is None and "raft_large_C_T_SKHT_V2" in flow["reason"]


def test_a_name_that_is_taken_by_results(reds4, tmp_path, capfd):
    folder = make_pipeline(tmp_path / "pipeline")
    words = [
        "--dataset",
        "reds4",
        "--root",
        reds4 / "REDS",
        "--weights",
        folder,
        "--flow",
        "dis",
        "-o",
        tmp_path / "out",
    ]
    assert run(*words, "--results", f"StableVSR={reds4 / 'ours'}") == 2
    assert "got the method name 'stablevsr'" in capfd.readouterr().err
