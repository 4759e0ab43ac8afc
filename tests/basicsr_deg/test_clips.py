"""Clip sources: layouts are recognised, frames come back as they were written, wrong folders are named."""

import logging
import struct

import av
import cv2
import numpy as np
import pytest

from basicsr_deg.clips import RenderedScenes, folder_clips
from basicsr_deg.reds import reds_clips
from ldm import config
from ldm.video import reading

HEIGHT, WIDTH = 24, 32


def frame(clip, number):
    """A picture that says which it is: red the clip, green the number of the frame."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[..., 0], picture[..., 1] = 20 * clip, 5 * number
    picture[:4, :6, 2] = 250  # and which way up
    return picture


def write_pictures(folder, clip, count, names="{:08d}.png"):
    folder.mkdir(parents=True)
    for number in range(count):
        assert cv2.imwrite(str(folder / names.format(number)), frame(clip, number)[..., ::-1])


def write_film(path, clip, count, gop=4):
    """Lossless H.264 with key frames and frames that refer to later ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"qp": "0", "g": str(gop), "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb24"
        for number in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(clip, number), format="rgb24")))
        container.mux(stream.encode())


def shown(clip):
    """(clip, numbers of its frames) that pictures of `frame` show."""
    assert clip.dtype == np.uint8 and clip.shape[1:] == (HEIGHT, WIDTH, 3)
    for picture in clip:
        np.testing.assert_array_equal(picture, frame(picture[0, 0, 0] // 20, picture[0, 0, 1] // 5))
    return int(clip[0, 0, 0, 0]) // 20, (clip[:, 0, 0, 1] // 5).tolist()


def generator(seed=0):
    return np.random.default_rng(seed)


def test_a_folder_of_clips_gives_consecutive_frames_from_any_start(tmp_path):
    for clip in range(3):
        write_pictures(tmp_path / f"c{clip}", clip, 5)
    source = folder_clips(str(tmp_path))
    assert [source.name(k) for k in range(len(source))] == ["c0", "c1", "c2"]
    starts = set()
    for seed in range(30):
        clip, numbers = shown(source.clip(seed % 3, generator(seed), 3))
        assert clip == seed % 3 and np.diff(numbers).tolist() == [1, 1]
        starts.add(numbers[0])
    assert starts == {0, 1, 2}
    assert shown(source.clip(0, generator(), 3, step=2)) == (0, [0, 2, 4])


def test_frames_are_taken_in_counting_order(tmp_path):
    write_pictures(tmp_path / "c", 0, 12, names="{}.png")
    assert shown(folder_clips(str(tmp_path)).clip(0, generator(), 12))[1] == list(range(12))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])  # the second does not say how many frames it has
def test_a_film_gives_the_frames_that_went_in(tmp_path, suffix):
    write_film(tmp_path / f"film{suffix}", 2, 13)
    source = folder_clips(str(tmp_path))
    assert len(source) == 1 and source.long_enough(13) == [0]
    starts = set()
    for seed in range(90):
        clip, numbers = shown(source.clip(0, generator(seed), 4))
        assert clip == 2 and np.diff(numbers).tolist() == [1, 1, 1]
        starts.add(numbers[0])
    assert starts == set(range(10))


def test_a_film_is_decoded_from_a_key_frame(tmp_path, monkeypatch):
    write_film(tmp_path / "film.mkv", 0, 30)
    seeks, decode = [], reading.decode
    monkeypatch.setattr(reading, "decode", lambda *args, **kwargs: seeks.append(kwargs) or decode(*args, **kwargs))
    for seed in range(10):
        shown(folder_clips(str(tmp_path)).clip(0, generator(seed), 3))
    assert all(made["threads"] == 1 for made in seeks)
    assert sum(made.get("seek") is not None for made in seeks) >= 8, "but for clips that begin with frame 0"


