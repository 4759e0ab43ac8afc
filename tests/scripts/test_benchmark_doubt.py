"""benchmark.py scores the right frames or none: ambiguous inputs are refused, repaired or reported."""

import shutil

import av
import pytest

from ldm import video
from ldm.report.page import report_of
from scripts import benchmark
from tests.marks import mostly_slow
from tests.scripts import sets, toy
from tests.scripts.sets import FAST, read, run, value


@pytest.fixture
def mini(tmp_path):
    """A set in DOVE's layout with results of one method."""
    return sets.make_both(tmp_path, "set")


@pytest.fixture
def own(mini):
    """Arguments that use it as a set of own clips."""
    return ["--dataset", "own", "--root", mini / "set", "-o", mini / "out", *FAST]


def test_lq_is_made_from_the_present_truth(mini, own, capfd):
    shutil.rmtree(mini / "set/LQ")
    own += ["--results", mini / "ours", "--bicubic", "--lq", "bicubic_x4"]
    assert run(*own) == 0
    first = value(mini / "out", "psnr", "bicubic")
    shutil.copytree(mini / "set/GT/001", mini / "set/GT/000", dirs_exist_ok=True)
    frame = mini / "set/GT/000/00000001.png"
    frame.write_bytes((mini / "set/GT/000/00000003.png").read_bytes())
    assert run(*own) == 2 and "000: was made from other frames than" in capfd.readouterr().err
    shutil.rmtree(mini / "out/lq")
    assert run(*own) == 0 and value(mini / "out", "psnr", "bicubic") != first


@pytest.mark.slow  # three runs with a model
@pytest.mark.parametrize(
    "harm", [lambda path: path.write_bytes(path.with_name("00000003.png").read_bytes()), lambda path: path.unlink()]
)
def test_changed_frames_are_made_again(mini, own, capfd, harm, tmp_path_factory):
    model = toy.make_model(tmp_path_factory.mktemp("model") / "weights")
    own += ["--weights", model, "--ddpm_steps", "1", "--bicubic"]
    assert run(*own) == 0
    first = read(mini / "out")["rows"]
    harm(mini / "out/sr/bicubic/given-x4/000/00000001.png")
    assert run(*own) == 0 and read(mini / "out")["rows"] == first  # made again
    harm(mini / "out/sr/mgld-vsr/given-x4/seed42/000/00000001.png")
    assert run(*own) == 2 and "000: its frames have changed since they were written" in capfd.readouterr().err


def test_results_without_a_truth_have_the_size_of_the_scale(mini, capfd):
    words = ["--dataset", "videolq", "--root", mini / "set/LQ", "--results", mini / "ours", "-o", mini / "out"]
    assert run(*words, "--scale", "2", "--metrics", "e_warp_quantvsr", "--no_report") == 2
    assert "got frames of 96x64, expected 48x32 for clip 000 (--scale?)" in capfd.readouterr().err
    assert run(*words, "--metrics", "e_warp_quantvsr", "--no_report") == 0


@pytest.mark.parametrize(
    ("numbers", "says"),
    [((2, 3), "numbered 2, 3 ..., the clip's 0, 1, 2"), ((0, 2), "numbered 0, 2 ..."), ((0, 1), None), ((1, 2), None)],
)
def test_few_results_are_the_first_frames(mini, own, capfd, numbers, says):
    for clip in ("000", "001"):
        for path in (mini / "ours" / clip).iterdir():
            if int(path.stem) not in numbers:
                path.unlink()
    if numbers == (1, 2):  # of a clip numbered from 1
        for path in [*(mini / "set").rglob("*.png")][::-1]:
            path.rename(path.with_name(f"f{int(path.stem) + 1:03d}.png"))
        for path in (mini / "ours").rglob("*.png"):
            path.rename(path.with_name(f"f{int(path.stem):03d}_x4.png"))
    status, said = run(*own, "--results", mini / "ours", "--max_frames", "2"), capfd.readouterr().err
    assert status == (2 if says else 0) and (says is None or says in said)


