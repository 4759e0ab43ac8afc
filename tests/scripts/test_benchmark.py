"""benchmark.py on miniature test sets: layouts, tables, resumption, and errors before any work."""

import csv
import re
import shutil
import tracemalloc

import pytest

from ldm import video
from ldm.benchmark import scores as scoring
from ldm.benchmark.restoration import Restorer
from ldm.benchmark.sets import Clip
from ldm.metrics import learned
from ldm.metrics.protocol import Options
from ldm.metrics.scored_frame import Unavailable
from tests.marks import mostly_slow
from tests.scripts import sets, toy
from tests.scripts.sets import FAST, read, run, value


@pytest.fixture
def mini(tmp_path):
    """A set in DOVE's layout with results of one method."""
    return sets.make_both(tmp_path, "UDM10")


@pytest.fixture
def scored(mini):
    """Arguments that score it."""
    return ["--dataset", "udm10", "--root", mini / "UDM10", "--results", mini / "ours", "-o", mini / "out", *FAST]


def test_results_of_a_method_are_scored(mini, scored, capfd):
    assert run(*scored) == 0
    said = capfd.readouterr().out
    assert "layout dove: truth in GT; LQ (given) in LQ" in said and "2 clips, 8 frames" in said
    assert "2 clips, the set has 10" in said and said.index("the set has 10") < said.index("| metric | protocol |")
    found = read(mini / "out")
    assert found["format"] == "mgld-vsr benchmark 1"
    assert found["methods"][0]["name"] == "ours" and found["dataset"]["lq"] == "given"
    clip = found["clips"][0]
    assert (clip["name"], clip["frames"], clip["width"], clip["height"]) == ("000", 4, 96, 64)
    for place in (clip["gt"], clip["lq"], clip["results"]["ours"][""]):
        assert video.probe(mini / "out" / place).frames == 4
    expected = _psnr(mini / "ours" / "000", mini / "UDM10" / "GT" / "000")
    assert value(mini / "out", "psnr") == pytest.approx(sum(expected) / 4, abs=1e-6)
    curve = next(c for c in found["curves"] if (c["clip"], c["metric"]) == ("000", "psnr"))
    assert curve["values"] == pytest.approx(expected, abs=1e-6) and curve["first"] == 0
    line = next(line for line in found["table"] if line["metric"] == "psnr")
    assert line["measured"] == pytest.approx(
        (value(mini / "out", "psnr") + value(mini / "out", "psnr", clip="001")) / 2
    )
    assert "RGB" in line["protocol"] and line["published"] is None and line["within"] is None
    with (mini / "out" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "## Published: DOVE, Table 2" in (mini / "out" / "results.md").read_text()


def _psnr(one, other):
    pairs = zip(video.read_clip(one), video.read_clip(other), strict=True)
    return [float(-10 * (a.double() - b.double()).square().mean().log10()) for a, b in pairs]


def test_methods_are_compared_with_their_published_values(mini, scored):
    words = [word if word != mini / "ours" else f"DOVE={mini / 'ours'}" for word in scored]
    assert run(*words) == 0
    line = next(line for line in read(mini / "out")["table"] if line["metric"] == "psnr")
    assert line["published"] == 26.48 and line["difference"] == pytest.approx(line["measured"] - 26.48)
    assert line["within"] is None and line["source"].startswith("DOVE")  # the clips are not the published ones
    assert run(*words, "--published", "infvsr") == 0
    assert read(mini / "out")["table"][0]["published"] is None  # the table has no DOVE
    assert run(*words, "--published", "unknown") == 2


def test_results_of_unknown_lq_are_not_judged(mini):
    shutil.rmtree(mini / "UDM10/LQ")
    words = ["--dataset", "udm10", "--root", mini / "UDM10", "-o", mini / "out", *FAST]
    assert run(*words, "--results", f"MGLD-VSR={mini / 'ours'}") == 0  # allowed, since nothing is upscaled
    found = read(mini / "out")
    assert found["dataset"]["lq"] is None and found["methods"][0]["name"] == "MGLD-VSR"
    assert all(line["within"] is None for line in found["table"]) and found["table"][0]["published"] is not None
    assert any("here it is unknown, x4: differences say little" in note for note in found["notes"])


def test_lossless_videos_score_like_frames(mini, scored):
    assert run(*scored) == 0
    frames = value(mini / "out", "psnr")
    sets.make_set(mini / "films", gt="GT-Video", lq="LQ-Video", suffix=".mkv")
    sets.make_results(mini / "mine", suffix=".mkv")
    words = ["--dataset", "udm10", "--root", mini / "films", "--results", f"ours={mini / 'mine'}", "-o", mini / "out2"]
    assert run(*words, *FAST) == 0
    assert value(mini / "out2", "psnr") == pytest.approx(frames, abs=1e-9)
    assert not [note for note in read(mini / "out2")["notes"] if "halved" in note]


@mostly_slow(
    ("dataset", "make", "lq"),
    [
        ("videolq", {"gt": None, "lq": "Input"}, "given"),
        ("reds4", {"gt": "train_sharp", "lq": "train_sharp_bicubic/X4", "clips": ("000", "011")}, "bicubic_x4"),
        ("vid4", {"gt": "GT", "lq": "BDx4", "clips": ("city", "walk")}, "blur_down_x4"),
        ("spmcs", {"gt": "{clip}/truth", "lq": "{clip}/input4"}, "input4"),
        ("mvsr4x", {"shrink": 1}, "given"),
        ("own", {"gt": "hr", "lq": "lr"}, "given"),
    ],
    fast=2,
)
def test_every_layout_is_scored(tmp_path, dataset, make, lq):
    sets.make_set(tmp_path / "root", **make)
    sets.make_results(tmp_path / "ours", clips=make.get("clips", ("000", "001")))
    words = [
        "--dataset",
        dataset,
        "--root",
        tmp_path / "root",
        "--lq",
        lq,
        "--bicubic",
        "--results",
        tmp_path / "ours",
        "-o",
        tmp_path / "out",
        *FAST,
    ]
    assert run(*words) == 0
    found = read(tmp_path / "out")
    assert found["dataset"]["lq"] == lq and len(found["rows"]) == 8
    if dataset == "videolq":
        assert (
            found["rows"][0]["reason"] == "n/a (there is no truth to compare with)" and found["clips"][0]["gt"] is None
        )
    else:
        assert all(row["value"] > 15 for row in found["rows"] if row["metric"] == "psnr" and row["reason"] is None)


def test_an_unavailable_metric_is_reported_and_the_run_continues(mini, scored):
    words = [word for word in scored if word not in FAST]
    assert run(*words, "--metrics", "psnr", "e_warp_quantvsr", "--no_report") == 0
    line = next(line for line in read(mini / "out")["table"] if line["metric"] == "e_warp_quantvsr")
    assert line["measured"] is None and re.fullmatch(r"n/a \(.*raft.*\)", line["reason"])
    assert "n/a (needs raft-things.pth: --raft FILE" in (mini / "out" / "results.md").read_text()


def test_a_result_equal_to_the_truth_has_a_reason(mini):
    words = ["--dataset", "udm10", "--root", mini / "UDM10", "--results", mini / "UDM10/GT", "-o", mini / "out", *FAST]
    assert run(*words) == 0
    assert read(mini / "out")["rows"][0] | {"seed": None} == {
        "method": "GT", "clip": "000", "seed": None, "metric": "psnr", "value": None, 
        "reason": "inf (equal to the truth)",
    }  # fmt: skip


# ---- incomplete clips


def _lose(path):
    sorted(path.iterdir())[1].unlink()


def _shorten(path):
    sorted(path.iterdir())[-1].unlink()


def _shrink(path):
    shutil.rmtree(path)
    sets.make_clip(path, shrink=2)


HARM = [
    (_lose, "frame 00000001.png is missing (3 exist)"),
    (_shorten, "has 3 frames"),
    (_shrink, "001: got frames of "),
    (shutil.rmtree, "001"),
]


@pytest.mark.parametrize("part", ["UDM10/GT/001", "UDM10/LQ/001"])
@mostly_slow(("harm", "says"), HARM, fast=3)
def test_an_incomplete_clip_of_the_set_is_named_before_any_work(mini, scored, capfd, part, harm, says):
    harm(mini / part)
    status, said = run(*scored), capfd.readouterr().err
    if harm is shutil.rmtree and part == "UDM10/GT/001":
        assert status == 0  # a smaller set, which its table reports
        return
    lines = said.splitlines()
    assert status == 2 and 1 <= len(lines) <= 2 and all(line.startswith("benchmark.py: ") for line in lines)
    assert (
        (says in said or harm is _shorten and "and the truth" in said) and "001" in said and not (mini / "out").exists()
    )


@pytest.mark.parametrize(("harm", "says"), HARM)
def test_a_result_that_does_not_match_has_no_values(mini, scored, capfd, harm, says):
    harm(mini / "ours" / "001")
    assert run(*scored) == 0
    line = capfd.readouterr().err
    assert line.startswith("benchmark.py: ") and says in line and line.endswith("; not scored\n")
    found = read(mini / "out")
    assert value(mini / "out", "psnr") > 15 and value(mini / "out", "psnr", clip="001") is None
    assert found["table"][0]["measured"] is None and says in found["table"][0]["reason"]
    assert list(found["clips"][1]["results"]) == [] and found["clips"][1]["sha256"]["gt"]


def test_a_folder_without_a_matching_result_is_refused(mini, scored, capfd):
    for clip in ("000", "001"):
        _shorten(mini / "ours" / clip)
    assert run(*scored) == 2
    assert "ours/000: has 3 frames, clip 000 has 4\n" in capfd.readouterr().err and not (mini / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dataset", "reds5"], "reds4?"),
        (["--root", "nowhere"], "nowhere: no such folder"),
        (["--results", "nowhere"], "nowhere: no such folder of results"),
        (["--metrics", "pnsr"], "did you mean psnr?"),
        (["--metrics", "psnr:colour=red"], "got setting 'colour'"),
        (["--lq", "sharpened"], "got protocol 'sharpened'"),
        (["--niqe_params", "no.npz"], "no.npz: no such file"),
        (["--seeds", "0"], "expected a whole number from 1"),
        (["--published", "unknown"], "got --published 'unknown'"),
        (["--weights", "no_folder"], "no_folder"),
        (["method.params.nothing=3"], "nothing"),
    ],
)
def test_invalid_arguments_are_one_line(mini, scored, capfd, words, says):
    if words[0] in ("--lq", "method.params.nothing=3"):
        scored = [word for word in scored if word not in ("--results", mini / "ours")]
        shutil.rmtree(mini / "UDM10" / "LQ")
    assert run(*scored, *words) == 2
    said = capfd.readouterr().err
    assert says in said and said.count("\n") == 1 and "Traceback" not in said


