"""StableVSR through the commands, on a pipeline folder of toy networks with random weights."""

import json
import shutil

import pytest
import torch

from ldm import video
from ldm.engine.resume import folder_beside
from ldm.methods.stablevsr import levers
from ldm.methods.stablevsr.method import StableVSR
from ldm.training.control_folder import write_control_folder
from ldm.weights import checkpoint
from scripts import stablevsr_test, upscale
from tests.marks import mostly_slow
from tests.methods.pipeline_folder import BUILDERS, CONFIGS, make_pipeline
from tests.methods.toy import randomise
from tests.scripts import toy

FRAMES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("stablevsr") / "pipeline")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return toy.make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", FRAMES, size=(16, 20))


@pytest.fixture
def words(clip, folder):
    shared = ["--weights", str(folder), "--device", "cpu", "--flow", "dis", "--ddpm_steps", "2"]
    return ["-i", str(clip), *shared, "--save_every", "3"]


@pytest.fixture(scope="module")
def undisturbed(clip, folder, tmp_path_factory):
    """The bytes that the command makes when nothing stops it, and its record."""
    output = tmp_path_factory.mktemp("undisturbed") / "out.mp4"
    shared = ["--weights", str(folder), "--device", "cpu", "--flow", "dis", "--ddpm_steps", "2"]
    assert upscale.main(["-i", str(clip), *shared, "--save_every", "3", "-o", str(output)]) == 0
    assert video.read_clip(output).shape == (FRAMES, 3, 64, 80)
    return output.read_bytes(), json.loads(output.with_name("out.mp4.json").read_text())


def test_a_pipeline_folder_is_recognised_and_recorded(undisturbed):
    record = undisturbed[1]
    assert set(record["weights"]) == {"unet", "controlnet", "vae", "text_encoder"}
    method = record["settings"]["method"]["params"]
    assert method["scale_factor"] == CONFIGS["vae"]["scaling_factor"] and method["sampling"]["params"]["steps"] == 2
    assert method["sampling"]["params"]["scheduler"]["params"]["config"]["prediction_type"] == "v_prediction"
    expected = {"hold": levers.WHOLE, "tile": 96, "half_flows": False, "block": 0, "ahead": 0, "part_frames": 3}
    assert record["plan"] == expected
    assert {"sampling", "decoding", "flow"} <= record["seconds"].keys()


@mostly_slow("stop", [6, 2])
def test_a_stopped_run_resumes_to_the_same_bytes(undisturbed, words, tmp_path, monkeypatch, stop):
    """Stopped between two visits of a scene, before any frame is written."""
    output, visit, visits = tmp_path / "out.mp4", StableVSR.model, []

    def watched(self, chosen):
        model = visit(self, chosen)
        predict = model.predict

        def stopping(*args, **options):
            visits.append(1)
            if len(visits) > stop:
                raise KeyboardInterrupt
            return predict(*args, **options)

        model.predict = stopping
        return model

    monkeypatch.setattr("ldm.engine.jobs.measured_costs", lambda *_, **__: dict.fromkeys(COSTS, (0, 0)))
    with monkeypatch.context() as patched:
        patched.setattr(StableVSR, "model", watched)
        assert upscale.main([*words, "-o", str(output)]) == 130
    assert folder_beside(output).exists() and not output.exists()
    assert upscale.main([*words, "-o", str(output)]) == 0
    assert output.read_bytes() == undisturbed[0]


COSTS = ("sampling", "decoding", "flow", "once")


