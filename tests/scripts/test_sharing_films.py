"""--split scenes: processes share the parts of one film, and the output has the bytes that one process makes."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ldm import config
from ldm.engine.claims import take
from ldm.engine.splitting import Part, grouped, split_folder
from ldm.weights import checkpoint
from scripts import upscale
from tests import scenic
from tests.scripts import toy

STARTS, FRAMES = (0, 13, 16, 30), 44
PARTS = [[0, 13, 0], [13, 30, 1], [30, 44, 3]]  # of at least 12 frames, with --save_every 3


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A command without its output: a film with sound and uneven times, and a model that takes next to no time."""
    folder = tmp_path_factory.mktemp("film")
    checkpoint.save(folder / "soft.safetensors", {"weight": torch.eye(3)[..., None, None], "bias": torch.zeros(3)})
    config.save(scenic.card(), folder / "model.yaml")
    fast = ["--trust", "tests.scenic", "--trust", "tests.foreign", "--upscale", "2", "--device", "cpu"]
    return ["-i", str(make_film(folder / "film.mp4")), "--weights", str(folder), *fast, "--save_every", "3"]


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    """The bytes that one process makes without parts."""
    output = tmp_path_factory.mktemp("alone") / "out.mp4"
    assert upscale.main([*words, "-o", str(output)]) == 0
    return output.read_bytes()


def make_film(path):
    with av.open(str(path), "w") as container:
        picture, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=48000)
        picture.width, picture.height, picture.pix_fmt = 32, 24, "yuv420p"
        for number, array in enumerate(toy.make_frames(FRAMES)):
            dark = sum(start <= number for start in STARTS) % 2
            frame = av.VideoFrame.from_ndarray(array // 3 + (0 if dark else 160), format="rgb24")
            container.mux(picture.encode(frame))
        tone = np.sin(np.arange(FRAMES * 1920) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        for stream, last in ((sound, frame), (sound, None), (picture, None)):
            container.mux(stream.encode(last))
    return path


def test_scenes_are_grouped():
    scenes = list(zip(STARTS, (*STARTS[1:], FRAMES), strict=True))
    assert [list(part) for part in grouped(scenes, 12)] == PARTS
    assert grouped(scenes, 100) == [Part(0, FRAMES, 0)]


def test_the_parts_of_two_turns_are_joined_to_the_same_bytes(words, alone, tmp_path, capfd):
    """The first turn finds a part in use and leaves it; the second one does it, and joins."""
    output = tmp_path / "out.mp4"
    split = [*words, "-o", str(output), "--split", "scenes"]
    split_folder(output).mkdir()
    with take(split_folder(output) / "00000013"):
        assert upscale.main(split) == 0
    said = capfd.readouterr().out
    assert "scenes: 4, parts: 3" in said and "frames 13 to 29 are left to process" in said and not output.exists()
    assert json.loads((split_folder(output) / "film.json").read_text())["parts"] == PARTS
    assert upscale.main(split) == 0
    assert output.read_bytes() == alone
    assert toy.left_behind(tmp_path) == ["out.mp4", "out.mp4.json"]
    assert json.loads((tmp_path / "out.mp4.json").read_text())["frames"] == FRAMES
    assert upscale.main(split) == 0 and "finished before" in capfd.readouterr().out


@pytest.mark.parametrize("method", [scenic.Scenic, scenic.Backwards])
def test_a_span_of_the_film(words, tmp_path, method):
    config.save(scenic.card(method), tmp_path / "model.yaml")
    shutil.copy(Path(words[3]) / "soft.safetensors", tmp_path)
    words = [*words, "--weights", str(tmp_path)]
    span = ["--start", "3", "--max_frames", "36"]  # three parts
    for name, more in (("one", []), ("split", ["--split", "scenes"])):
        assert upscale.main([*words, *span, "-o", str(tmp_path / f"{name}.mp4"), *more]) == 0
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "split.mp4").read_bytes()


def test_a_folder_of_images_keeps_its_names(words, tmp_path):
    toy.make_clip(tmp_path / "in", 12)
    for name, more in (("one", []), ("split", ["--split", "scenes"])):
        assert upscale.main([*words, "-i", str(tmp_path / "in"), "-o", str(tmp_path / name), *more]) == 0
    one, split = (sorted((tmp_path / name).iterdir()) for name in ("one", "split"))
    assert [path.name for path in one] == [path.name for path in split] and len(one) == 12
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in split]


