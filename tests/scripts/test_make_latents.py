"""Stage-2 sets from clips: folders that LatentClips reads, latents as upscaling draws them, resumed and refused."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch

from basicsr_deg.latent_clips import LatentClips
from basicsr_deg.reading import read_picture
from ldm import config
from ldm.engine.assemble import load_method
from ldm.nets.spynet import SpyNet
from ldm.ops.color import COLOR_FIXES
from ldm.weights import checkpoint
from scripts import degrade, make_latents
from tests.marks import mostly_slow
from tests.scripts import toy

SPYNET = "+flows.spynet={target: ldm.nets.spynet.SpyNet, params: {}}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.make_model(tmp_path_factory.mktemp("weights") / "model")


def write_clip(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / f"{number}.png"), frame[..., ::-1])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of 66x68, of 5 and 2 frames."""
    root = tmp_path_factory.mktemp("clips")
    write_clip(root / "a", toy.make_frames(5, 66, 68))
    write_clip(root / "b", toy.make_frames(2, 66, 68))
    return root


def make(*words):
    return make_latents.main([*map(str, words), "--device", "cpu"])


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, clips):
    output = tmp_path_factory.mktemp("made") / "set"
    assert make("-i", clips, "--protocol", "realbasicvsr_mild", "--weights", model, "-o", output, "--samples") == 0
    return output


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def test_a_set_holds_every_frame_of_every_clip(made, clips):
    names = [f"{clip}/{number:08d}" for clip, count in (("a", 5), ("b", 2)) for number in range(count)]
    expected = {f"{kind}/{name}.png" for kind in ("gt", "lq", "sample") for name in names}
    assert set(tree(made)) == expected | {f"latent/{name}.npy" for name in names} | {"manifest.json"}
    gt, lq, sample = (read_picture(made / kind / "a/00000003.png") for kind in ("gt", "lq", "sample"))
    np.testing.assert_array_equal(gt, read_picture(clips / "a/3.png")[:64, :64])
    assert lq.shape == (16, 16, 3) and sample.shape == gt.shape and sample.std() > 0
    latent = np.load(made / "latent/a/00000003.npy")
    assert latent.shape == (4, 16, 16) and latent.dtype == np.float32
    item = LatentClips(root=str(made), frames=2)[0]
    assert item["gt"].shape == (2, 3, 64, 64) and item["lq"].shape == (2, 3, 16, 16)


def test_latents_decode_to_what_upscaling_gives(made, model):
    """The same resizing, flow, windows, guidance and noise."""
    method, seed = load_method(model), make_latents.address(23, "b") % 2**31
    lq = torch.stack([torch.from_numpy(read_picture(made / f"lq/b/{k:08d}.png")) for k in range(2)])
    lq = lq.permute(0, 3, 1, 2).float() / 255
    saved = torch.stack([torch.from_numpy(np.load(made / f"latent/b/{k:08d}.npy")) for k in range(2)])
    geometry = method.geometry((16, 16), upscale=4)
    work = geometry.enlarge(lq)
    codec = method.codec(method.levers()[0])
    sr = COLOR_FIXES[method.decoding.color_fix](codec.decode(saved[None], work[None])[0], work * 2 - 1)
    upscaled = method.restore(lq, upscale=4, seed=seed)
    np.testing.assert_allclose(geometry.finish(sr).numpy(), upscaled.numpy(), atol=1e-3)
    with torch.no_grad():
        sample = (method.networks["autoencoder"].decode(saved[:1] / method.scale_factor)[0] + 1) * 127.5
    shown = read_picture(made / "sample/b/00000000.png")
    np.testing.assert_allclose(shown, sample.clamp(0, 255).permute(1, 2, 0).numpy(), atol=0.6)


def test_degraded_frames_are_those_of_degrade(tmp_path, model):
    write_clip(tmp_path / "clips/c", toy.make_frames(2, 64, 64))
    words = ("-i", tmp_path / "clips", "--protocol", "realbasicvsr_mild", "--seed", "4")
    assert degrade.main([*map(str, words), "-o", str(tmp_path / "degraded")]) == 0
    assert make(*words, "--weights", model, "-o", tmp_path / "set", "method.params.sampling.params.steps=1") == 0
    theirs, ours = (sorted((tmp_path / folder / "c").iterdir()) for folder in ("degraded", "set/lq"))
    assert len(theirs) == 2
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(read_picture(a), read_picture(b))


def test_a_stopped_run_goes_on_to_the_same_set(tmp_path, made, model, clips):
    output = tmp_path / "set"
    shutil.copytree(made, output)
    before = tree(output)
    shutil.rmtree(output / "latent/b")
    (output / "lq/.a.partial-7").mkdir()
    kept = (output / "gt/a/00000000.png").stat().st_mtime_ns
    words = ("-i", clips, "--protocol", "realbasicvsr_mild", "--weights", model, "-o", output, "--samples")
    assert make(*words) == 0
    assert tree(output) == before and not (output / "lq/.a.partial-7").exists()
    assert (output / "gt/a/00000000.png").stat().st_mtime_ns == kept, "what is finished stays"


