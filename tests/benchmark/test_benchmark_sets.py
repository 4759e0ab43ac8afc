"""Test sets: every YAML file builds, every layout is recognised, and incomplete clips are reported."""

import pytest

from ldm import video
from ldm.benchmark.inspection import paired
from scripts import benchmark
from tests.scripts import sets

NAMES = sorted(path.stem for path in benchmark.SETS.glob("*.yaml"))
REDS4 = ("000", "011", "015", "020")
LAYOUTS = [  # set, folders of truth and LQ, clips, suffix, kind of LQ
    ("udm10", "GT", "LQ", ("000", "001"), "", "given"),
    ("udm10", "GT-Video", "LQ-Video", ("000", "001"), ".mkv", "given"),
    ("udm10", "gt", "lq", ("a", "b"), "", "given"),
    ("udm10", "GT", "BIx4", ("a", "b"), "", "bicubic_x4"),
    ("udm10", "hr", "lr", ("a", "b"), "", "given"),
    ("udm10", "UDM10/GT", "UDM10/LQ", ("a", "b"), "", "given"),
    ("spmcs", "{clip}/truth", "{clip}/input4", ("car05_001", "hk004_001"), "", "input4"),
    ("vid4", "GT", "BDx4", ("calendar", "walk"), "", "blur_down_x4"),
    ("reds4", "train_sharp", "train_sharp_bicubic/X4", (*REDS4, "001"), "", "bicubic_x4"),
    ("reds4", "REDS/train/train_sharp", "REDS/train/train_sharp_bicubic/X4", REDS4, "", "bicubic_x4"),
    ("reds4", "GT", "sharp_bicubic", REDS4, "", "bicubic_x4"),
    ("reds4", ".", None, REDS4, "", None),
    ("reds30", "train_sharp", "train_sharp_bicubic/X4", ("000", "240", "269"), "", "bicubic_x4"),
    ("reds30", "val_sharp", "val_sharp_bicubic/X4", ("000", "029"), "", "bicubic_x4"),
    ("videolq", None, "Input", ("000", "001"), "", "given"),
    ("videolq", None, ".", ("000", "001"), "", "given"),
    ("youhq40", "GT", None, ("000", "001"), "", None),
    ("realvsr", "GT", "LQ", ("000", "001"), "", "given"),
    ("mvsr4x", "gt", "lq", ("000", "001"), "", "given"),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_set_builds_and_names_the_source_of_its_values(name):
    dataset = benchmark.read_set(name)
    assert dataset.layouts and dataset.metrics and dataset.lq
    for table in dataset.published.values():
        assert {"source", "protocol", "lq", "methods"} <= set(table) <= {
            "source", "protocol", "lq", "methods", "tolerance", "scale", "clips",
        }  # fmt: skip
        assert all(isinstance(value, float) for figures in table["methods"].values() for value in figures.values())
    if dataset.published and name not in ("own",):
        assert any({"MGLD-VSR", "StableVSR"} & set(table["methods"]) for table in dataset.published.values())


@pytest.mark.parametrize(("name", "gt", "lq", "clips", "suffix", "kind"), LAYOUTS)
def test_layouts_are_recognised(tmp_path, name, gt, lq, clips, suffix, kind):
    sets.make_set(tmp_path, gt=gt, lq=lq, clips=clips, suffix=suffix)
    found = benchmark.read_set(name).find(tmp_path)
    assert list(found.lq) == ([kind] if kind else []) and bool(found.gt) == (gt is not None)
    expected = {"reds4": list(REDS4), "reds30": ["000", "029"]}.get(name, sorted(clips))
    assert found.names == expected and found.lines[0].startswith(benchmark.read_set(name).title)
    for name_of_clip, path in found.lq.get(kind, {}).items():
        assert path.exists() and (name_of_clip in str(path) or name == "reds30")


def test_the_archive_of_vimeo_is_read_by_its_list(tmp_path):
    clips = ("00001/0266", "00001/0268", "00002/0001")
    sets.make_set(tmp_path, gt="sequences/{clip}", lq="sequences_BIx4/{clip}", clips=clips)
    (tmp_path / "sep_testlist.txt").write_text("00001/0266\n\n00002/0001\n00003/0007\n")
    found = benchmark.read_set("vimeo90k").find(tmp_path)
    assert found.names == ["00001_0266", "00002_0001"] and list(found.lq) == ["bicubic_x4"]
    assert found.gt["00001_0266"] == tmp_path / "sequences" / "00001" / "0266"
    assert found.lq["bicubic_x4"]["00002_0001"] == tmp_path / "sequences_BIx4" / "00002" / "0001"
    (tmp_path / "sep_testlist.txt").write_text("../elsewhere\n")
    with pytest.raises(ValueError, match="got ../elsewhere, expected paths below"):
        benchmark.read_set("vimeo90k").find(tmp_path)


def test_renamed_clips_are_the_validation_part(tmp_path):
    sets.make_set(tmp_path, gt="train_sharp", lq=None, clips=("000", "029", "240"))
    found = benchmark.read_set("reds30").find(tmp_path)
    assert {name: path.name for name, path in found.gt.items()} == {"000": "240"}
    training = sets.make_set(tmp_path / "t", gt="train_sharp", lq=None, clips=("000", "029"))
    with pytest.raises(ValueError, match="no layout of REDS30 fits"):
        benchmark.read_set("reds30").find(training)


def test_the_kind_of_lq_is_chosen(tmp_path):
    root = sets.make_set(tmp_path, gt="GT", lq="BIx4")
    sets.make_set(root, gt=None, lq="BDx4")
    dataset = benchmark.read_set("udm10")
    found = dataset.find(root)
    assert set(found.lq) == {"bicubic_x4", "blur_down_x4"}
    assert benchmark.choose_lq(dataset, found, None, needed=True) == "realbasicvsr"  # it can be made
    assert benchmark.choose_lq(dataset, found, None, needed=False) == "bicubic_x4"  # it exists
    assert benchmark.choose_lq(dataset, found, "blur_down_x4", needed=True) == "blur_down_x4"
    assert benchmark.choose_lq(benchmark.read_set("vid4"), found, None, needed=True) == "bicubic_x4"
    alone = dataset.find(sets.make_set(tmp_path / "alone", lq=None))
    assert benchmark.choose_lq(dataset, alone, None, needed=False) is None  # unknown: the input of results in folders
    with pytest.raises(ValueError, match="no folder of LQ was found"):
        benchmark.choose_lq(dataset, found, "given", needed=True)


def test_a_folder_of_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "things").mkdir()
    with pytest.raises(ValueError, match=r"no layout of Vid4 fits; expected one of GT/, LQ/") as error:
        benchmark.read_set("vid4").find(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such folder"):
        benchmark.read_set("vid4").find(tmp_path / "no")


def test_truth_and_lq_match(tmp_path):
    sources = {
        name: sets.make_clip(tmp_path / name, shrink=shrink, frames=frames)
        for name, shrink, frames in (("gt", 1, 3), ("lq", 4, 3), ("half", 2, 3), ("short", 4, 2))
    }
    gt, lq, half, short = map(video.probe, sources.values())
    assert paired("c", gt, lq, 4, None).size == sets.SIZE and paired("c", gt, lq, 4, 2).frames == 2
    assert paired("c", gt, None, 5, None).size == (60, 95) and paired("c", None, lq, 4, None).gt is None
    for other, scale, says in (
        (half, 4, "expected 1/4 of the truth's 96x64"),
        (short, 4, "has 2 frames and the truth"),
    ):
        with pytest.raises(ValueError, match=says):
            paired("c", gt, other, scale, None)


def test_differences_from_the_published_set_are_reported(tmp_path):
    root = sets.make_set(tmp_path, gt="GT", lq=None, clips=("000", "011"))
    dataset = benchmark.read_set("reds4")
    found = dataset.find(root)
    clips = [paired(name, video.probe(path), None, 4, None) for name, path in found.gt.items()]
    said = " | ".join(dataset.differences(clips))
    assert (
        "2 of 4 clips, without 015, 020" in said and "100 frames: 000 (4)" in said and "1280x720: 000 (96x64)" in said
    )
