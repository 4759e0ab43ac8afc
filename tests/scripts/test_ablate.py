"""scripts/ablate.py on a toy model with random weights: its rows, what it writes, and what it refuses."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ldm import video
from ldm.engine.assemble import load_method
from scripts import ablate, benchmark
from tests.scripts import toy
from tests.scripts.sets import read, value

SMALL = ["--seeds", "1", "--max_frames", "3", "--gt_size", "64x64"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.make_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of two clips of three frames, 72x64."""
    folder = tmp_path_factory.mktemp("clips")
    toy.make_clip(folder / "one.mkv", 3, size=(64, 72))
    toy.make_clip(folder / "two", 3, size=(64, 72))
    return folder


def run(clips, output, model, *more):
    words = ["-i", str(clips), "-o", str(output), "--weights", str(model), "--protocol", "bicubic_x4", *SMALL, *more]
    return ablate.main(words)


@pytest.fixture(scope="module")
def done(clips, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "ablation"
    assert run(clips / "one.mkv", output, model) == 0
    return output


def frames(folder, row, clip="one"):
    about = next(entry for entry in read(folder)["clips"] if entry["name"] == clip)
    return video.read_clip(folder / [*about["results"][row].values()][0])


@pytest.mark.slow  # restores a clip with every row
def test_a_run_leaves_results_pictures_and_a_document(done, clips):
    content = read(done)
    rows = ["bicubic", "per_frame", "temporal", "released", "paper", "full"]
    assert [method["name"] for method in content["methods"]] == rows == list(content["labels"])
    assert len(content["rows"]) == 6 * 6 and len(content["findings"]) == 8
    document = (done / "ABLATION.md").read_text()
    assert all(label in document for label in content["labels"].values())
    assert "(ablation/one.png)" in document and f"ablate.py -i {clips / 'one.mkv'} -o {done} " in document  # as typed
    assert "## Findings" in document and "dry run" not in document
    assert cv2.imread(str(done / "ablation" / "one.png")).shape[1] == 2 * 640 + 12
    assert not [name for name in toy.left_behind(done) if "partial" in name or ".work" in name]


@pytest.mark.slow  # restores a clip with every row
def test_the_last_row_is_the_method_and_no_two_rows_are_equal(done, model):
    lq = video.read_clip(next((done / "lq").iterdir()) / "one")
    expected = (load_method(model).restore(lq, seed=42) * 255).round() / 255
    torch.testing.assert_close(frames(done, "full"), expected, rtol=0, atol=1e-6)
    outputs = [frames(done, row) for row in read(done)["labels"]]
    assert all(not torch.equal(a, b) for k, a in enumerate(outputs) for b in outputs[:k])


@pytest.mark.slow  # restores a clip with every row
def test_frame_by_frame_a_frame_depends_on_no_other(done, clips, model, tmp_path):
    toy_frames = list(video.read(clips / "one.mkv", as_rgb8=True))
    with video.open_writer(tmp_path / "one.mkv", size=(64, 72), lossless=True) as writer:
        for frame in (255 - toy_frames[0], *toy_frames[1:]):
            writer.write(frame)
    assert run(tmp_path / "one.mkv", tmp_path / "out", model) == 0
    for row, alone in (("per_frame", True), ("temporal", False)):
        assert torch.equal(frames(done, row)[2:], frames(tmp_path / "out", row)[2:]) == alone, row


@pytest.mark.slow  # restores a clip with every row
def test_a_finished_run_restores_nothing_and_other_settings_are_refused(done, clips, model, capsys, monkeypatch):
    before = read(done)["rows"]
    with monkeypatch.context() as patched:
        patched.setattr("ldm.benchmark.restoration.restore_job", None)  # a call would fail
        assert run(clips / "one.mkv", done, model) == 0
    assert read(done)["rows"] == before
    capsys.readouterr()
    assert run(clips / "one.mkv", done, model, "method.params.decoding.params.dec_w=0.1") == 2
    assert "dec_w=0.5, now 0.1" in capsys.readouterr().err


def test_an_ablation_is_an_option_of_the_benchmark(model, tmp_path):
    toy.make_clip(tmp_path / "truth" / "one.mkv", 2, size=(64, 64))
    (tmp_path / "rows.yaml").write_text(
        "ablation:\n  target: ldm.benchmark.ablation.Ablation\n  params:\n    metrics: [psnr]\n"
        "    rows: {none: {label: no guidance, options: [--guidance, none]}}\n"
    )
    words = ["--dataset", "own", "--root", tmp_path / "truth", "-o", tmp_path / "out", "--lq", "bicubic_x4"]
    words += ["--no_report", "--ablation", tmp_path / "rows.yaml", "--weights", model, "--ddpm_steps", "1"]
    assert benchmark.main([*map(str, words)]) == 0
    assert value(tmp_path / "out", "psnr", "none", "one", 42) is not None
    assert read(tmp_path / "out")["findings"] == []


@pytest.mark.slow  # restores a clip with every row
def test_a_dry_run_claims_nothing(clips, model, tmp_path):
    assert run(clips / "one.mkv", tmp_path, model, "--dry") == 0
    document = (tmp_path / "ABLATION.md").read_text()
    assert "dry run" in document and "holds" not in document
    assert read(tmp_path)["methods"][1]["settings"]["method"]["params"]["sampling"]["params"]["steps"] == 1


def test_a_run_writes_into_its_folder_and_a_dry_one_into_another():
    for more, folder in (([], "results/ablation"), (["--dry"], "results/ablation_dry"), (["--dry", "-o", "my"], "my")):
        args = ablate.arguments(["-i", "x", *more])
        assert (args.output, args.doc) == (Path(folder), Path(folder, "ABLATION.md"))


@pytest.mark.slow  # restores a clip with every row
def test_the_text_about_the_clips_ends_the_document(done, clips, model, tmp_path, capsys):
    (tmp_path / "about.md").write_text("`one` is drawn, {free} for all.\n\n")
    words = ["--about", str(tmp_path / "about.md"), "--doc", str(tmp_path / "doc.md")]
    assert run(clips / "one.mkv", done, model, *words) == 0
    assert (tmp_path / "doc.md").read_text().endswith("\n\n`one` is drawn, {free} for all.\n")
    assert run(clips, done, model, "--about", str(tmp_path / "none.md")) == 2
    assert "none.md', expected a text file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--protocol", "mild"], "got protocol 'mild', expected a YAML file or one of bicubic_x4"),
        (["--picture", "three"], "got picture 'three', expected one of one, two"),
        (["--gt_size", "40x64"], "expected WIDTHxHEIGHT like 320x180"),
        (["--seeds", "0"], "expected a whole number from 1"),
    ],
)
def test_bad_arguments_are_one_line(clips, model, tmp_path, capsys, more, expected):
    assert run(clips, tmp_path / "out", model, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("ablate.py: ") and error.count("\n") == 1 and expected in error
    assert not toy.left_behind(tmp_path)


def test_an_output_that_is_a_file_is_left_alone(clips, model, tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert run(clips, tmp_path / "notes", model, "--doc", str(tmp_path / "doc.md")) == 2
    assert "notes: is a file; choose another -o" in capsys.readouterr().err
    assert toy.left_behind(tmp_path) == ["notes"]


def test_unsuitable_clips_are_refused(clips, model, tmp_path, capsys):
    toy.make_clip(tmp_path / "short.mkv", 1, size=(64, 72))
    toy.make_clip(tmp_path / "small.mkv", 3, size=(48, 64))
    for paths, expected in (
        ([tmp_path / "short.mkv"], "got 1 frame, expected at least 2"),
        ([tmp_path / "small.mkv"], "expected larger ones"),
        ([clips / "one.mkv", clips], "got two clips named one"),
    ):
        assert ablate.main(["-i", *map(str, paths), "-o", str(tmp_path / "out"), "--weights", str(model)]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_truth_is_shrunk_and_cropped_in_the_middle():
    frame = np.zeros((200, 400, 3), np.uint8)
    frame[:, 195:205] = 255
    got = ablate.fitted(frame, (102, 101))
    assert got.shape == (100, 100, 3)
    assert abs(np.flatnonzero(got[50, :, 0] > 100).mean() - 49.5) <= 1
    assert ablate.fitted(frame[:, :90], (320, 180)).shape == (180, 88, 3)  # never enlarged


def test_clips_named_in_the_card_are_found(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("Trained on `bear` and on clean/dog.mkv; the demo shows a bunny.")
    paths = {name: tmp_path / "clean" / f"{name}.mkv" for name in ("bear", "dog", "bunny")}
    assert ablate.named_in(card, paths) == ["bear", "dog"]
    assert ablate.named_in(tmp_path / "none.md", paths) == []