def test_flags_add_up_and_names_may_have_dots(mini, own):
    sets.make_results(mini / "b", noise=8)
    assert (
        run(*own, "--results", f"ours={mini / 'ours'}", "--results", f"dove-1.0={mini / 'b'}", "--metrics", "tof") == 0
    )
    found = read(mini / "out")
    assert [method["name"] for method in found["methods"]] == ["ours", "dove-1.0"]
    assert [metric["name"] for metric in found["metrics"]] == ["psnr", "ssim", "tof"]


@pytest.mark.parametrize(
    "words", [["method.params.seed=3"], ["--config", "nope.yaml"], ["--memory", "1G"], ["--ddpm_steps", "2"]]
)
def test_settings_without_a_model_are_refused(mini, own, capfd, words):
    assert run(*own, "--results", mini / "ours", *words) == 2
    assert "nothing is upscaled" in capfd.readouterr().err


def test_omitted_clips_are_reported(mini, own, capfd):
    shutil.rmtree(mini / "set/GT/001")
    (mini / "set/GT/002").mkdir()
    (mini / "set/GT/002/frame.tga").write_bytes(b"x")
    (mini / "set/GT/003").symlink_to(mini / "nowhere")
    sets.make_clip(mini / "set/low/000", shrink=4)
    assert run(*own, "--results", mini / "ours") == 0
    notes = " ".join(read(mini / "out")["notes"])
    assert "LQ (given) without a truth, left out: 001." in notes
    assert "GT/002 holds no frames that can be read" in notes and "GT/003 holds no" in notes
    assert "not used: low" in capfd.readouterr().out


def test_clips_are_found_in_any_case_and_under_our_file_names(mini, own):
    for place, name in (("set/GT", "Car.1"), ("set/LQ", "car.1"), ("ours", "CAR.1")):
        (mini / place / "000").rename(mini / place / name)
    assert run(*own, "--results", mini / "ours", "--bicubic") == 0
    first = value(mini / "out", "psnr", "bicubic", clip="Car.1")
    assert value(mini / "out", "psnr", clip="Car.1") is not None
    assert run(*own, "--results", f"again={mini / 'out/sr/bicubic/given-x4'}") == 0
    assert value(mini / "out", "psnr", "again", clip="Car.1") == first


def test_hidden_files_are_ignored(mini, own):
    assert run(*own, "--results", mini / "ours", "--bicubic") == 0
    first = read(mini / "out")["rows"]
    for folder in ("out/sr/bicubic/given-x4/000", "ours/000", "set/GT/000"):
        (mini / folder / ".DS_Store").write_bytes(b"x")
        (mini / folder / "Thumbs.db").write_bytes(b"x")
    assert run(*own, "--results", mini / "ours", "--bicubic") == 0 and read(mini / "out")["rows"] == first


def test_a_clip_called_like_a_video_is_a_folder_of_frames(mini, own):
    for place in ("set/GT", "set/LQ", "ours"):
        (mini / place / "000").rename(mini / place / "a.mp4")
        (mini / place / "001").rename(mini / place / "v1.2")
    assert run(*own, "--results", mini / "ours", "--bicubic") == 0
    folders = [path.name for path in (mini / "out/sr/bicubic/given-x4").iterdir() if path.is_dir()]
    assert sorted(folders) == ["a%2Emp4", "v1%2E2"]
    assert value(mini / "out", "psnr", clip="a.mp4") is not None


def test_pictures_beside_folders_and_clips_of_one_name_are_refused(mini, own, capfd):
    own += ["--results", mini / "ours"]
    frame = (mini / "ours/000/00000000.png").read_bytes()
    (mini / "ours/grid.png").write_bytes(frame)
    assert run(*own) == 2 and "(grid.png beside 000, 001)" in capfd.readouterr().err
    (mini / "ours/grid.png").unlink()
    sets.make_clip(mini / "ours/000.mkv")
    assert run(*own) == 2 and "expected one clip of the name 000" in capfd.readouterr().err
    (mini / "ours/000.mkv").rename(mini / "set/demo.mkv")
    shutil.copy(mini / "set/demo.mkv", mini / "set/demo.mp4")  # not part of a used layout
    assert run(*own) == 0