# ---- degrading and restoring


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.make_model(tmp_path_factory.mktemp("model") / "weights")


@pytest.fixture
def upscaled(tmp_path, model):
    """Arguments that degrade, restore and score with the smallest model."""
    root = sets.make_set(tmp_path / "root", lq=None)
    words = ["--dataset", "own", "--root", root, "--weights", model, "--ddpm_steps", "1", "-o", tmp_path / "out"]
    return [*words, "--lq", "bicubic_x4", *FAST]


def test_clips_are_degraded_restored_and_scored(tmp_path, upscaled, capfd):
    assert run(*upscaled, "--seeds", "2", "--seed", "7", "--bicubic") == 0
    found = read(tmp_path / "out")
    assert [(m["name"], m["seeds"]) for m in found["methods"]] == [("bicubic", [None]), ("mgld-vsr", [7, 8])]
    assert found["methods"][1]["seconds_per_frame"] > 0 and set(found["methods"][1]["weights"]) == {
        "mgldvsr_unet",
        "video_vae_cfw",
    }
    assert re.match(r"bicubic_x4, seed 0, settings \w{8}, pixels \w{16}", found["dataset"]["degradation"])
    first, second = (value(tmp_path / "out", "psnr", "mgld-vsr", seed=seed) for seed in (7, 8))
    line = next(t for t in found["table"] if (t["method"], t["metric"]) == ("mgld-vsr", "psnr"))
    assert first != second and line["sd"] > 0
    assert value(tmp_path / "out", "psnr", "bicubic") > first  # of random weights
    before = _stamps(tmp_path / "out")
    assert run(*upscaled, "--seeds", "2", "--seed", "7", "--bicubic") == 0  # all outputs exist
    assert {k: v for k, v in _stamps(tmp_path / "out").items() if not k.startswith("results")} == before
    assert read(tmp_path / "out")["rows"] == found["rows"]


