"""VMAF against recorded values, where an ffmpeg has it; ffmpeg and DOVER by stand-ins elsewhere."""

import gc
import json
import math
import stat
import sys

import numpy as np
import pytest

from ldm import video
from ldm.metrics import video_quality as module
from ldm.metrics.protocol import Options, measures
from ldm.metrics.scored_frame import ScoredFrame, Unavailable

RNG = np.random.default_rng(0)
FFMPEG = """#!{python}
import json, sys
words = " ".join(sys.argv[1:])
if "-filters" in words:
    print(" ... libvmaf           VV->V      Calculate the VMAF.")
elif "-version" in words:
    print("ffmpeg version 9.9-test Copyright")
else:
    {act}
"""
ACT = """json.dump({"words": words, "frames": [{"metrics": {"vmaf": v}} for v in (80.0, 90.0)],
               "pooled_metrics": {"vmaf": {"mean": 85.0}}}, open("vmaf.json", "w"))"""
DOVER = """import argparse, pathlib
parser = argparse.ArgumentParser()
for word in ("-v", "-d"):
    parser.add_argument(word)
parser.add_argument("-f", action="store_true")
args = parser.parse_args()
assert args.f and args.d == "cpu" and pathlib.Path(args.v).stat().st_size and pathlib.Path("dover.yml").exists()
"""


def program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def stand_in(folder, act=ACT):
    return program(folder / "ffmpeg", FFMPEG.format(python=sys.executable, act=act))


def frames(count=2, h=34, w=46):
    return [RNG.integers(0, 256, (h, w, 3), dtype=np.uint8) for _ in range(count)]


def pushed(measure, clip, truth=None):
    for number, frame in enumerate(clip):
        measure.push(frame, None if truth is None else truth[number])
    return measure


def test_frames_lose_nothing_on_the_way(tmp_path):
    clip = frames(3, 35, 47)
    film = module._Film(tmp_path / "clip.mkv")
    assert not film.close()
    for frame in clip:
        film.add(frame)
    assert film.close()
    np.testing.assert_array_equal(list(video.read(tmp_path / "clip.mkv")), clip)


def test_the_figure_and_the_frames_of_vmaf(tmp_path):
    (measure,) = measures(["vmaf:model=neg"], options=Options(ffmpeg=stand_in(tmp_path)))
    assert measure.missing is None
    assert measure.protocol == "vmaf_v0.6.1neg (libvmaf of ffmpeg 9.9-test), yuv420p, mean over frames, all frames"
    clip = frames()
    assert pushed(measure, clip, clip).figures() == {"vmaf:model=neg": 85}
    assert measure.per_frame() == [80, 90]


def test_the_output_comes_first_and_the_model_is_named(tmp_path):
    act = f"{ACT}\n    import shutil; shutil.copy('vmaf.json', {str(tmp_path / 'kept.json')!r})"
    (measure,) = measures(["vmaf"], options=Options(ffmpeg=stand_in(tmp_path, act)))
    pushed(measure, frames(), frames()).figures()
    words = json.loads((tmp_path / "kept.json").read_text())["words"]
    assert words.index("-i output.mkv") < words.index("-i truth.mkv")
    assert "[a][b]libvmaf=model=version=vmaf_v0.6.1:" in words


def test_an_ffmpeg_that_fails_is_the_reason(tmp_path):
    act = "sys.exit('first line\\nno such model')"
    (measure,) = measures(["vmaf"], options=Options(ffmpeg=stand_in(tmp_path, act)))
    assert math.isnan(pushed(measure, frames(), frames()).figures()["vmaf"])
    assert measure.missing == "ffmpeg failed: no such model"


def test_what_is_no_ffmpeg_with_libvmaf(tmp_path, monkeypatch):
    for named in (program(tmp_path / "other", "#!/bin/sh\necho nothing\n"), tmp_path / "none"):
        with pytest.raises(Unavailable, match=f"{named.name} is no ffmpeg with libvmaf"):
            module.find_ffmpeg(named)
    monkeypatch.setattr(module, "_packaged_ffmpeg", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="pip install imageio-ffmpeg"):
        module.find_ffmpeg()
    stand_in(tmp_path)
    assert module.find_ffmpeg()[1] == "9.9-test"


def test_temporary_files_go(tmp_path):
    vmaf = module.Vmaf(stand_in(tmp_path), "default")
    folder = vmaf._folder
    vmaf.push(None, ScoredFrame(*frames()))
    assert folder.is_dir()
    vmaf.finish()
    assert not folder.exists()
    dropped = module.Vmaf(tmp_path / "ffmpeg", "default")
    folder = dropped._folder
    dropped.push(None, ScoredFrame(*frames()))
    del dropped
    gc.collect()
    assert not folder.exists()


def checkout(folder, end):
    (folder / "dover.yml").write_text("")
    (folder / "evaluate_one_video.py").write_text(DOVER + end)
    return Options(dover=folder)


def test_the_fused_score_of_dover(tmp_path):
    end = "print('0.61'); print('Normalized fused overall score (scale in [0,1]):', 0.7481)"
    (measure,) = measures(["dover"], options=checkout(tmp_path, end))
    assert pushed(measure, frames()).figures() == {"dover": 0.7481}
    assert "fused" in measure.protocol and not measure.reference


def test_dover_draws_the_same_in_every_run(tmp_path):
    end = "import numpy, random\nvalue = numpy.random.rand() + random.random()\n"
    options = checkout(tmp_path, f"{end}print('Normalized fused overall score:', value)")
    figures = {pushed(measures(["dover"], options=options)[0], frames()).figures()["dover"] for _ in range(2)}
    assert len(figures) == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [("raise SystemExit('DOVER.pth: no such file')", "DOVER.pth: no such file"), ("print('0.7')", "no fused score")],
)
def test_a_script_that_fails_is_the_reason(tmp_path, end, reason):
    (measure,) = measures(["dover"], options=checkout(tmp_path, end))
    assert math.isnan(pushed(measure, frames()).figures()["dover"])
    assert reason in measure.missing


def test_dover_needs_its_code(tmp_path):
    missing = [measures(["dover"], options=Options(dover=folder))[0].missing for folder in (None, tmp_path)]
    assert "needs a checkout" in missing[0] and "no evaluate_one_video.py" in missing[1]
    options = checkout(tmp_path, "")
    (tmp_path / "dover.yml").write_text("name: DOVER\ntest_load_path: ./weights/DOVER.pth\n")
    (measure,) = measures(["dover"], options=options)
    assert measure.missing.startswith("no ./weights/DOVER.pth in")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "DOVER.pth").touch()
    assert measures(["dover"], options=options)[0].missing is None