def test_layouts_are_recognised_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, "basicsr_deg")
    write_pictures(tmp_path / "alone", 1, 2)
    write_film(tmp_path / "mixed/film.mp4", 0, 3)
    write_pictures(tmp_path / "mixed/pictures", 1, 3)
    for name in ("pairs/GT/a", "pairs/LQ/a", "stable/hr/a", "stable/lr/a", "spmcs/a/truth", "spmcs/a/input4"):
        write_pictures(tmp_path / name, 1 if name.split("/")[-2] in ("GT", "hr") or name.endswith("truth") else 3, 2)
    write_film(tmp_path / "films/sub/x.mkv", 0, 3)
    for root, names, what in [
        ("alone", ["alone"], "one clip of pictures"),
        ("mixed", ["film", "pictures"], "video files and folders"),
        ("mixed/film.mp4", ["film"], "one video"),
        ("pairs", ["a"], "folder GT of pairs: folders"),
        ("stable", ["a"], "folder hr of pairs: folders"),
        ("spmcs", ["a"], "folders"),
        ("films", ["sub/x"], "folders"),
    ]:
        caplog.clear()
        source = folder_clips(str(tmp_path / root))
        assert not caplog.records, "nothing is read before it is asked for"
        assert [source.name(k) for k in range(len(source))] == names
        assert what in caplog.text and f"{len(names)} of {len(names)} clips" in caplog.text
        if root in ("pairs", "stable", "spmcs"):
            assert shown(source.clip(0, generator(), 2))[0] == 1, "the sharp side of the pairs"


def test_clips_are_chosen_by_name(tmp_path):
    for name in ("a1", "a2", "b1"):
        write_pictures(tmp_path / name, 0, 1)
    source = folder_clips(str(tmp_path), only=["a*"], without=["a2"])
    assert [source.name(k) for k in range(len(source))] == ["a1"]
    with pytest.raises(ValueError, match=r"only=\['c'\].*a1, a2, b1"):
        len(folder_clips(str(tmp_path), only=["c"]))


def test_short_clips_are_named_and_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO, "basicsr_deg")
    for count in (2, 5, 1):
        write_pictures(tmp_path / f"of{count}", 0, count)
    source = folder_clips(str(tmp_path))
    assert [source.name(k) for k in source.long_enough(3)] == ["of5"]
    assert "2 clips have less than 3 frames and are left out: of1 (1), of2 (2)" in caplog.text
    with pytest.raises(ValueError, match="less than 6 frames"):
        source.long_enough(6)


def test_wrong_roots_are_named_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no clip")
    for root, message in [("nowhere", "is not there"), ("empty", "without clips"), ("notes.txt", "without clips")]:
        with pytest.raises(ValueError, match=f"{root}.*{message}") as caught:
            len(folder_clips(str(tmp_path / root)))
        assert "\n" not in str(caught.value)


def test_broken_files_are_named(tmp_path):
    write_pictures(tmp_path / "a", 0, 3)
    whole = (tmp_path / "a/00000001.png").read_bytes()
    for data in (b"", b"no picture", whole[:-20]):
        (tmp_path / "a/00000001.png").write_bytes(data)
        with pytest.raises(ValueError, match="00000001.png: not a readable image"):
            folder_clips(str(tmp_path)).clip(0, generator(), 3)
    (tmp_path / "film.mp4").write_bytes(b"no film")
    with pytest.raises(ValueError, match="film.mp4: not a readable video"):
        folder_clips(str(tmp_path / "film.mp4")).long_enough(1)


