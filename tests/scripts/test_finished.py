"""A folder of clips after a stop: what is there as the same command makes it is left alone, anything else is not."""

import itertools
import re

import pytest

from ldm.engine.device import Peak
from ldm.methods.mgld.method import MGLD
from ldm.streaming.pipeline import Each, Pipeline
from scripts import upscale
from tests.scripts import toy

FAST = ["--upscale", "2", "--ddpm_steps", "1", "--device", "cpu"]
THERE = "finished before, from the same input, weights and settings"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(toy.make_model(tmp_path_factory.mktemp("weights") / "model"))


@pytest.fixture
def words(tmp_path, model, monkeypatch):
    """A command whose three clips are made: a.mp4, b.mp4 and c, a folder. The method only enlarges."""

    def stream(self, *args, **options):
        def enlarge(frame):
            return frame.put(sr=(frame["lq"].float() / 255).repeat_interleave(2, -1).repeat_interleave(2, -2))

        return Pipeline([Each(enlarge)])

    monkeypatch.setattr(MGLD, "stream", stream)
    for name in ("a.mp4", "b.mp4", "c"):
        toy.make_clip(tmp_path / "in" / name, 2)
    given = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", model, *FAST]
    assert upscale.main(given) == 0
    return given


def left_alone(words, capfd, status=0) -> list[str]:
    """Names of the clips that a command left alone."""
    capfd.readouterr()
    assert upscale.main(words) == status
    lines = capfd.readouterr().out.splitlines()
    return [line.split(":")[0].rpartition("/")[2] for line in lines if THERE in line]


def test_what_is_there_is_left_alone(tmp_path, words, capfd):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert left_alone(words, capfd) == ["a.mp4", "b.mp4", "c"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert left_alone([*words, "--shard", "2/3"], capfd) == ["b.mp4"]


def test_what_was_stopped_or_changed_is_made(tmp_path, words, capfd):
    whole = (tmp_path / "out" / "a.mp4").read_bytes()
    (tmp_path / "out" / "a.mp4").write_bytes(whole[:-1])
    (tmp_path / "out" / "b.mp4.json").unlink()
    assert left_alone(words, capfd) == ["c"]
    assert (tmp_path / "out" / "a.mp4").read_bytes() == whole
    toy.make_clip(tmp_path / "in" / "b.mp4", 3)
    (tmp_path / "out" / "a.mp4.json").write_text("{}")
    assert left_alone(words, capfd) == ["c"]
    (tmp_path / "out" / "a.mp4.work").mkdir()
    assert left_alone(words, capfd) == ["b.mp4", "c"], "a work folder is gone on with"
    assert not (tmp_path / "out" / "a.mp4.work").exists()


@pytest.mark.parametrize("change", [["--seed", "1"], ["--max_frames", "1"], ["--dec_w", "0.3"]])
def test_what_was_made_otherwise_is_made_again(words, change, monkeypatch, capfd):
    given = [*words, *change]
    with monkeypatch.context() as patched:
        patched.setattr(MGLD, "stream", lambda *args, **options: pytest.fail("it computes what it cannot write"))
        assert upscale.main([*given, "--shard", "3/3"]) == 2
    assert "c: the folder is not empty" in capfd.readouterr().err
    assert left_alone(given, capfd, status=2) == []
    assert left_alone(given, capfd, status=2) == ["a.mp4", "b.mp4"], "c holds PNGs made otherwise"
    assert left_alone([*given, "--overwrite"], capfd) == []
    assert left_alone(given, capfd) == ["a.mp4", "b.mp4", "c"]


def test_a_plan_does_not_depend_on_the_clips_before(words, monkeypatch, capfd):
    capfd.readouterr()
    used = itertools.count(10**9, 10**8)
    monkeypatch.setattr(Peak, "reset", lambda self: next(used))
    assert upscale.main([*words, "--overwrite"]) == 0
    predicted = set(re.findall("predicted peak (.*) of", capfd.readouterr().out))
    assert len(predicted) == 1 and float(predicted.pop()) > 1, "what the built model takes is counted"


def test_the_way_it_is_stored_counts(words, capfd):
    assert left_alone([*words, "--crf", "30"], capfd) == ["c"]
    assert left_alone([*words, "--crf", "30"], capfd) == ["a.mp4", "b.mp4", "c"]


def test_a_picture_to_compare_with_is_added(tmp_path, words, capfd):
    assert left_alone([*words, "--compare"], capfd) == ["a.mp4", "b.mp4", "c"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.compare.png")) == [
        f"{name}.compare.png" for name in "abc"
    ]


def test_a_clip_by_itself_and_a_preview_are_made_anew(tmp_path, words, capfd):
    one = ["-i", str(tmp_path / "in" / "a.mp4"), "-o", str(tmp_path / "out" / "a.mp4"), *words[4:]]
    assert left_alone(one, capfd) == []
    preview = [*words, "--preview", "1s"]
    assert left_alone(preview, capfd) == [] == left_alone(preview, capfd, status=2), "c.preview holds PNGs"
