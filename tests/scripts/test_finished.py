"""A folder of clips after an interruption: outputs that are up to date are skipped, all others are made."""

import itertools
import re

import pytest

from ldm.engine.device import Peak
from ldm.methods.mgld.method import MGLD
from scripts import upscale
from tests.marks import mostly_slow
from tests.scripts import toy

FAST = ["--upscale", "2", "--ddpm_steps", "1", "--device", "cpu"]
SKIPPED = "finished before, from the same input, weights and settings"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(toy.make_model(tmp_path_factory.mktemp("weights") / "model"))


@pytest.fixture
def words(tmp_path, model, monkeypatch):
    """A command after its three clips were made: a.mp4, b.mp4 and the folder c. The method only enlarges."""
    toy.without_networks(monkeypatch)
    for name in ("a.mp4", "b.mp4", "c"):
        toy.make_clip(tmp_path / "in" / name, 2)
    given = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", model, *FAST]
    assert upscale.main(given) == 0
    return given


def skipped(words, capfd, status=0) -> list[str]:
    """Run a command and return the names of the clips that it skipped."""
    capfd.readouterr()
    assert upscale.main(words) == status
    lines = capfd.readouterr().out.splitlines()
    return [line.split(":")[0].rpartition("/")[2] for line in lines if SKIPPED in line]


def test_finished_clips_are_skipped(tmp_path, words, capfd):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert skipped(words, capfd) == ["a.mp4", "b.mp4", "c"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert skipped([*words, "--shard", "2/3"], capfd) == ["b.mp4"]


def test_interrupted_and_changed_clips_are_made(tmp_path, words, capfd):
    whole = (tmp_path / "out" / "a.mp4").read_bytes()
    (tmp_path / "out" / "a.mp4").write_bytes(whole[:-1])
    (tmp_path / "out" / "b.mp4.json").unlink()
    assert skipped(words, capfd) == ["c"]
    assert (tmp_path / "out" / "a.mp4").read_bytes() == whole
    toy.make_clip(tmp_path / "in" / "b.mp4", 3)
    (tmp_path / "out" / "a.mp4.json").write_text("{}")
    assert skipped(words, capfd) == ["c"]
    (tmp_path / "out" / "a.mp4.work").mkdir()
    assert skipped(words, capfd) == ["b.mp4", "c"], "a work folder is resumed"
    assert not (tmp_path / "out" / "a.mp4.work").exists()


@mostly_slow("change", [["--seed", "1"], ["--max_frames", "1"], ["--dec_w", "0.3"]])
def test_clips_of_other_settings_are_made_again(words, change, monkeypatch, capfd):
    given = [*words, *change]
    with monkeypatch.context() as patched:
        patched.setattr(MGLD, "stream", lambda *args, **options: pytest.fail("it restores a clip that it cannot write"))
        assert upscale.main([*given, "--shard", "3/3"]) == 2
    assert "c: the folder is not empty" in capfd.readouterr().err
    assert skipped(given, capfd, status=2) == []
    assert skipped(given, capfd, status=2) == ["a.mp4", "b.mp4"], "c holds PNGs of other settings"
    assert skipped([*given, "--overwrite"], capfd) == []
    assert skipped(given, capfd) == ["a.mp4", "b.mp4", "c"]


def test_a_plan_does_not_depend_on_earlier_clips(words, monkeypatch, capfd):
    capfd.readouterr()
    used = itertools.count(10**9, 10**8)
    monkeypatch.setattr(Peak, "reset", lambda self: next(used))
    assert upscale.main([*words, "--overwrite"]) == 0
    predicted = set(re.findall("predicted peak (.*) of", capfd.readouterr().out))
    assert len(predicted) == 1 and float(predicted.pop()) > 1, "the memory of the model is counted"


def test_the_encoding_is_compared(words, capfd):
    assert skipped([*words, "--crf", "30"], capfd) == ["c"]
    assert skipped([*words, "--crf", "30"], capfd) == ["a.mp4", "b.mp4", "c"]


def test_a_missing_comparison_is_added(tmp_path, words, capfd):
    assert skipped([*words, "--compare"], capfd) == ["a.mp4", "b.mp4", "c"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.compare.png")) == [
        f"{name}.compare.png" for name in "abc"
    ]


@pytest.mark.slow  # four runs of the command
def test_a_single_clip_and_a_preview_are_made_again(tmp_path, words, capfd):
    one = ["-i", str(tmp_path / "in" / "a.mp4"), "-o", str(tmp_path / "out" / "a.mp4"), *words[4:]]
    assert skipped(one, capfd) == []
    preview = [*words, "--preview", "1s"]
    assert skipped(preview, capfd) == [] == skipped(preview, capfd, status=2), "c.preview holds PNGs"
