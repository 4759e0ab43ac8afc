"""A foreign method, defined in tests/foreign.py, through every command: no file of the project knows it."""

import json

import pytest
import torch

from ldm import config, video
from ldm.engine.assemble import load_method
from ldm.methods.contract import Request, restore_clip
from ldm.weights import checkpoint
from scripts import benchmark, upscale
from tests import foreign
from tests.scripts import toy

FRAMES = 7


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 3, 1)
    checkpoint.save(folder / "soft.safetensors", {"weight": net.weight.detach().abs(), "bias": net.bias.detach()})
    config.save(foreign.CARD, folder / "model.yaml")
    return folder


@pytest.fixture
def words(tmp_path, weights):
    clip = toy.make_clip(tmp_path / "clip.mp4", FRAMES)
    shared = ["--weights", str(weights), "--trust", "tests.foreign", "--device", "cpu", "--save_every", "2"]
    return ["-i", str(clip), "--upscale", "2", *shared]


def test_it_upscales_and_is_recorded(tmp_path, words, capfd):
    output = tmp_path / "out.mp4"
    assert upscale.main([*words, "-o", str(output), "--memory", "9G", "--dec_w", "0.5"]) == 0
    record = json.loads((tmp_path / "out.mp4.json").read_text())
    assert record["frames"] == FRAMES and record["plan"] == {"rows": 64, "part_frames": 2}
    assert record["settings"]["method"]["params"]["gain"] == 0.5 and set(record["weights"]) == {"soft"}
    assert "softening" in record["seconds"] and "predicted peak" in capfd.readouterr().out
    assert video.probe(output).frames == FRAMES and video.read_clip(output).shape[-2:] == (48, 64)


def test_little_memory_takes_its_smaller_levers(tmp_path, words, monkeypatch):
    monkeypatch.setattr(foreign.Soften, "peak", lambda self, request, levers, costs: levers.rows * 10**10)
    assert upscale.main([*words, "-o", str(tmp_path / "out.mp4"), "--memory", "400G"]) == 0
    assert json.loads((tmp_path / "out.mp4.json").read_text())["plan"]["rows"] == 32
    assert upscale.main([*words, "-o", str(tmp_path / "other.mp4"), "--memory", "100G"]) == 2


def test_a_stopped_run_resumes_to_the_same_bytes(tmp_path, words, monkeypatch):
    assert upscale.main([*words, "-o", str(tmp_path / "undisturbed.mp4")]) == 0
    write, parts = video.write_part, []

    def stop(path, frames, *args, **options):
        parts.append(path)
        if len(parts) == 3:
            raise KeyboardInterrupt
        return write(path, frames, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(video, "write_part", stop)
        assert upscale.main([*words, "-o", str(tmp_path / "out.mp4")]) == 130
    assert (tmp_path / "out.mp4.work").is_dir()
    assert upscale.main([*words, "-o", str(tmp_path / "out.mp4")]) == 0
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "undisturbed.mp4").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--guidance", "none"], "--guidance: this model (of no known family) has no such setting; it has --dec_w"),
        (["method.params.gian=2"], "known is method.params.gain"),
        (["--preset", "released"], "this model has no presets"),
    ],
)
def test_what_it_lacks_is_refused_by_name(tmp_path, words, change, says, capfd):
    assert upscale.main([*words, "-o", str(tmp_path / "out.mp4"), *change]) == 2
    error = capfd.readouterr().err
    assert says in error and error.count("\n") == 1


def test_its_code_runs_only_where_it_is_trusted(tmp_path, words, capfd):
    trust = words.index("--trust")
    assert upscale.main([*words[:trust], *words[trust + 2 :], "-o", str(tmp_path / "out.mp4")]) == 2
    assert "--trust" in capfd.readouterr().err


def test_it_restores_in_python(weights):
    method = load_method(weights, trust=["tests.foreign"])
    sr = restore_clip(method, torch.rand(2, 3, 16, 20) * 255, Request((16, 20), 2, 2.0))
    assert sr.shape == (2, 3, 32, 40)


def test_the_benchmark_measures_it(tmp_path, weights):
    for name in ("a", "b"):
        toy.make_clip(tmp_path / "gt" / name, 3, size=(64, 80))
    words = ["--dataset", "own", "--root", str(tmp_path / "gt"), "--lq", "bicubic_x4", "--weights", str(weights)]
    words += ["--trust", "tests.foreign", "-o", str(tmp_path / "out"), "--metrics", "psnr", "--no_report"]
    assert benchmark.main([*words, "--device", "cpu"]) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(content["rows"]) == 2 and all(row["value"] > 0 for row in content["rows"])
    assert content["methods"][0]["settings"]["method"]["target"] == "tests.foreign.Soften"