@pytest.mark.slow  # two runs of the command
def test_little_memory_takes_blocks(words, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("ldm.engine.jobs.measured_costs", lambda *_, **__: dict.fromkeys(COSTS, (0, 0)))
    monkeypatch.setattr(levers, "SHORTER", (2,))
    monkeypatch.setattr(StableVSR, "peak", lambda self, request, chosen, costs: 10**11 // (1 + chosen.block) ** 2)
    assert upscale.main([*words, "-o", str(tmp_path / "out.mp4"), "--memory", "20G"]) == 0
    assert "blocks of 2 frames with 2 ahead (approximate)" in capfd.readouterr().out
    assert upscale.main([*words, "-o", str(tmp_path / "other.mp4"), "--memory", "2G"]) == 2
    assert "smallest tiles" in capfd.readouterr().err


def with_class_embedding(folder):
    """The U-Net's file with an entry more, as in the public x4 upscaler."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    checkpoint.save(file, checkpoint.read(file) | {"class_embedding.weight": torch.zeros(1000, 32)})


@mostly_slow(
    ("change", "says"),
    [
        (lambda folder: shutil.rmtree(folder / "controlnet"), "controlnet/diffusion_pytorch_model"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "text_encoder/model"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json"),
        (
            lambda folder: write(folder / "scheduler" / "scheduler_config.json", {"_class_name": "PNDMScheduler"}),
            "PNDM",
        ),
        (
            lambda folder: write(folder / "unet" / "config.json", CONFIGS["unet"] | {"num_class_embeds": 1000}),
            "public x4 upscaler",
        ),
        (with_class_embedding, "class_embedding.weight"),
        (
            lambda folder: write(folder / "controlnet" / "config.json", CONFIGS["controlnet"] | {"in_channels": 8}),
            "controlnet",
        ),
        (lambda folder: (folder / "vae" / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "vae" / "config.json").write_text('{"a": "${oc.env:HOME}"}'), "reference"),
        (lambda folder: (folder / "vae" / "config.json").write_text('{"a": {"target": "os.system"}}'), "target"),
    ],
    fast=4,
)
def test_a_folder_that_does_not_fit_is_one_line(folder, clip, tmp_path, change, says, capfd):
    other = shutil.copytree(folder, tmp_path / "pipeline")
    change(other)
    assert says in refused(capfd, tmp_path, "-i", clip, "--weights", other, "--flow", "dis")


@mostly_slow(
    ("words", "says"),
    [
        (["--guidance_decoder", "half"], "full, cached, or every K"),
        (["--scenes", "frames"], "choose from 'whole', 'blocks'"),
        (["--block", "0"], "expected a whole number from 1"),
        (["method.params.ahead=-1"], "expected at least 1 and 0"),
        (["--scenes", "blocks", "--preset", "released", "--flow", "dis", "flows.dis.params={}"], "draws: addressed"),
        (["method.params.sampling.params.order=backward"], "expected one of bidirectional, forward"),
    ],
    fast=3,
)
def test_words_that_make_no_sense_are_one_line(folder, clip, tmp_path, words, says, capfd):
    assert says in refused(capfd, tmp_path, "-i", clip, "--weights", folder, "--flow", "dis", *words)


def test_frames_of_two_sizes_are_one_line(folder, tmp_path, capfd):
    frames = toy.make_mixed(tmp_path / "mixed")
    assert "36x24" in refused(capfd, tmp_path, "-i", frames, "--weights", folder, "--flow", "dis", "--ddpm_steps", "1")


def refused(capfd, place, *words):
    """The one line on stderr of a command that fails and leaves nothing."""
    assert upscale.main([*map(str, words), "--device", "cpu", "-o", str(place / "out.mp4")]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert not list(place.glob("out*"))
    return error


def write(path, content):
    path.write_text(json.dumps(content))


def test_raft_that_is_missing_is_named(folder, clip, tmp_path, capfd):
    assert upscale.main(["-i", str(clip), "--weights", str(folder), "-o", str(tmp_path / "out.mp4")]) == 2
    assert "flow with flow=raft needs raft_large" in capfd.readouterr().err


# ---- the released test command


@pytest.mark.slow  # two runs of the command
def test_the_released_test_command(folder, tmp_path):
    for name in ("a", "b"):
        toy.make_clip(tmp_path / "in" / name, 2, size=(18, 20))
    control = randomise(BUILDERS["controlnet"](CONFIGS["controlnet"]), 9)
    write_control_folder(control, tmp_path / "trained" / "controlnet")
    words = ["--in_path", str(tmp_path / "in"), "--weights", str(folder), "--num_inference_steps", "2"]
    words += ["--device", "cpu", "flow=dis", "flows.dis.params={preset: medium}"]
    assert stablevsr_test.main([*words, "--out_path", str(tmp_path / "own")]) == 0
    trained = ["--controlnet_ckpt", str(tmp_path / "trained")]
    assert stablevsr_test.main([*words, *trained, "--out_path", str(tmp_path / "other")]) == 0
    own, other = (video.read_clip(tmp_path / name / "a") for name in ("own", "other"))
    assert own.shape == (2, 3, 72, 80) and sorted(p.name for p in (tmp_path / "own" / "b").iterdir()) == [
        "3.png",
        "4.png",
    ]
    assert (own != other).any(), "the trained control network is used"
    settings = json.loads((tmp_path / "own" / "a.json").read_text())["settings"]["method"]["params"]
    assert settings["fit"] == "floored" and settings["sampling"]["params"]["draws"] == "sequential"


def test_a_control_network_that_is_missing_is_named(folder, tmp_path, capfd):
    toy.make_clip(tmp_path / "in" / "a", 1, size=(16, 16))
    words = ["--in_path", str(tmp_path / "in"), "--weights", str(folder), "--controlnet_ckpt", str(tmp_path)]
    assert stablevsr_test.main([*words, "--out_path", str(tmp_path / "out")]) == 2
    assert "has no diffusion_pytorch_model" in capfd.readouterr().err