def test_videos_of_full_chroma_are_not_noted(mini, own):
    for name in ("000.mp4", "001.mov"):
        path = sets.make_clip(mini / "ours" / name)
        shutil.rmtree(path.with_suffix(""))
        source = path.rename(path.with_name(f"lossless{path.suffix}"))
        codec, pixels = ("libx264", "yuvj444p") if path.suffix == ".mp4" else ("qtrle", "argb")
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height, stream.width, stream.pix_fmt = *sets.SIZE, pixels
            for frame in video.read(source, as_rgb8=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        source.unlink()
    assert run(*own, "--results", mini / "ours") == 0
    assert not any("halved colour" in note for note in read(mini / "out")["notes"])


def test_a_truth_with_subsampled_chroma_is_noted(mini, own):
    frames = toy.make_frames(sets.FRAMES, *sets.SIZE)
    shutil.rmtree(mini / "set/GT")
    for clip in ("000", "001"):
        with video.open_writer(
            sets.make_clip(mini / f"set/GT/{clip}.mkv").with_suffix(".mp4"), size=sets.SIZE
        ) as writer:
            for frame in frames:
                writer.write(frame)
        (mini / f"set/GT/{clip}.mkv").unlink()
    assert run(*own, "--results", mini / "ours") == 0
    assert any("Clips of the truth have halved colour (000.mp4)" in note for note in read(mini / "out")["notes"])


def test_a_frame_equal_to_the_truth_is_named(mini, own):
    shutil.copy(mini / "set/GT/000/00000002.png", mini / "ours/000/00000002.png")
    assert run(*own, "--results", mini / "ours") == 0
    assert read(mini / "out")["rows"][0]["reason"] == "inf (equal to the truth in frame 2)"


def test_an_output_that_cannot_be_written_is_refused_before_any_work(mini, own, capfd):
    (mini / "file").write_text("x")
    own[own.index("-o") + 1] = mini / "file" / "out"
    assert run(*own, "--results", mini / "ours") == 2 and "file: is a file; choose another -o" in capfd.readouterr().err


@mostly_slow(
    ("change", "says"),
    [
        ("clips: [000, 011]", "got clips: [0, 9], expected a list of names, each in quotes"),
        ("size: 5", "size: got 5, expected a list"),
        ("size: [3]", "expected width and height"),
        ("frames: abc", "got frames: abc"),
        ("scale: 0", "got scale: 0"),
        ("published: {x: {source: a, protocol: b, lq: given}}", "published x: got no methods"),
        ("published: {x: {source: a, protocol: b, lq: given, methods: {m: {psnr: .nan}}}}", "got psnr: nan"),
        ("published: {x: {source: a, protocol: b, lq: given, methods: {0: {psnr: 1}}}}", "got 0, expected a name"),
        ("published: 5", "published"),
        ("metrics: psnr", "metrics: got 'psnr', expected a list"),
        ("lq: null", "lq: got None, expected a list"),
        ("layouts: {x: {gt: 5}}", "layout x: got {'gt': 5}, expected folders"),
        ("renamed: [a]", "got 1 renamed clips"),
        ("published: {x: {source: a, protocol: b, lq: given, methods: {m: {psnr: high}}}}", "got psnr: high"),
    ],
    fast=6,
)
def test_the_file_of_an_own_set_is_checked(mini, own, capfd, change, says):
    (mini / "mine.yaml").write_text(f"include: [{benchmark.SETS / 'own.yaml'}]\nbenchmark:\n  params:\n    {change}\n")
    own[1] = mini / "mine.yaml"
    assert run(*own, "--results", mini / "ours") == 2
    said = capfd.readouterr().err
    assert says in said and said.count("\n") == 1


def test_the_report_shows_scored_frames_only(mini, own):
    assert run(*[word for word in own if word != "--no_report"], "--results", mini / "ours") == 0
    text = (mini / "out/report.html").read_text()
    assert text.count('class="stage"') == 2 and "No pictures" not in text
    shutil.copy(mini / "set/GT/000/00000001.png", mini / "ours/000/00000002.png")
    report_of(mini / "out")
    text = (mini / "out/report.html").read_text()
    assert text.count('class="stage"') == 1 and "ours/000: has changed since it was scored" in text
