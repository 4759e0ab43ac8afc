"""benchmark.py with several models at once: the three methods on one clip, and their page."""

import pytest

from tests.methods import upscale_toy
from tests.methods.pipeline_folder import make_pipeline
from tests.scripts import sets, toy
from tests.scripts.sets import read, run

NAMES = ["mgld", "svsr", "uav"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`NAME=DIR` of a toy model of each method."""
    folder = tmp_path_factory.mktemp("models")
    toy.make_model(folder / "mgld")
    make_pipeline(folder / "svsr")
    upscale_toy.write_weights(folder / "uav")
    return [f"{name}={folder / name}" for name in NAMES]


@pytest.mark.slow  # restores a clip with three models
def test_three_methods_stand_side_by_side(tmp_path, models):
    root = sets.make_set(tmp_path / "root", lq=None, clips=("000",))
    words = ["--dataset", "own", "--root", root, "--models", *models, "-o", tmp_path / "out", "--lq", "bicubic_x4"]
    words += ["--metrics", "psnr", "e_warp", "--max_frames", "3", "--seeds", "1", "--bicubic", "--device", "cpu"]
    words += ["--flow", "dis", "--ddpm_steps", "1", "--inference_steps", "1", "--prompt", "a dog"]
    assert run(*words) == 0
    found = read(tmp_path / "out")
    assert [method["name"] for method in found["methods"]] == ["bicubic", *NAMES]
    targets = [method["settings"]["method"]["target"] for method in found["methods"][1:]]
    assert [target.rpartition(".")[2] for target in targets] == ["MGLD", "StableVSR", "UpscaleAVideo"]
    sampling = [method["settings"]["method"]["params"]["sampling"]["params"] for method in found["methods"][1:]]
    assert [each["steps"] for each in sampling] == [1, 1, 1]
    assert found["methods"][3]["settings"]["method"]["params"]["words"]["params"]["prompt"] == "a dog"
    values = {row["method"]: row["value"] for row in found["rows"] if row["metric"] == "psnr"}
    assert len(set(values.values())) == 4 and None not in values.values()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for name in NAMES:
        for part in ("detail of 000:", "temporal profile:", "difference map of 000:"):
            assert f'alt="{part} {name}' in page
        assert f'alt="{name}, frame' in page and f"{name}: " in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--weights", "x"], "got --models and --weights, expected one of them"),
        (["--control_scale", "2"], "--control_scale: none of the models mgld, uav has such a setting"),
        (["bicubic=."], "expected a unique name: write NAME=DIR"),
        (["gone=nowhere"], "no such folder of weights"),
    ],
)
def test_models_that_do_not_fit_are_one_line(tmp_path, models, words, says, capfd):
    root = sets.make_set(tmp_path / "root", clips=("000",))
    extra = words if words[0].startswith("--") else []
    named = [model for model in models if not model.startswith("svsr")] + [w for w in words if not extra]
    assert run("--dataset", "own", "--root", root, "-o", tmp_path / "out", "--models", *named, *extra, *sets.FAST) == 2
    said = capfd.readouterr().err
    assert says in said and said.splitlines()[-1].startswith("benchmark.py: ")