def test_a_clip_does_not_hang_on_the_others(tmp_path, made, model, clips):
    shutil.copytree(clips / "b", tmp_path / "clips/b")
    words = ("--protocol", "realbasicvsr_mild", "--weights", model, "-o", tmp_path / "set", "--samples")
    assert make("-i", tmp_path / "clips", *words) == 0
    alone, among = tree(tmp_path / "set"), tree(made)
    assert all(among[name] == data for name, data in alone.items() if name != "manifest.json") and len(alone) == 9


def test_a_set_without_a_manifest_is_not_ours(tmp_path, model, clips, capfd):
    """Its clips could come from anything, and would be taken for finished."""
    (tmp_path / "gt" / "a").mkdir(parents=True)
    assert make("-i", clips, "--weights", model, "-o", tmp_path) == 2
    assert "holds gt without a manifest.json" in capfd.readouterr().err and toy.left_behind(tmp_path) == ["gt", "gt/a"]


def test_the_manifest_is_there_before_the_first_clip(tmp_path, model, clips, monkeypatch):
    """So that what a kill leaves behind says what it is."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_latents.latent_clips, "write_latent_clip", killed)
    words = ("-i", clips, "--weights", model, "method.params.sampling.params.steps=1")
    assert make(*words, "-o", tmp_path / "set") == 130
    assert toy.left_behind(tmp_path) == ["set", "set/manifest.json"]


def test_the_manifest_names_what_decides(made):
    manifest = json.loads((made / "manifest.json").read_text())
    settings = manifest["settings"]
    assert len(settings["weights"]) == 64 and settings["seed"] == 23 and "torch" in manifest["versions"]
    assert settings["source"]["protocol"] == "realbasicvsr_mild" and "stages" in str(settings["source"]["degradation"])
    assert settings["card"]["method"]["params"]["scale_factor"] == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--seed", "5"], "seed=23, now 5"),
        (["--protocol", "bicubic_x4"], "source.degradation"),
        (["method.params.sampling.params.steps=1"], "card.method.params.sampling.params.steps=2, now 1"),
    ],
)
def test_other_settings_are_refused(made, model, clips, changes, message, capfd):
    before = tree(made)
    words = ["-i", clips, "--protocol", "realbasicvsr_mild", "--weights", model, "-o", made, "--samples"]
    assert make(*words, *changes) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"make_latents.py: {made}: started with") and message in said
    assert tree(made) == before


def test_crops_and_parts_cover_the_clip(tmp_path, model, clips):
    words = ("-i", clips / "a", "--weights", model, "-o", tmp_path, "--protocol", "bicubic_x4", "--part", "3")
    assert make(*words, "--crop", "32", "--step", "40", "method.params.sampling.params.steps=1") == 0
    names = [path.name for path in sorted((tmp_path / "latent").iterdir())]
    crops = [f"s{number:03d}" for number in range(1, 5)]  # 0 and 34 down, 0 and 36 across
    assert names == [f"a_{part}_{crop}" for part in ("p001", "p002") for crop in crops]
    assert [len(list((tmp_path / "gt" / name).iterdir())) for name in names] == [2] * 4 + [3] * 4
    shown = read_picture(tmp_path / "gt/a_p002_s004/00000000.png")
    np.testing.assert_array_equal(shown, read_picture(clips / "a/2.png")[34:66, 36:68])


@pytest.mark.slow  # makes the whole set again
def test_pairs_that_are_there_are_taken(tmp_path, made, model):
    """The degraded frames of another set, as a release has them."""
    words = ("--gt", made / "gt", "--lq", made / "lq", "--weights", model, "-o", tmp_path / "again")
    assert make(*words) == 0
    again, first = tree(tmp_path / "again"), tree(made)
    assert len(again) == 22 and all(first[name] == again[name] for name in again if name != "manifest.json")


def test_pairs_must_match(tmp_path, made, model, capfd):
    shutil.copytree(made / "lq", tmp_path / "lq")
    (tmp_path / "lq/b/00000001.png").unlink()
    words = ("--gt", made / "gt", "--weights", model, "-o", tmp_path / "out")
    assert make(*words, "--lq", tmp_path / "lq") == 2
    assert "no degraded clips of equal length for b" in capfd.readouterr().err
    for folder in ("a", "b"):
        shutil.rmtree(tmp_path / "lq" / folder)
        write_clip(tmp_path / "lq" / folder, toy.make_frames(5 if folder == "a" else 2, 13, 16))
    assert make(*words, "--lq", tmp_path / "lq") == 2
    assert "a: got 16x13 beside sharp 64x64, expected a whole fraction" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_examples_of_a_training_set_are_taken(tmp_path, model):
    scenes = {"target": "basicsr_deg.clips.RenderedScenes", "params": {"length": 5, "size": 32}}
    degradation = {"target": "basicsr_deg.pipeline.Degradation", "params": {"stages": {"shrink": {
        "target": "basicsr_deg.resize.AntialiasedBicubic"}}}}  # fmt: skip
    params = {"source": scenes, "degradation": degradation, "frames": 3, "gt_size": 32, "seed": 1}
    train = {"target": "basicsr_deg.training_clips.TrainingClips", "params": params}
    config.save({"data": {"params": {"train": train}}}, tmp_path / "data.yaml")
    words = ("--data", tmp_path / "data.yaml", "data.params.train.params.seed=2")
    assert make("--weights", model, "-o", tmp_path / "set", "--count", "2", *words) == 0
    assert [path.name for path in sorted((tmp_path / "set/latent").iterdir())] == ["000000", "000001"]
    source = config.instantiate(config.load(tmp_path / "data.yaml", overrides=words[2:]).data.params.train)[1]
    shown = read_picture(tmp_path / "set/gt/000001/00000002.png")
    np.testing.assert_array_equal(shown, (source["gt"][2] * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.mark.slow  # three sets
def test_a_run_of_main_is_a_place_of_weights(tmp_path, model, clips):
    """Its last checkpoint, named itself or by its run's folder, with the configuration that lies there."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": checkpoint.read(model / "mgldvsr_unet.safetensors")}, run / "checkpoints/last.ckpt")
    settings = config.load(model / "model.yaml", overrides=["method.params.sampling.params.steps=1"])
    config.save(settings, run / "config.yaml")
    words = ("-i", clips / "b", "--protocol", "bicubic_x4", "--weights")
    assert make(*words, run, "-o", tmp_path / "a") == 0
    assert make(*words, run / "checkpoints/last.ckpt", "-o", tmp_path / "b") == 0
    manifest = json.loads((tmp_path / "a/manifest.json").read_text())
    assert manifest["settings"]["card"]["method"]["params"]["sampling"]["params"]["steps"] == 1
    assert manifest["weights"] == str(run / "checkpoints/last.ckpt")
    assert make(*words, run, "--card", model / "model.yaml", "-o", tmp_path / "c") == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b") != tree(tmp_path / "c")