def _stamps(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("results"))
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


@pytest.mark.slow  # restores clips in three runs
def test_an_interrupted_benchmark_resumes(tmp_path, upscaled, monkeypatch, capfd):
    assert run(*upscaled) == 0
    whole = read(tmp_path / "out")["rows"]
    shutil.rmtree(tmp_path / "out")
    done, restored = [], Restorer.restored

    def stop(self, clip, *args, **how):
        if done:
            raise KeyboardInterrupt
        done.append(clip.name)
        return restored(self, clip, *args, **how)

    with monkeypatch.context() as patched:
        patched.setattr(Restorer, "restored", stop)
        assert run(*upscaled) == 130
    assert "the same command resumes" in capfd.readouterr().err and not (tmp_path / "out/results.json").exists()
    before = _stamps(tmp_path / "out")
    assert len([name for name in before if name.startswith("scores")]) == 1
    assert run(*upscaled) == 0
    after = _stamps(tmp_path / "out")
    assert before.items() <= after.items() and read(tmp_path / "out")["rows"] == whole


@pytest.mark.slow  # restores clips in two runs
def test_frames_of_other_settings_are_refused(tmp_path, upscaled, capfd):
    assert run(*upscaled) == 0
    capfd.readouterr()
    assert run(*upscaled, "--dec_w", "0.25") == 2
    line = capfd.readouterr().err
    assert "made with settings.method.params.decoding.params.dec_w=0.5, now 0.25" in line and line.count("\n") == 1
    (tmp_path / "root/GT/000/00000001.png").write_bytes((tmp_path / "root/GT/000/00000002.png").read_bytes())
    shutil.rmtree(tmp_path / "out/lq")  # its clips would differ
    assert run(*upscaled) == 2 and "made with input" in capfd.readouterr().err


