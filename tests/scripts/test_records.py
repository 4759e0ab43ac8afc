"""What lies beside an output, and the flags that choose what is done: --verify, --preview, --shard, --keep-work."""

import json
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ldm import video
from ldm.engine.jobs import Job
from ldm.engine.resume import folder_beside
from scripts import upscale, upscale_jobs
from tests.scripts import toy

FAST = ["--upscale", "2", "--ddpm_steps", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(toy.make_model(tmp_path_factory.mktemp("weights") / "model"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("made")
    clip, output = toy.make_clip(folder / "clip.mp4", 4), folder / "out.mkv"
    assert upscale.main(["-i", str(clip), "-o", str(output), "--weights", model, *FAST, "--seed", "7"]) == 0
    return clip, output, output.with_name("out.mkv.json")


def test_the_record_holds_what_made_the_output(made):
    record = json.loads(made[2].read_text())
    assert record["frames"] == 4 and record["arguments"]["seed"] == 7
    assert {"input", "weights", "settings", "format", "plan", "versions", "hardware", "output"} < set(record)
    assert set(record["weights"]) == {"mgldvsr_unet", "video_vae_cfw"} and len(record["output"]["sha256"]) == 64
    assert {"sampling", "decoding", "encoding", "flow"} < set(record["seconds"]) and record["memory"]["peak"] > 0
    with av.open(str(made[1])) as container:
        tags = " ".join(container.metadata.values())
    assert record["weights"]["mgldvsr_unet"]["sha256"][:16] in tags and "seed 7" in tags


def test_the_record_holds_no_unused_value_of_a_card(tmp_path, model, monkeypatch):
    toy.without_networks(monkeypatch)
    card = tmp_path / "model.yaml"
    card.write_text((Path(model) / "model.yaml").read_text() + "folder: unused-value\nmeta: {note: [unused-value]}\n")
    clip, output = toy.make_clip(tmp_path / "clip.mp4", 1), tmp_path / "out.mkv"
    words = ["-i", str(clip), "-o", str(output), "--weights", model, "--config", str(card), *FAST, "--keep-work"]
    assert upscale.main(words) == 0
    record = output.with_name("out.mkv.json").read_text()
    assert set(json.loads(record)["settings"]) == {"networks", "method", "output"}
    assert "unused-value" not in record + (folder_beside(output) / "manifest.json").read_text()


def test_verify_names_what_is_no_longer_as_recorded(made, capfd):
    clip, output, record = made
    assert upscale.main(["--verify", str(record)]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[-4:] == [f"{line}: as recorded" for line in (
        f"output {output}", f"input {clip}", *(said[k].removesuffix(": as recorded") for k in (-2, -1)))]  # fmt: skip
    whole, other = output.read_bytes(), clip.with_name("other.mp4")
    output.write_bytes(whole[:-1] + b"!")
    clip.rename(other)
    assert upscale.main(["--verify", str(record)]) == 2
    output.write_bytes(whole)
    other.rename(clip)
    said = capfd.readouterr().out
    assert f"output {output}: differs" in said and f"input {clip}: not found" in said


ODD = '{"output": {"path": "o", "sha256": "0"}, "input": {"path": "i", "sha256": "0"%s}, "weights": {}}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '{"output": 3, "input": 4, "weights": {}}',
        "\x00\xff",
        ODD % ', "names": 3',
        ODD % ', "names": [3]',
        ODD % ', "path": 3',
    ],
)
def test_verify_refuses_what_is_no_record(tmp_path, content, capfd):
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    assert upscale.main(["--verify", str(tmp_path / "x.json")]) == 2
    assert "not a record of an output" in capfd.readouterr().err
    assert upscale.main(["--verify", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capfd.readouterr().err


def test_a_preview_does_a_stretch_and_estimates_the_rest(tmp_path, model, capfd):
    clip = toy.make_clip(tmp_path / "clip.mp4", 50)
    words = ["-i", str(clip), "-o", str(tmp_path / "out.mp4"), "--weights", model, *FAST, "--preview", "0.1s"]
    assert upscale.main(words) == 0
    assert video.probe(tmp_path / "out.preview.mp4").frames == 2 and not (tmp_path / "out.mp4").exists()
    assert re.search(r"all 50 frames would take about \d+ (s|min) at", capfd.readouterr().out)


@pytest.mark.parametrize(
    ("frames", "each", "said"),
    [(50, 0.25, "all 50 frames would take about 12 s"), (1000, 3.0, "50 min"), (1, 3.0, "its one frame would take")],
)
def test_an_estimate_is_in_a_unit_that_says_something(tmp_path, frames, each, said):
    assert said in upscale_jobs.estimate(Job(tmp_path, tmp_path, whole_clip=frames), each)


def test_shards_share_the_clips_out(tmp_path, model, monkeypatch):
    toy.without_networks(monkeypatch)
    for name in "abc":
        toy.make_clip(tmp_path / "in" / name, 1)
    for part in (1, 2):
        words = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--weights", model, *FAST]
        assert upscale.main([*words, "--shard", f"{part}/2", "--overwrite"]) == 0
        done = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
        assert done == (["a", "c"] if part == 1 else list("abc"))


@pytest.mark.parametrize("word", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_what_is_no_shard(word, capfd):
    assert upscale.main(["-i", "x", "-o", "y", "--shard", word]) == 2
    assert "expected i/n" in capfd.readouterr().err


def test_kept_work_and_lossless_parts_come_out_as_they_went_in(tmp_path, model, monkeypatch):
    toy.without_networks(monkeypatch)
    clip = toy.make_clip(tmp_path / "clip.mp4", 5)
    words = ["-i", str(clip), "-o", str(tmp_path / "o.mkv"), "--weights", model, *FAST, "--lossless"]
    assert upscale.main([*words, "--save_every", "2", "--keep-work"]) == 0
    parts = sorted((folder_beside(tmp_path / "o.mkv") / "parts").iterdir())
    assert len(parts) > 1
    assert upscale.main([*words[:2], "-o", str(tmp_path / "frames"), *words[4:-1]]) == 0
    one, other = (list(video.read(tmp_path / name)) for name in ("o.mkv", "frames"))
    assert all((a == b).all() for a, b in zip(one, other, strict=True)) and len(one) == 5


def make_rich(path):
    """A video with sound, uneven times, a sample aspect and a title: what must arrive."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "of interest"
        picture, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=48000)
        picture.width, picture.height, picture.pix_fmt = 32, 24, "yuv420p"
        picture.codec_context.time_base = Fraction(1, 1000)
        picture.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for array, time in zip(toy.make_frames(5), (0, 40, 100, 120, 300), strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(picture.encode(frame))
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 14400), np.float32), format="fltp", layout="mono")
        tone.sample_rate, tone.pts = 48000, 0
        for stream, frame in ((sound, tone), (sound, None), (picture, None)):
            container.mux(stream.encode(frame))
    return path


def test_sound_times_aspect_and_title_arrive(tmp_path, model, monkeypatch, capfd):
    toy.without_networks(monkeypatch)
    clip, output = make_rich(tmp_path / "rich.mp4"), tmp_path / "o.mp4"
    capfd.readouterr()  # the encoder's own words
    assert upscale.main(["-i", str(clip), "-o", str(output), "--weights", model, *FAST, "--save_every", "2"]) == 0
    before, after = video.probe(clip), video.probe(output)
    assert [after.seconds(k) for k in range(5)] == [before.seconds(k) for k in range(5)]
    assert (after.frames, after.audio, after.sample_aspect) == (5, ("aac",), Fraction(4, 3))
    with av.open(str(output)) as container:
        assert container.metadata["title"] == "of interest"
    assert capfd.readouterr().err == ""