@pytest.mark.slow  # whole flow networks
def test_a_flow_network_is_taken_from_beside_the_weights(tmp_path, model, clips, capfd):
    """Whatever flow the stage-1 file holds; as in upscaling."""
    words = ["-i", clips / "b", "method.params.sampling.params.steps=1", "-o", tmp_path / "set", "--weights"]
    shutil.copytree(model, tmp_path / "model")
    assert make(*words, tmp_path / "model", "--flow", "raft") == 2
    assert re.search("raft-things", capfd.readouterr().err.splitlines()[-1])
    raft = toy.make_model(tmp_path / "raft", flow="raft")
    config.save(config.load(raft / "model.yaml", overrides=[SPYNET]), raft / "model.yaml")
    torch.save(SpyNet().state_dict(), raft / "spynet_sintel_final-3d2a1287.pth")
    assert make(*words, raft, "--flow", "spynet") == 0


def test_a_training_set_may_name_the_weights(tmp_path, model, capfd):
    """--weights comes first; a place that is not there is one line."""
    train = {"target": "basicsr_deg.clips.RenderedScenes", "params": {"length": 5, "size": 32}}
    config.save({"weights": "nowhere", "data": {"params": {"train": train}}}, tmp_path / "data.yaml")
    assert make("--data", tmp_path / "data.yaml", "-o", tmp_path / "set") == 2
    assert "there is no folder nowhere" in capfd.readouterr().err
    args = make_latents.arguments(["--data", str(tmp_path / "data.yaml"), "-o", "x", "--weights", str(model)])
    _, found = make_latents.find_weights(args, make_latents.read_data(args.data))
    assert found.files["mgldvsr_unet"] == model / "mgldvsr_unet.safetensors"


@mostly_slow(
    ("words", "message"),
    [
        ([], "expected either -i CLIPS, or --gt CLIPS --lq CLIPS, or --data YAML"),
        (["--gt", "x"], "expected either"),
        (["-i", "nowhere"], "nowhere, which is not there"),
        (["-i", "CLIPS", "--protocol", "none"], "got protocol 'none'.*realbasicvsr_mild"),
        (["-i", "CLIPS", "--crop", "30"], "--crop 30, expected a multiple of 8"),
        (["-i", "CLIPS", "--crop", "72"], "a: got frames of 68x66, expected at least the 72"),
        (["-i", "CLIPS", "--crop", "16"], "a_s001: .*16x16, which the method restores at 32x32"),
        (["-i", "CLIPS", "--part", "0"], "got '0', expected a whole number from 1"),
        (["-i", "CLIPS", "--crop", "0"], "--crop: got '0', expected a whole number from 1"),
        (["-i", "CLIPS", "--count", "0"], "--count: got '0', expected"),
        (["-i", "CLIPS", "--seed", "-1"], "--seed"),
        (["-i", "CLIPS", "--weights", "nowhere"], "nowhere"),
        (["-i", "CLIPS", "method.params.nothing=1"], "nothing"),
    ],
    fast=6,
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, model, clips, words, message, capfd):
    words = [str(clips) if word == "CLIPS" else word for word in words]
    given = [] if "--weights" in words else ["--weights", model]
    assert make(*words, *given, "-o", tmp_path / "out") == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("make_latents.py: ") and re.search(message, said)
    assert not (tmp_path / "out").exists()