def test_scores_follow_their_frames(mini, scored, monkeypatch):
    assert run(*scored) == 0
    first, pushed, push = value(mini / "out", "psnr"), [], scoring._push_all
    monkeypatch.setattr(scoring, "_push_all", lambda clip, *rest: (pushed.append(clip.name), push(clip, *rest)))
    assert run(*scored) == 0 and not pushed
    shutil.copytree(mini / "UDM10/GT/000", mini / "ours/000", dirs_exist_ok=True)
    assert run(*scored) == 0 and pushed == ["000"]
    assert first is not None and value(mini / "out", "psnr") is None


def test_a_new_measure_keeps_the_cached_ones(mini, scored, monkeypatch):
    assert run(*scored) == 0
    before, asked, push = read(mini / "out")["rows"], [], scoring._push_all
    monkeypatch.setattr(
        scoring,
        "_push_all",
        lambda clip, result, made, report: (asked.append(made[0].name), push(clip, result, made, report)),
    )
    words = [word for word in scored if word not in FAST]
    assert run(*words, "--metrics", "psnr", "sharpness", "ssim", "psnr", "--no_report") == 0
    assert asked == ["sharpness", "sharpness"]
    rows = read(mini / "out")["rows"]
    assert [row["metric"] for row in rows] == ["psnr", "sharpness", "ssim"] * 2
    assert [row for row in rows if row["metric"] != "sharpness"] == before


def test_a_measure_that_failed_is_tried_again(mini, scored, monkeypatch):
    words = [word for word in scored if word not in FAST]
    words += ["--metrics", "lpips", "psnr", "--no_report"]
    monkeypatch.setattr(learned, "version_of", lambda package: "0.1")

    def fails(one, other):
        raise Unavailable("lpips failed: no weights")

    monkeypatch.setattr(learned, "lpips_score", lambda net, device: fails)
    assert run(*words) == 0 and value(mini / "out", "lpips") is None
    monkeypatch.setattr(learned, "lpips_score", lambda net, device: lambda one, other: 0.25)
    assert run(*words) == 0 and value(mini / "out", "lpips") == 0.25
    monkeypatch.setattr(learned, "lpips_score", lambda net, device: fails)
    assert run(*words) == 0 and value(mini / "out", "lpips") == 0.25  # kept


@pytest.mark.slow  # every allocation is traced
def test_memory_of_scoring_does_not_grow_with_the_clip(tmp_path):
    scores = scoring.Scores(tmp_path / "scores", ["psnr", "ssim", "e_warp", "tof"], Options())

    def peak(frames):
        truth, result = (sets.make_clip(tmp_path / f"{kind}{frames}", frames=frames) for kind in ("gt", "sr"))
        clip = Clip("c", video.probe(truth), None, frames, sets.SIZE)
        tracemalloc.start()
        scores.of(clip, video.probe(result), place=f"{frames}", report=lambda done, total: None)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(4)  # one-time allocations
    frame = sets.SIZE[0] * sets.SIZE[1] * 3
    assert peak(40) < peak(8) + 8 * frame


def test_limits_are_reported(mini, scored):
    assert run(*scored, "--max_clips", "1", "--max_frames", "2") == 0
    found = read(mini / "out")
    assert [clip["frames"] for clip in found["clips"]] == [2] and found["dataset"]["cut"] == {
        "max_clips": 1,
        "max_frames": 2,
    }
    assert len(next(c for c in found["curves"] if c["metric"] == "psnr")["values"]) == 2
    assert any("At most 2 frames of each clip" in note for note in found["notes"])
