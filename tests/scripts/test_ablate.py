"""scripts/ablate.py on a toy model with random weights: what its rows are, that it goes on, and what it concludes."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from ldm import video
from ldm.engine.assemble import load_method
from ldm.picture import ACCENT
from scripts import ablate, ablation_clips, degrade
from scripts.ablation_report import (
    CLAIMS,
    METRICS,
    ROWS,
    TALL,
    Claim,
    by_seed,
    findings,
    gain,
    markdown,
    means,
    verdict,
)
from tests.scripts import toy

FULL = ROWS[-1]


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
    words = ["-i", str(clips), "-o", str(output), "--weights", str(model), "--protocol", "bicubic_x4", "--dry", *more]
    return ablate.main(words)


@pytest.fixture(scope="module")
def study(model):
    args = ablate.arguments(["-i", "x", "--weights", str(model), "--device", "cpu"])
    return ablate.Study(args, cells=None)


def lq_clip(frames=5):
    array = np.stack(toy.make_frames(frames, 16, 16))
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def test_the_last_row_is_the_method(study, model):
    got = study.restore(FULL, lq_clip(), 7, {})
    torch.testing.assert_close(got, load_method(model).restore(lq_clip(), seed=7), rtol=0, atol=0)


def test_frame_by_frame_a_frame_knows_no_other(study):
    rows, lq = {row.name: row for row in ROWS}, lq_clip()
    changed = lq.clone()
    changed[0] = 1 - changed[0]
    for name, alone in (("per_frame", True), ("temporal", False)):
        outputs = [study.restore(rows[name], clip, 7, {}) for clip in (lq, changed)]
        assert torch.equal(outputs[0][2:], outputs[1][2:]) == alone, name


def test_rows_differ_in_what_they_say(study):
    lq = lq_clip(4)
    outputs = [study.restore(row, lq, None if row.guidance is None else 7, {}) for row in ROWS]
    assert all(out.shape == (4, 3, 64, 64) for out in outputs)
    assert all(not torch.equal(a, b) for k, a in enumerate(outputs) for b in outputs[:k])


def test_a_run_leaves_table_pictures_and_document(clips, model, tmp_path, capsys):
    output = tmp_path / "made" / "ablation"
    assert run(clips, output, model) == 0
    shown = capsys.readouterr().out
    names = [row["row"] for row in csv.DictReader((output / "table.csv").read_text().splitlines())]
    assert names == [row.name for row in ROWS]
    content = json.loads((output / "table.json").read_text())
    assert len(content["cells"]) == 2 * len(ROWS) and content["protocol"] == "bicubic_x4"
    document = (output / "ABLATION.md").read_text()
    assert all(row.label in document and row.label in shown for row in ROWS)
    assert "(ablation/one.png)" in document and f"ablate.py -i {clips} -o {output} " in document  # as typed
    assert "1 seed of" in document and "Noise of seed 42, 1 sampling step." in document
    for picture in (output / "one.png", output / "two.png", output / "ablation" / "one.png"):
        assert cv2.imread(str(picture)).shape[1] == 2 * 640 + 8
    assert not [name for name in toy.left_behind(output) if "partial" in name]


def test_a_dry_run_claims_nothing(clips, model, tmp_path, capsys):
    assert run(clips / "one.mkv", tmp_path, model) == 0
    assert json.loads((tmp_path / "table.json").read_text())["findings"] == []
    for text in (capsys.readouterr().out, (tmp_path / "ABLATION.md").read_text()):
        assert not [claim.text for claim in CLAIMS if claim.text in text] and "holds" not in text
    assert "A dry run" in text and "A claim" not in text


def test_a_run_writes_into_its_folder_and_a_dry_one_into_another():
    for more, folder in (([], "results/ablation"), (["--dry"], "results/ablation_dry"), (["--dry", "-o", "my"], "my")):
        args = ablate.arguments(["-i", "x", *more])
        assert (args.output, args.doc) == (Path(folder), Path(folder, "ABLATION.md"))


def test_what_is_said_of_the_clips_ends_the_document(clips, model, tmp_path, capsys):
    (tmp_path / "about.md").write_text("`one` is drawn, {free} for all.\n\n")
    assert run(clips / "one.mkv", tmp_path / "out", model, "--about", str(tmp_path / "about.md")) == 0
    document = (tmp_path / "out" / "ABLATION.md").read_text()
    assert document.endswith("\n\n`one` is drawn, {free} for all.\n")
    assert run(clips / "one.mkv", tmp_path / "new", model, "--about", str(tmp_path / "none.md")) == 2
    assert "none.md', expected a text file" in capsys.readouterr().err


def test_a_finished_run_samples_nothing(clips, model, tmp_path, monkeypatch):
    calls = []
    sampled = ablate.sampled
    monkeypatch.setattr(ablate, "sampled", lambda *a, **k: calls.append(1) or sampled(*a, **k))
    assert run(clips / "one.mkv", tmp_path, model) == 0
    table = (tmp_path / "table.csv").read_bytes()
    assert len(calls) == 4  # of five rows with latents, two share theirs
    assert run(clips / "one.mkv", tmp_path, model) == 0
    assert len(calls) == 4 and (tmp_path / "table.csv").read_bytes() == table
    assert run(clips / "one.mkv", tmp_path, model, "method.params.decoding.params.dec_w=0.1") == 0
    assert len(calls) == 8
    assert (tmp_path / "table.csv").read_bytes() != table


def test_a_damaged_measurement_is_named(clips, model, tmp_path, capsys):
    (tmp_path / "cells.json").write_text("{half")
    assert run(clips, tmp_path, model) == 2
    assert "cells.json: not readable; remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--protocol", "mild"], "got protocol 'mild', expected a YAML file or one of bicubic_x4"),
        (["--picture", "three"], "got picture 'three', expected one of one, two"),
        (["--gt_size", "40x64"], "expected WIDTHxHEIGHT like 320x180"),
        (["--seeds", "0"], "expected a whole number from 1"),
        (["no.such.key=1"], "no such key"),
        (["--weights", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(clips, model, tmp_path, capsys, more, expected):
    assert run(clips, tmp_path / "out", model, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("ablate.py: ") and error.count("\n") == 1 and expected in error
    assert not toy.left_behind(tmp_path)


def test_an_output_that_is_a_file_is_left_alone(clips, model, tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert run(clips, tmp_path / "notes", model, "--doc", str(tmp_path / "doc.md")) == 2
    assert capsys.readouterr().err == f"ablate.py: {tmp_path / 'notes'}: is a file, expected a folder to write\n"
    assert toy.left_behind(tmp_path) == ["notes"]


def test_clips_that_cannot_be_judged(clips, model, tmp_path, capsys):
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


def degraded_clips(*words):
    args = ablate.arguments(["--protocol", "realbasicvsr_mild", "--seed", "5", *map(str, words)])
    paths = ablation_clips.find_clips(args.input)
    return {clip.name: clip for clip in ablation_clips.load_clips(paths, args)}


@pytest.mark.parametrize("size", ["72x64", "64x64"])
def test_the_low_quality_frames_are_those_of_degrade(clips, tmp_path, size):
    made = degraded_clips("-i", clips, "--gt_size", size)
    truth = clips if size == "72x64" else tmp_path / "truth"
    if size != "72x64":  # then what was cropped is the input
        for name, clip in made.items():
            with video.open_writer(truth / f"{name}.mkv", size=(64, 64), lossless=True) as writer:
                for frame in clip.truth:
                    writer.write(frame)
    words = ["-i", str(truth), "-o", str(tmp_path / "lq"), "--protocol", "realbasicvsr_mild", "--seed", "5"]
    assert degrade.main(words) == 0
    for name, clip in made.items():
        assert np.array_equal(list(video.read(tmp_path / "lq" / name, as_rgb8=True)), clip.lq), name
    assert not np.array_equal(made["one"].lq, made["two"].lq)  # of the same frames


def test_a_clip_has_the_name_that_degrade_gives_it(clips, monkeypatch):
    monkeypatch.chdir(clips / "two")
    paths = ablation_clips.find_clips([Path(".")])
    assert list(paths) == list(degrade.names_of(list(paths.values())).values()) == ["two"]


def test_a_protocol_that_degrades_nothing(tmp_path):
    (tmp_path / "flow.yaml").write_text("degradation: {target: ldm.ops.dis.DISFlow}")
    args = ablate.arguments(["-i", "x", "--protocol", str(tmp_path / "flow.yaml")])
    with pytest.raises(ValueError, match="degradation is a DISFlow, expected a Degradation"):
        ablation_clips.degrading(args)


def test_a_measurement_has_the_figures_of_the_table(clips):
    clip = degraded_clips("-i", clips / "one.mkv", "--gt_size", "64x64")["one"]
    soft = ablate.measure([cv2.GaussianBlur(frame, (0, 0), 1) for frame in clip.truth], clip)
    assert list(soft) == list(METRICS)
    assert 0.5 < soft["sharpness"] < 1 and soft["ssim"] < 1 and 0 < soft["e_warp"] != soft["e_warp_truth"]
    with pytest.raises(ValueError, match="clip one: psnr is inf"):
        ablate.measure(clip.truth, clip)


def test_the_truth_is_shrunk_and_cropped_in_the_middle():
    frame = np.zeros((200, 400, 3), np.uint8)
    frame[:, 195:205] = 255
    got = ablation_clips.fitted(frame, (102, 101))
    assert got.shape == (100, 100, 3)
    assert abs(np.flatnonzero(got[50, :, 0] > 100).mean() - 49.5) <= 1
    assert ablation_clips.fitted(frame[:, :90], (320, 180)).shape == (180, 88, 3)  # never enlarged


def stripes(*parts, width=96):
    """A picture of rows by (height, stripe width, darkest, brightest); 0 for no stripes."""
    x, rows = np.arange(width), []
    for height, stripe, low, high in parts:
        line = np.where(x // stripe % 2, high, low) if stripe else np.full(width, low)
        rows.append(np.tile(line, (height, 1)))
    return np.repeat(np.vstack(rows)[..., None], 3, axis=-1).astype(np.uint8)


def test_the_line_over_time_lies_in_texture_and_beside_no_edge():
    """The strongest gradients are at the kerb between the flat parts, the next where the stripes begin and end."""
    frame = stripes((30, 0, 20, 20), (20, 0, 250, 250), (30, 4, 90, 160), (16, 0, 125, 125))
    line = ablation_clips.telling_row([frame] * 3)
    assert 50 + ablation_clips.SCALE <= line < 80 - ablation_clips.SCALE
    stepped = frame.copy()
    stepped[:line] += 60  # an edge that is there in one frame only counts as well
    assert abs(ablation_clips.telling_row([frame, stepped, frame]) - line) > ablation_clips.SCALE


def test_strong_texture_beside_an_edge_is_passed_over():
    frame = stripes((36, 0, 170, 170), (5, 4, 90, 230), (34, 4, 90, 170), (16, 0, 125, 125))
    assert ablation_clips.telling_row([frame] * 3) >= 36 + ablation_clips.SCALE


def test_the_line_of_a_clip_is_that_of_its_truth(clips):
    clip = degraded_clips("-i", clips / "one.mkv", "--gt_size", "64x64")["one"]
    assert clip.line == ablation_clips.telling_row(clip.truth)


def test_a_line_is_found_where_there_is_nothing_to_see():
    assert 0 <= ablation_clips.telling_row([np.full((64, 64, 3), 9, np.uint8)] * 2) < 64


@pytest.mark.parametrize("line", [2, 40, 77])
def test_the_line_is_marked_where_it_lies(line):
    frame = np.zeros((80, 640, 3), np.uint8)
    frame[line] = (0, 0, 255)
    clip = SimpleNamespace(truth=[frame] * 3, line=line)
    cells = SimpleNamespace(view=lambda key: np.zeros((3 + ablate.BAND, 640, 3), np.uint8))
    study = SimpleNamespace(cells=cells, plan=lambda row: [None])
    picture = ablate.draw(study, clip, {(row.name, None): "" for row in ROWS})[-TALL:]
    assert (picture[:, 648 + 320] == (0, 0, 255)).all()
    shown = np.flatnonzero((picture[:, 320] == (0, 0, 255)).all(1))
    assert len(shown) == TALL / ablate.BAND
    for column in (1, 638):
        mark = np.flatnonzero((picture[:, column] == ACCENT).all(1))
        assert len(mark) > 2 and abs(mark.mean() - shown.mean()) <= 1


def test_clips_named_in_the_card_are_found(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("Trained on `bear` and on clean/dog.mkv; the demo shows a bunny.")
    paths = {name: tmp_path / "clean" / f"{name}.mkv" for name in ("bear", "dog", "bunny")}
    assert ablation_clips.seen_in_training(card, paths) == ["bear", "dog"]
    assert ablation_clips.seen_in_training(tmp_path / "none.md", paths) == []


def figures(**changes):
    """Seed means of all rows: equal, but for `row_metric=[...]`."""
    rows = {row.name: {name: [1.0, 1.0] for name in METRICS} for row in ROWS}
    rows["bicubic"] = {name: [1.0] for name in METRICS}
    for key, values in changes.items():
        row = next(row.name for row in ROWS if key.startswith(row.name + "_"))
        rows[row][key.removeprefix(row + "_")] = values
    return rows


def test_a_gain_is_relative_or_in_db():
    rows = figures(full_e_warp=[0.6, 0.8], bicubic_psnr=[25.0], full_psnr=[24.0, 24.5])
    assert gain(Claim("", "e_warp", "full", "per_frame"), rows) == pytest.approx([0.4, 0.2])
    assert gain(Claim("", "psnr", "full", "bicubic"), rows) == pytest.approx([-1.0, -0.5])


def test_a_verdict_needs_more_than_the_spread_of_the_seeds():
    claim = Claim("", "e_warp", "full", "per_frame", 0.25)
    assert verdict(claim, [0.30, 0.31]) == "yes"
    assert verdict(claim, [0.20, 0.21]) == "no"
    assert verdict(claim, [0.20, 0.31]).startswith("not told")
    assert verdict(claim, [0.25]) == "no"


def test_nothing_is_told_of_a_figure_beside_zero():
    rows = figures(bicubic_sharpness=[0.0])
    found = {claim: holds for claim, _, holds in findings(rows)}
    assert found["full method: sharper than bicubic"] == "not told: there is nothing to compare with"


def test_findings_say_what_was_measured():
    rows = figures(full_e_warp=[0.6, 0.8], full_sharpness=[1.5, 1.5])
    found = {claim: (measured, holds) for claim, measured, holds in findings(rows)}
    assert found["full method: sharper than bicubic"] == ("sharpness +50.0 ± 0.0 %", "yes")
    assert found["full method: steadier than frame by frame by 25 %"][0] == "E_warp -30.0 ± 14.1 %"
    assert found["temporal layers: steadier than frame by frame"][1] == "no"


def test_claims_are_told_where_there_are_any():
    rows = figures()
    assert "holds" in markdown(rows, findings(rows)) and CLAIMS[0].text in markdown(rows, findings(rows))
    assert "holds" not in markdown(rows, [])


def test_one_is_no_plural():
    assert means(1, 1) == "Figures of one clip, 1 seed of the noise (bicubic draws none)."
    assert means(2, 3).startswith("Means over the clips, ± the standard deviation over 3 seeds of")


def test_seeds_are_averaged_over_clips():
    cells = [
        {"row": "full", "seed": seed, **dict.fromkeys(METRICS, value)}
        for seed, value in ((1, 2.0), (2, 5.0), (1, 4.0), (2, 7.0))
    ]
    assert by_seed(cells)["full"]["psnr"] == [3.0, 6.0]


def test_videos_are_read_as_the_rest_of_the_house_reads_them(clips):
    assert set(ablation_clips.find_clips([clips])) == {path.stem for path in video.clips_in(clips)}
