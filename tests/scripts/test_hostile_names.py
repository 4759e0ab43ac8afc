"""Names that people and attackers give: each clip is restored and degraded, and nothing printed leaves its line."""

import os
import shutil
import sys
import unicodedata

import pytest

from ldm import video
from scripts import degrade, upscale
from tests.scripts import toy
from tests.video.films import film

NAMES = [
    "a%04d.mp4", "a#b.mp4", "a?b.mp4", "12:30.mp4", "a\nupscale.py: forged.mp4", "-dash.mp4", "a'b\".mp4", "a|b.mp4",
    "e\u0301\u202eu.mp4", "a\x1b[2Jb.mp4", "%s%n.mp4", "a*[b].mp4", "a,b;c=d.mp4", "~a.mp4", "b$HOME.mp4", "a\\b.mp4",
    "pipe:0.mp4", "concat:a.mp4", "A.MP4", "\udcff.mp4", "x" * 240 + ".mp4", "[bold]x[.mp4", "a..mp4", "subfile,,.mp4",
]  # fmt: skip
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems forbid most of these names")


@pytest.fixture
def folder(tmp_path):
    film(tmp_path / "clip.mp4", 2, size=(24, 32), sound="aac")
    (tmp_path / "in").mkdir()
    for name in NAMES:
        shutil.copy(tmp_path / "clip.mp4", tmp_path / "in" / name)
    return tmp_path / "in"


def check_printed(captured) -> None:
    hidden = {letter for letter in captured.out + captured.err if unicodedata.category(letter) in ("Cc", "Cf", "Cs")}
    assert hidden <= {"\n"} and not any(line.startswith("upscale.py: forged") for line in captured.err.splitlines())


@pytest.mark.slow  # twenty clips
def test_clips_of_any_name_are_restored(folder, tmp_path, monkeypatch, capfd):
    """The method passes frames through: names are what is tested."""
    toy.without_networks(monkeypatch, result=lambda lq: lq)
    model = str(toy.make_model(tmp_path / "model"))
    words = ["--upscale", "1", "--device", "cpu", "--ddpm_steps", "1", "--max_frames", "1", "--weights", model]
    status = upscale.main(["-i", str(folder), "-o", str(tmp_path / "out"), *words])
    captured = capfd.readouterr()
    check_printed(captured)
    assert status == 0, captured.err
    made = {name for name in os.listdir(tmp_path / "out") if not name.endswith(".json")}
    assert made == {*NAMES}
    assert all(video.probe(tmp_path / "out" / name).audio == ("aac",) for name in ("\udcff.mp4", "12:30.mp4"))


def test_clips_of_any_name_are_degraded(folder, tmp_path, capfd):
    words = ["--protocol", "bicubic_x4", f"--input={folder}", "--output", str(tmp_path / "out")]
    for _ in range(2):  # made, and found finished
        status = degrade.main(words)
        captured = capfd.readouterr()
        check_printed(captured)
        assert status == 0, captured.err
    assert len(os.listdir(tmp_path / "out")) == len(NAMES) + 1


def test_clips_of_any_name_are_refused_in_their_lines(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    for name in NAMES:
        (tmp_path / "in" / name).write_bytes(b"no video")
    for command, words in ((upscale, ["--device", "cpu"]), (degrade, ["--protocol", "bicubic_x4"])):
        assert command.main([f"--input={tmp_path / 'in'}", "--output", str(tmp_path / "out"), *words]) == 2
        captured = capfd.readouterr()
        check_printed(captured)
        lines = captured.err.splitlines()
        assert len(lines) == len(NAMES) + 1 and sum("not a readable video" in line for line in lines) == len(NAMES)
