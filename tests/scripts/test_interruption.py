"""Runs that are killed and resumed give the same bytes as uninterrupted ones.

KILLS says how often (default 2; the figure in docs/PERFORMANCE.md is for 30).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch

from ldm import video
from ldm.engine.resume import WorkFolder, folder_beside, recorded_plan
from ldm.methods.mgld.codec import Codec
from scripts import upscale
from tests.marks import mostly_slow
from tests.scripts import toy
from tests.video.films import film

KILLS = int(os.environ.get("KILLS", "2"))
FRAMES, WORDS = 8, ["--upscale", "2", "--device", "cpu", "--save_every", "2"]


def run(words, seconds: float | None = None) -> bool:
    """Run a command, kill it after some seconds, and return whether it finished."""
    script = Path(upscale.__file__).resolve()
    try:
        subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:  # killed by SIGKILL
        return False
    return True


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A command without its output, and its uninterrupted result."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    toy.make_clip(folder / "clip.mp4", FRAMES)
    words = ["-i", str(folder / "clip.mp4"), "--weights", str(toy.make_model(folder / "model")), *WORDS]
    assert upscale.main([*words, "-o", str(folder / "out.mp4")]) == 0
    return words, (folder / "out.mp4").read_bytes()


@pytest.fixture(scope="module")
def seconds(uninterrupted, tmp_path_factory):
    """How long the command takes in a process of its own, which gives the same bytes."""
    output, began = tmp_path_factory.mktemp("process") / "out.mp4", time.perf_counter()
    assert run([*uninterrupted[0], "-o", str(output)])
    assert output.read_bytes() == uninterrupted[1]
    return time.perf_counter() - began


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_resumes_to_the_same_bytes(uninterrupted, seconds, tmp_path, number):
    words, expected = uninterrupted
    output = tmp_path / "out.mp4"
    moments, kills = random.Random(number), 0
    while not run([*words, "-o", str(output)], moments.uniform(0.3, 1.1) * seconds if kills < 5 else None):
        kills += 1
        assert not output.exists() or output.read_bytes() == expected
    assert output.read_bytes() == expected
    assert toy.left_behind(tmp_path) == ["out.mp4", "out.mp4.json"]


def stop_after(monkeypatch, parts: int) -> None:
    """Interrupt the run, as by Ctrl-C, when this many parts are written."""
    written, write_part = [], video.write_part

    def write(path, *args, **options):
        if len(written) == parts:
            raise KeyboardInterrupt
        written.append(path)
        return write_part(path, *args, **options)

    monkeypatch.setattr(video, "write_part", write)


@pytest.fixture(scope="module")
def interrupted(uninterrupted, tmp_path_factory):
    """The work folder of a run that was interrupted after two parts."""
    output = tmp_path_factory.mktemp("interrupted") / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        assert upscale.main([*uninterrupted[0], "-o", str(output)]) == 130
    return folder_beside(output)


@pytest.fixture
def stopped(uninterrupted, interrupted, tmp_path):
    """A copy of an interrupted run: (words, output)."""
    shutil.copytree(interrupted, tmp_path / interrupted.name)
    return [*uninterrupted[0], "-o", str(tmp_path / "out.mp4")], tmp_path / "out.mp4"


def test_an_interrupted_run_reports_what_is_kept(uninterrupted, tmp_path, monkeypatch, capfd):
    output = tmp_path / "out.mp4"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert upscale.main([*uninterrupted[0], "-o", str(output)]) == 130
    assert f"finished parts are kept in {folder_beside(output)}" in capfd.readouterr().err


def test_an_interrupted_preview_leaves_no_files(uninterrupted, tmp_path, monkeypatch, capfd):
    stop_after(monkeypatch, 1)
    assert upscale.main([*uninterrupted[0], "-o", str(tmp_path / "out.mp4"), "--preview", "10s"]) == 130
    assert not toy.left_behind(tmp_path)
    assert capfd.readouterr().err == "upscale.py: interrupted; the same command resumes\n"


def test_an_interrupted_run_resumes(uninterrupted, stopped):
    words, output = stopped
    assert upscale.main(words) == 0
    assert output.read_bytes() == uninterrupted[1] and not folder_beside(output).exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--seed", "43"], "arguments.seed=42, now 43"),
        (["--ddpm_steps", "1"], "settings.method.params.sampling.params.steps=2, now 1"),
        (["--crf", "20"], "format.crf=18, now 20"),
    ],
)
def test_other_settings_are_refused_on_resume(stopped, change, says, capfd):
    words, output = stopped
    capfd.readouterr()
    assert upscale.main([*words, *change]) == 2
    said = capfd.readouterr().err
    assert says in said and "repeat that, or remove the folder" in said and said.count("\n") == 1
    assert folder_beside(output).exists() and not output.exists()


@pytest.mark.slow  # four runs of the command
def test_a_run_that_stops_at_a_damaged_frame_continues_with_repeat(tmp_path, uninterrupted, capfd):
    clip, output = spoiled_clip(tmp_path / "clip.mp4", 9), tmp_path / "out.mp4"
    words = [*uninterrupted[0], "-i", str(clip), "-o", str(output), "--max_frames", "12", "--keep-work"]
    assert upscale.main(words) == 2
    assert "--damaged repeat" in capfd.readouterr().err
    part = folder_beside(output) / "parts" / "000000"
    written = part.stat().st_mtime_ns
    assert upscale.main([*words, "--damaged", "repeat"]) == 0
    assert part.stat().st_mtime_ns == written and video.probe(output).frames == 12
    output.unlink()
    capfd.readouterr()
    assert upscale.main(words) == 2
    assert "arguments.damaged=repeat, now stop; repeat that" in capfd.readouterr().err


def spoiled_clip(path: Path, number: int) -> Path:
    """A clip in which one frame cannot be decoded."""
    film(path, 12, encoder={"bf": "0", "g": "3"}, size=(24, 32))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        begin, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[begin + 4 : begin + size] = b"\xff" * (size - 4)
    path.write_bytes(data)
    return path


@mostly_slow(
    "change",
    [
        {"written": "x"},
        {"taken": -1},
        {"finished": 3},
        {"seconds": {"all": "x"}},
        {"calls": 3},
        {"pipeline": {"stages": []}},
    ],
    fast=2,
)
def test_a_state_of_others_is_one_line(stopped, change, capfd):
    words, output = stopped
    state = torch.load(folder_beside(output) / "state.pt", weights_only=True)
    torch.save(state | change, folder_beside(output) / "state.pt")
    capfd.readouterr()
    assert upscale.main(words) == 2
    said = capfd.readouterr().err.splitlines()
    assert "state.pt: does not fit this run" in said[-1] and folder_beside(output).exists(), said


@pytest.mark.parametrize(
    ("change", "says"),
    [(lambda name: name, "got images (3,)"), (lambda name: f"{name}x", "state.pt: does not fit this run (KeyError)")],
)
def test_other_frames_in_a_state_are_one_line(stopped, change, says, capfd):
    words, output = stopped
    state = torch.load(folder_beside(output) / "state.pt", weights_only=True)
    pipeline = state["pipeline"]
    queues = [*pipeline["waiting"], *(stage["held"] for stage in pipeline["stages"])]
    held = [frame for queue in queues for frame in queue]
    assert held, state
    for frame in held:
        frame["values"] = {change(name): torch.zeros(3) for name in frame["values"]}
    torch.save(state, folder_beside(output) / "state.pt")
    capfd.readouterr()
    assert upscale.main(words) == 2
    said = capfd.readouterr().err.splitlines()
    assert says in said[-1] and all(line.startswith("upscale.py: ") for line in said)


def test_another_input_of_the_same_name_is_refused(stopped, capfd, tmp_path):
    words, output = stopped
    other = tmp_path / Path(words[1]).name
    other.write_bytes(Path(words[1]).read_bytes() + b"\0")
    capfd.readouterr()
    assert upscale.main([*words, "-i", str(other)]) == 2
    assert "started with input.sha256=" in capfd.readouterr().err


def test_a_work_folder_continues_elsewhere(stopped, uninterrupted, tmp_path, capfd):
    """On another card, with another number of threads and other paths; hashes tell that all else is the same."""
    words, output = stopped
    path = folder_beside(output) / "manifest.json"
    manifest = json.loads(path.read_text())
    part = folder_beside(output) / "parts" / "000000"
    written = part.stat().st_mtime_ns
    clip, weights = shutil.copy(words[1], tmp_path / "moved.mp4"), shutil.copytree(words[3], tmp_path / "moved")
    path.write_text(json.dumps(manifest | {"hardware": {"device": "cuda", "name": "Another", "threads": 64}}))
    capfd.readouterr()
    assert upscale.main([*words, "-i", str(clip), "--weights", str(weights), "--keep-work"]) == 0
    said = capfd.readouterr().err
    assert "started with hardware.device=cuda, now cpu" in said and said.count("\n") == 1
    assert part.stat().st_mtime_ns == written and output.read_bytes() == uninterrupted[1]


@mostly_slow("change", [{"input": 3}, {"hardware": None}, {"weights": [1]}, {"weights": {"unet": 1}}], fast=2)
def test_a_manifest_of_another_form_is_one_line(stopped, change, capfd):
    words, output = stopped
    path = folder_beside(output) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capfd.readouterr()
    assert upscale.main(words) == (0 if "hardware" in change else 2)
    said = capfd.readouterr().err
    assert f"started with {next(iter(change))}" in said and said.count("\n") == 1


@pytest.mark.parametrize("broken", ["state.pt", "manifest.json"])
def test_a_damaged_work_folder_is_named(stopped, broken, capfd):
    words, output = stopped
    (folder_beside(output) / broken).write_bytes(b"\x80 nothing of use")
    capfd.readouterr()
    assert upscale.main(words) == 2
    said = capfd.readouterr().err
    assert f"{broken}: not readable" in said and "remove" in said


def test_a_missing_part_is_named(stopped, capfd):
    words, output = stopped
    next(iter(sorted((folder_beside(output) / "parts").iterdir()))).unlink()
    assert upscale.main(words) == 2
    assert "000000 is missing" in capfd.readouterr().err


def test_two_runs_do_not_share_a_work_folder(stopped, capfd):
    words, output = stopped
    assert recorded_plan(output)["part_frames"] == 2
    manifest = json.loads((folder_beside(output) / "manifest.json").read_text())
    with WorkFolder(output, manifest):
        assert upscale.main(words) == 2
    assert "another process is working on it" in capfd.readouterr().err
    assert upscale.main([*words, "--keep-work"]) == 0
    assert sorted(path.name for path in folder_beside(output).iterdir()) == [
        "lock",
        "manifest.json",
        "parts",
        "state.pt",
        "tensors",
    ]


def test_out_of_memory_continues_with_smaller_tiles(uninterrupted, tmp_path, monkeypatch, capfd):
    decode, calls = Codec.decode, []

    def scarce(self, x, work, **options):
        calls.append(self.decoding.windows.tile)
        if self.decoding.windows.tile > 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return decode(self, x, work, **options)

    monkeypatch.setattr(
        "ldm.engine.jobs.measured_costs",
        lambda *args, **options: dict.fromkeys(("sampling", "encoding", "decoding", "maps", "once"), (0, 0)),
    )
    monkeypatch.setattr(Codec, "decode", scarce)
    tiles = ["method.params.decoding.params.windows.params.tile=64"]
    assert upscale.main([*uninterrupted[0], "-o", str(tmp_path / "out.mp4"), *tiles]) == 0
    said = capfd.readouterr().err
    assert said.count("out of memory; continuing from the last saved frame: sampled in") == 2
    assert calls[:2] == [64, 32] and set(calls[2:]) == {16}
    assert video.probe(tmp_path / "out.mp4").frames == FRAMES