def test_a_film_that_breaks_off_is_named(tmp_path):
    write_film(tmp_path / "film.mkv", 0, 40)
    data = (tmp_path / "film.mkv").read_bytes()
    (tmp_path / "film.mkv").write_bytes(data[: len(data) // 2])
    source = folder_clips(str(tmp_path))
    assert source.long_enough(5) == [0], "what can be read is counted"
    assert len(shown(source.clip(0, generator(), 5))[1]) == 5


def test_a_film_is_read_upright(tmp_path):
    """A quarter turn in the container, as telephones write it."""
    write_film(tmp_path / "film.mp4", 1, 3)
    data = (tmp_path / "film.mp4").read_bytes()
    one, unit, track = 1 << 16, 1 << 30, data.index(b"tkhd")
    plain, turned = (struct.pack(">9i", *rows) for rows in (
        (one, 0, 0, 0, one, 0, 0, 0, unit), (0, one, 0, -one, 0, 0, HEIGHT * one, 0, unit)))  # fmt: skip
    at = data.index(plain, track)
    (tmp_path / "film.mp4").write_bytes(data[:at] + turned + data[at + len(plain) :])
    clip = folder_clips(str(tmp_path)).clip(0, generator(), 3)
    np.testing.assert_array_equal(clip, np.stack([np.rot90(frame(1, k), -1) for k in range(3)]))


def test_a_film_that_promises_too_much_is_read_to_its_end(tmp_path):
    """An edit list leaves out frames that the container counts."""
    write_film(tmp_path / "film.mp4", 1, 12)
    data = (tmp_path / "film.mp4").read_bytes()
    entry = data.index(b"elst") + 4
    length, start = struct.unpack(">2i", data[entry + 8 : entry + 16])
    cut = struct.pack(">2i", length // 2, start)
    (tmp_path / "film.mp4").write_bytes(data[: entry + 8] + cut + data[entry + 16 :])
    source = folder_clips(str(tmp_path))
    assert source.long_enough(12) == [0]
    shown_last = max(shown(source.clip(0, generator(seed), 3))[1][-1] for seed in range(20))
    assert 4 <= shown_last < 9
    with pytest.raises(ValueError, match=r"film: has only \d frames, expected 12"):
        source.clip(0, generator(), 12)


def test_frames_of_two_sizes_are_refused(tmp_path):
    write_pictures(tmp_path / "a", 0, 2)
    assert cv2.imwrite(str(tmp_path / "a/00000002.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="a: got frames of 32x24 and 8x8"):
        folder_clips(str(tmp_path)).clip(0, generator(), 3)


def make_reds(root, names=("000", "001", "011", "239", "240", "241"), count=2):
    for name in names:
        write_pictures(root / name, 0, count)
    return root


@pytest.mark.parametrize(
    ("partition", "train", "names"),
    [
        ("REDS4", True, ["001", "239", "240", "241"]),
        ("REDS4", False, ["000", "011"]),
        ("official", True, ["000", "001", "011", "239"]),
        ("official", False, ["240", "241"]),
    ],
)
def test_partitions_of_reds_share_no_clip(tmp_path, caplog, partition, train, names):
    caplog.set_level(logging.INFO, "basicsr_deg")
    make_reds(tmp_path / "train_sharp")
    for root in (tmp_path, tmp_path / "train_sharp"):
        source = reds_clips(str(root), train=train, partition=partition)
        assert [source.name(k) for k in range(len(source))] == names
    assert f"of {partition}: {len(names)} clips of 2 frames" in caplog.text


def test_the_list_of_reds_is_checked(tmp_path):
    make_reds(tmp_path / "reds")
    meta = tmp_path / "meta.txt"
    meta.write_text("000 2 (24,32,3)\n001 2 (24,32,3)\n")
    node = {"target": "basicsr_deg.reds.reds_clips", "params": {"root": str(tmp_path / "reds"), "meta": str(meta)}}
    source = config.instantiate(node)
    assert [source.name(k) for k in range(len(source))] == ["001"]
    for text, message in [
        ("001 3 (24,32,3)\n", r"other length than .*001 \(3\)"),
        ("002 2 (24,32,3)\n", "missing"),
        ("001\n", "line 1: got '001'"),
        ("\n", "without a clip"),
        ("000 2 (24,32,3)\n", "no clips for training"),
    ]:
        meta.write_text(text)
        with pytest.raises(ValueError, match=message):
            len(reds_clips(str(tmp_path / "reds"), meta=str(meta)))
    with pytest.raises(ValueError, match="nowhere.txt"):
        len(reds_clips(str(tmp_path / "reds"), meta=str(tmp_path / "nowhere.txt")))
    with pytest.raises(ValueError, match="partition 'reds4'.*REDS4, official"):
        reds_clips(str(tmp_path), partition="reds4")


def test_photographs_are_moved_in_their_own_colours(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.PNG"):
        assert cv2.imwrite(str(tmp_path / name), np.full((80, 90, 3), (0, 0, 250), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    source = RenderedScenes(length=12, size=32, pictures=str(tmp_path))
    means = [source.clip(0, generator(seed), 2).mean((0, 1, 2)) for seed in range(12)]
    red, green, blue = np.median(means, axis=0)
    assert red > 150 and max(green, blue) < 50
    assert len(source) == 12 and list(source.long_enough(100)) == list(range(12))


def test_a_wrong_folder_of_photographs_shows_before_the_first_clip(tmp_path):
    for folder, what in ((tmp_path / "nowhere", "which is no folder"), (tmp_path, "without any picture")):
        source = RenderedScenes(length=1, size=32, pictures=str(folder))
        with pytest.raises(ValueError) as caught:
            source.long_enough(1)
        assert str(caught.value).startswith(f"got {folder} for photographs, {what}; expected a folder of pictures (.")
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(ValueError, match="broken.png: not a readable image"):
        RenderedScenes(length=1, size=32, pictures=str(tmp_path)).long_enough(1)
