"""Degraded test sets: reproducible from seed, protocol and name; resumed, refused, reported."""

import json
import shutil

import cv2
import numpy as np
import pytest

from ldm import video
from scripts import degrade
from tests.marks import mostly_slow
from tests.scripts import toy


@pytest.fixture
def clips(tmp_path):
    """A folder of two clips: a video of five frames and a folder of three images, 3.png to 5.png."""
    folder = tmp_path / "clips"
    folder.mkdir()
    toy.make_clip(folder / "film.mp4", 5, size=(33, 46))
    toy.make_clip(folder / "pictures", 3, size=(24, 32))
    return folder


def run(*words):
    return degrade.main([*map(str, words)])


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def pixels(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_of_clips_becomes_folders_of_pngs(clips, tmp_path, capfd):
    out = tmp_path / "made" / "out"
    assert run("-i", clips, "-o", out) == 0
    assert toy.left_behind(out) == sorted(
        ["film", "manifest.json", "pictures"]
        + [f"film/{k:08d}.png" for k in range(5)]
        + [f"pictures/{k}.png" for k in (3, 4, 5)]
    )
    film = video.read_clip(out / "film")
    assert film.shape == (5, 3, 8, 11)  # 33x46 is cropped to 32x44, a multiple of 4
    said = manifest(out)
    assert (
        said["protocol"] == "realbasicvsr"
        and said["seed"] == 0
        and set(said["versions"]) == {"av", "cv2", "numpy", "code"}
    )
    assert said["clips"]["film"].items() >= {"frames": 5, "height": 8, "width": 11}.items()
    assert said["settings"]["params"]["stages"]["blur_1"]["params"]["beta"] == "walk"
    assert "/" not in json.dumps(said)  # no paths of this machine


def test_pixels_depend_on_seed_protocol_and_name_alone(clips, tmp_path):
    assert run("-i", clips, "-o", tmp_path / "a") == run("-i", clips / "film.mp4", "-o", tmp_path / "b") == 0
    whole, alone = manifest(tmp_path / "a"), manifest(tmp_path / "b")
    assert pixels(tmp_path / "a" / "film") == pixels(tmp_path / "b" / "film")
    assert whole["clips"]["film"] == alone["clips"]["film"]
    (clips / "film.mp4").rename(clips / "other.mp4")
    hashes = {whole["clips"]["film"]["sha256"]}
    for k, words in enumerate(([], ["--seed", "1"], ["--protocol", "realbasicvsr_mild"])):
        assert run("-i", clips / "other.mp4", "-o", tmp_path / f"c{k}", *words) == 0
        hashes.add(manifest(tmp_path / f"c{k}")["clips"]["other"]["sha256"])
    assert len(hashes) == 4


def test_a_video_holds_the_same_pixels(clips, tmp_path):
    for name, words in {"a": [], "b": ["--video"]}.items():
        assert run("-i", clips / "film.mp4", "-o", tmp_path / name, *words) == 0
    np.testing.assert_array_equal(video.read_clip(tmp_path / "a/film"), video.read_clip(tmp_path / "b/film.mkv"))
    assert manifest(tmp_path / "a")["clips"] == manifest(tmp_path / "b")["clips"]


def test_an_interrupted_set_resumes(clips, tmp_path, capfd):
    out = tmp_path / "out"
    assert run("-i", clips, "-o", out) == 0
    before = pixels(out)
    shutil.rmtree(out / "film")
    (out / ".film.partial-999999999").mkdir()  # left by a killed process
    stamp = (out / "pictures" / "3.png").stat().st_mtime_ns
    capfd.readouterr()
    assert run("-i", clips, "-o", out) == 0
    assert pixels(out) == before and "pictures: finished before, 3 frames" in capfd.readouterr().out
    assert (out / "pictures" / "3.png").stat().st_mtime_ns == stamp
    assert toy.left_behind(out) == sorted({*before, "film", "pictures"})


def test_an_interruption_leaves_no_partial_output(clips, tmp_path, monkeypatch, capfd):
    def stop(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(degrade.Manifest, "enter", stop)
    assert run("-i", clips, "-o", tmp_path / "out") == 130
    assert not (tmp_path / "out").exists() and capfd.readouterr().err == "degrade.py: interrupted\n"


@mostly_slow(
    ("words", "what"),
    [
        (["--seed", "1"], "seed=0, now 1"),
        (["--protocol", "bicubic_x4"], "protocol=realbasicvsr, now bicubic_x4"),
        (["--max_frames", "2"], "max_frames=None, now 2"),
        (["--video"], "video=False, now True"),
        (["--scale", "2"], "settings.params.scale=4, now 2"),
        (["degradation.params.stages.sinc.params.prob=0.5"], "stages.sinc.params.prob=0.8, now 0.5"),
    ],
    fast=2,
)
def test_other_settings_are_refused(clips, tmp_path, capfd, words, what):
    out = tmp_path / "out"
    assert run("-i", clips / "pictures", "-o", out) == 0
    before = pixels(out)
    assert run("-i", clips / "pictures", "-o", out, *words) == 2
    line = capfd.readouterr().err
    assert what in line and line.count("\n") == 1 and pixels(out) == before


def test_a_bad_clip_does_not_stop_the_others(clips, tmp_path, capfd):
    (clips / "bad.mp4").write_text("only words")
    toy.make_mixed(clips / "mixed")
    toy.make_clip(clips / "tiny", 2, size=(3, 40))
    assert run("-i", clips, "-o", tmp_path / "out") == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4 and said[-1] == "degrade.py: 3 of 5 clips failed"
    assert ["bad.mp4" in said[0], "mixed" in said[1], "tiny" in said[2]] == [True] * 3
    assert sorted(manifest(tmp_path / "out")["clips"]) == ["film", "pictures"]
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["film", "manifest.json", "pictures"]


def test_scale_max_frames_overrides_and_an_own_protocol(clips, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(f"include: [{degrade.PROTOCOLS / 'bicubic_x4.yaml'}]\n")
    words = ["--protocol", own, "--scale", "2", "--max_frames", "2"]
    assert run("-i", clips / "film.mp4", "-o", tmp_path / "out", *words) == 0
    assert video.read_clip(tmp_path / "out" / "film").shape == (2, 3, 16, 23)
    assert manifest(tmp_path / "out")["protocol"] == "mine"
    assert run("-i", clips / "film.mp4", "-o", tmp_path / "b", "degradation.params.stages.codec_1=null") == 0
    assert manifest(tmp_path / "b")["settings"]["params"]["stages"]["codec_1"] is None


def test_show_writes_every_stage(clips, tmp_path):
    words = ["-i", clips / "film.mp4", "-o", tmp_path / "out", "--protocol", "blur_down_x4"]
    assert run(*words) == 0
    before = manifest(tmp_path / "out")
    assert run(*words, "--show") == 0  # also for a finished clip
    shown = video.read_clip(tmp_path / "out" / "film.show.mp4")
    assert len(shown) == 5 and shown.shape[-1] == 640  # input, blur, every fourth, output: two rows of two
    assert manifest(tmp_path / "out") == before


@mostly_slow(
    ("words", "why"),
    [
        (["--protocol", "realbasic"], "got protocol 'realbasic', expected a YAML file or one of"),
        (["--protocol", "none.yaml"], "there is no configuration file none.yaml"),
        (["--protocol", "{configs}/flows.yaml"], "config.degradation"),
        (["--scale", "0"], "scale: got 0"),
        (["--scale", "wide"], "invalid float value"),
        (["--seed", "-1"], "--seed"),
        (["degradation.params.stages.blur_9=null"], "no such key"),
        (["-i", "nowhere"], "nowhere: no such file or folder"),
        (["-o", "{clips}"], "contains other files"),
        (["-o", "{clips}/film.mp4"], "expected a new or empty folder"),
    ],
    fast=5,
)
def test_invalid_input_is_one_line_and_leaves_no_output(clips, tmp_path, capfd, words, why):
    places = {"clips": clips, "configs": degrade.PROTOCOLS.parent}
    before = toy.left_behind(tmp_path)
    assert run("-i", clips, "-o", tmp_path / "out", *[word.format(**places) for word in words]) == 2
    said = capfd.readouterr()
    assert why in said.err and said.err.count("\n") == 1 and said.err.startswith("degrade.py: ")
    assert toy.left_behind(tmp_path) == before


def test_foreign_files_are_not_touched(clips, tmp_path, capfd):
    out = tmp_path / "out"
    assert run("-i", clips / "pictures", "-o", out) == 0
    (out / "film").mkdir()
    assert cv2.imwrite(str(out / "film" / "mine.png"), np.zeros((4, 4, 3), np.uint8))
    assert run("-i", clips, "-o", out) == 2
    assert "exists but is not in the manifest" in capfd.readouterr().err
    assert [p.name for p in (out / "film").iterdir()] == ["mine.png"]
    (out / "manifest.json").write_text("[1]")
    assert run("-i", clips, "-o", out) == 2 and "not readable as a manifest" in capfd.readouterr().err


def test_changed_frames_are_refused(clips, tmp_path, capfd):
    out = tmp_path / "out"
    assert run("-i", clips, "-o", out) == 0
    frame = out / "pictures" / "3.png"
    kept = frame.read_bytes()
    frame.write_bytes((out / "pictures" / "4.png").read_bytes())
    assert run("-i", clips, "-o", out) == 2
    assert "pictures: has changed since it was written" in capfd.readouterr().err
    frame.write_bytes(kept)
    assert run("-i", clips, "-o", out) == 0
    (clips / "pictures" / "3.png").write_bytes((clips / "pictures" / "4.png").read_bytes())
    assert run("-i", clips, "-o", out) == 2
    assert "pictures: was made from other frames than" in capfd.readouterr().err


def test_the_rest_of_a_killed_clip_is_not_foreign(clips, tmp_path, capfd):
    left = tmp_path / "out" / ".film.partial-999999"
    left.mkdir(parents=True)
    (left / "00000000.png").write_bytes(b"half")
    (tmp_path / "out" / ".DS_Store").write_bytes(b"x")
    assert run("-i", clips, "-o", tmp_path / "out") == 0 and not left.exists()


def test_a_folder_of_an_earlier_version_is_recognised(clips, tmp_path, capfd):
    out = tmp_path / "out"
    assert run("-i", clips, "-o", out) == 0
    said = manifest(out)
    del said["clips"]["film"]["of"]
    (out / "manifest.json").write_text(json.dumps(said))
    assert run("-i", clips, "-o", out) == 2 and "film: was made by an earlier version" in capfd.readouterr().err
    (out / "manifest.json").write_text(json.dumps(said | {"clips": {"film": [1]}}))
    assert run("-i", clips, "-o", out) == 2 and "got no entries of degraded clips" in capfd.readouterr().err
