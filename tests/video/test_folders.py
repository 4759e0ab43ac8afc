"""One rule for folders: what counts, what is passed over and said, and what is refused because either may be meant."""

import numpy as np
import pytest

from basicsr_deg.clips import find_clips, read_pictures
from basicsr_deg.reds import find_reds
from ldm.video import VideoError, clips_in, probe
from ldm.video.folders import gaps
from tests.video.clips import save
from tests.video.films import film

PICTURE = np.zeros((8, 8, 3), np.uint8)


def pictures(folder, *names):
    for name in names or [f"{k:08d}.png" for k in range(4)]:
        save(folder / name, PICTURE)


def names(paths):
    return [path.name for path in paths]


@pytest.fixture
def films(tmp_path):
    for name in ("a.mp4", "b.3gp"):
        film(tmp_path / name, 2, format="mp4", encoder={"bf": "0"})
    return tmp_path


@pytest.mark.parametrize(
    "posters", [["folder.jpg"], ["a-thumb.jpg", "b.png"], ["poster.png", "movie-fanart.jpg", "a.jpg"]]
)
def test_posters_beside_films_are_passed_over_and_named(films, posters, caplog):
    pictures(films, *posters)
    assert names(clips_in(films)) == ["a.mp4", "b.3gp"]
    assert all(name in caplog.text for name in posters)
    assert len(find_clips(films)[1]) == 2


def test_frames_beside_films_are_refused(films):
    pictures(films)
    for look in (clips_in, find_clips):
        with pytest.raises(VideoError, match="4 pictures and 2 videos.*name the clip that is meant"):
            look(films)


def test_all_containers_people_have_are_taken_and_what_is_left_is_named(tmp_path, caplog):
    suffixes = (".3gp", ".vob", ".ogv", ".mxf", ".asf", ".m2v", ".divx", ".f4v", ".MP4")
    for suffix in suffixes:
        (tmp_path / f"x{suffix}").write_bytes(b"anything")
    for name in ("list.m3u8", "sound.mp3", "._x.mp4", "notes.txt", "x.mp4.json"):
        (tmp_path / name).write_bytes(b"anything")
    assert len(clips_in(tmp_path)) == len(suffixes)
    assert "2 entries are passed over: list.m3u8, sound.mp3" in caplog.text


@pytest.mark.parametrize("inside", ["mask", "@eaDir/00000000.png", ".thumbs", "__MACOSX"])
def test_folders_inside_a_clip_do_not_replace_it(tmp_path, inside):
    pictures(tmp_path / "set" / "100")
    pictures(tmp_path / "set" / "100" / inside)
    pictures(tmp_path / "set" / "101")
    assert [clip.name for clip in find_clips(tmp_path / "set")[1]] == ["100", "101"]
    assert names(clips_in(tmp_path / "set")) == ["100", "101"]
    assert probe(tmp_path / "set" / "100").frames == 4


def test_a_picture_beside_clips_is_a_poster_or_refused(tmp_path):
    pictures(tmp_path / "1")
    pictures(tmp_path / "2")
    pictures(tmp_path, "cover.jpg")
    assert names(clips_in(tmp_path)) == ["1", "2"]
    pictures(tmp_path, "p.png")
    (tmp_path / "cover.jpg").unlink()
    with pytest.raises(VideoError, match="1 pictures and 2 folders"):
        clips_in(tmp_path)


def test_links_count_once_and_circles_end(tmp_path):
    pictures(tmp_path / "100")
    pictures(tmp_path / "101")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "100" / "up").symlink_to("..")
    (tmp_path / "000").symlink_to("100")
    assert [clip.name for clip in find_clips(tmp_path)[1]] == ["100", "101"]
    assert names(clips_in(tmp_path)) == ["100", "101"]
    assert len(read_pictures(tmp_path)) == 8


def test_photographs_leave_out_what_is_hidden(tmp_path):
    pictures(tmp_path / "p")
    (tmp_path / "p" / "._00000000.png").write_bytes(b"\0\5\x16\7")
    pictures(tmp_path / "p" / ".trash")
    pictures(tmp_path / "p" / "album.png", "1.jpg")
    assert len(read_pictures(tmp_path / "p")) == 5


def test_the_four_test_clips_are_left_out_wherever_they_lie(tmp_path, caplog):
    held_out = ["000", "011", "015", "020"]
    for name in ("train/train_sharp/000", "train/train_sharp/001", "train/train_sharp/011", "val/val_sharp/000"):
        pictures(tmp_path / "REDS" / name)
    for root in ("REDS", "REDS/train", "REDS/train/train_sharp"):
        chosen = [clip.name for clip in find_clips(tmp_path / root, without=held_out)[1]]
        assert [name.rpartition("/")[2] for name in chosen] == ["001"], root
        assert [clip.name for clip in find_reds(tmp_path / root, train=True, partition="REDS4", meta=None)[1]] == [
            "001"
        ]
    assert "without=015,020 matches none of the clips, " in caplog.text


def test_patterns_may_be_left_out_but_are_lists(tmp_path):
    pictures(tmp_path / "a")
    assert len(find_clips(tmp_path, only=None, without=None)[1]) == 1
    with pytest.raises(ValueError, match=r"without='a', expected a list such as \[a\]"):
        find_clips(tmp_path, without="a")
    with pytest.raises(ValueError, match="variables such as .HOME are not expanded"):
        find_clips("$HOME/clips")


@pytest.mark.parametrize(("found", "missing"), [
    (["1.png", "2.png", "5.png", "6.png", "7.png"], ["3 to 4"]), (["f08.png", "f09.png", "f11.png"], ["10"]),
    (["a.png", "b.png"], []), (["1.png", "3.png", "5.png"], []), (["f².png", "f³.png"], []), ([], []),
])  # fmt: skip
def test_numbers_that_are_missing_are_found(found, missing):
    assert gaps(found) == missing


def test_lost_frames_are_said(tmp_path, caplog):
    pictures(tmp_path / "c", "1.png", "2.png", "4.png", "5.png", "f².png"[:0] or "6.png")
    assert "numbers are missing between the images' names: 3" in probe(tmp_path / "c").notes
    find_clips(tmp_path)
    assert "numbers are missing between the frames' names: 3" in caplog.text


def test_digits_that_are_no_decimals_do_no_harm(tmp_path):
    pictures(tmp_path / "c", "f².png", "f³.png", "f10.png", "f9.png")
    assert find_clips(tmp_path)[1][0].files[0].name == "f9.png"