@pytest.fixture(scope="module")
def parts(words, tmp_path_factory):
    """The file in which the parts of the film are stated, and no part restored."""
    output = tmp_path_factory.mktemp("parts") / "out.mp4"
    split_folder(output).mkdir()
    with contextlib.ExitStack() as claims:
        for start, _, _ in PARTS:
            claims.enter_context(take(split_folder(output) / f"{start:08d}"))
        assert upscale.main([*words, "-o", str(output), "--split", "scenes"]) == 0
    return split_folder(output) / "film.json"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--overwrite"], "got --overwrite with --split scenes"),
        (["--preview", "1s"], "got --preview with --split scenes"),
        (["--seed", "1"], "started with arguments.seed=42, now 1"),
        (["--save_every", "2"], "started with part_frames=3, now 2"),
    ],
)
def test_what_cannot_be_shared_is_one_line(words, parts, tmp_path, change, says, capfd):
    output = tmp_path / "out.mp4"
    split_folder(output).mkdir()
    shutil.copy(parts, split_folder(output))
    assert upscale.main([*words, "-o", str(output), "--split", "scenes", *change]) == 2
    error = capfd.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize("stated", [None, [], [[0, 13]], [[0, 13, 0], [12, 44, 1]], [["../x", 9, 0]]])
def test_parts_of_another_form_are_refused(words, parts, tmp_path, stated, capfd):
    output = tmp_path / "out.mp4"
    split_folder(output).mkdir()
    content = json.loads(parts.read_text()) | {"parts": stated}
    (split_folder(output) / "film.json").write_text(json.dumps(content))
    assert upscale.main([*words, "-o", str(output), "--split", "scenes"]) == 2
    assert "no list of parts" in capfd.readouterr().err


def test_a_method_without_scenes_is_not_split(words, tmp_path, monkeypatch, capfd):
    monkeypatch.delattr(scenic.Scenic, "find_scenes")
    assert upscale.main([*words, "-o", str(tmp_path / "out.mp4"), "--split", "scenes"]) == 2
    assert "expected a method and settings that restore scenes one by one" in capfd.readouterr().err


@pytest.mark.slow  # two processes, each of which loads torch
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_two_processes_one_killed_make_the_same_bytes(words, alone, tmp_path):
    for attempt in range(9):  # the first process may end before it can be killed
        output = tmp_path / str(attempt) / "out.mp4"
        output.parent.mkdir()
        if killed_at_work(words, output):
            break
    else:
        pytest.fail("no process could be killed at work")
    # If the killed process was joining the parts, the other one has left that to it.
    assert upscale.main([*words, "-o", str(output), "--split", "scenes"]) == 0
    assert output.read_bytes() == alone
    assert toy.left_behind(output.parent) == ["out.mp4", "out.mp4.json"]


def killed_at_work(words, output) -> bool:
    """Start two processes on a film and kill the first while it works on a part; whether that succeeded."""
    command = [sys.executable, str(Path(upscale.__file__).resolve()), *words, "-o", str(output), "--split", "scenes"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **streams) as doomed, subprocess.Popen(command, **streams) as other:
        while not is_working(split_folder(output), doomed.pid) and doomed.poll() is None:
            time.sleep(0.005)
        doomed.kill()
        said = doomed.communicate()[0], other.communicate()[0]
    assert other.returncode == 0, said
    return doomed.returncode == -signal.SIGKILL


def is_working(folder: Path, process: int) -> bool:
    """Whether a process has a claim on a part with a work folder."""
    return any(
        f'"process": {process},' in path.read_text() and (folder / f"{path.name[1:9]}.work" / "state.pt").exists()
        for path in folder.glob(".0*.claim-*")
    )
