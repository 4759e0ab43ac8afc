"""Outputs are whole or not there."""

import numpy as np
import pytest
import torch

from ldm.video import VideoError, open_writer, probe
from tests.video.clips import frames_of, leftovers, write


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "folder", "image.png", "new/deep/clip.mp4"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_an_exception(tmp_path, name, error):
    with pytest.raises(error), open_writer(tmp_path / name, size=(48, 64)) as writer:
        writer.write(frames_of(1)[0])
        assert len(leftovers(tmp_path)) == 1
        assert not (tmp_path / name).exists()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_survives_a_failed_run(tmp_path):
    path = write(tmp_path / "clip.mp4", frames_of(3))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), open_writer(path, size=(48, 64)) as writer:
        writer.write(frames_of(1)[0])
        raise RuntimeError
    assert path.read_bytes() == before
    write(path, frames_of(5))
    assert probe(path).frames == 5
    assert leftovers(tmp_path) == []


def test_a_folder_in_use_is_replaced_only_on_request(tmp_path):
    write(tmp_path / "out", frames_of(4))
    with pytest.raises(VideoError, match="not empty"):
        write(tmp_path / "out", frames_of(2))
    assert probe(tmp_path / "out").frames == 4
    write(tmp_path / "out", frames_of(2), overwrite=True)
    assert probe(tmp_path / "out").frames == 2
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(VideoError, match=r"thesis\.txt"):
        write(tmp_path / "out", frames_of(3), overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", frames_of(2))
    assert probe(tmp_path / "empty").frames == 2
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("name", ["clip.mp4", "folder", "image.png"])
def test_an_output_without_frames_is_an_error(tmp_path, name):
    with pytest.raises(VideoError, match="no frame was written"), open_writer(tmp_path / name, size=(8, 8)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_single_image_takes_one_frame(tmp_path):
    with pytest.raises(VideoError, match="second frame"):
        write(tmp_path / "image.png", frames_of(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frame", [
    np.zeros((9, 8, 3), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8),
    torch.zeros(3, 8, 9), torch.zeros(1, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8),
    torch.full((3, 8, 8), torch.nan),
])  # fmt: skip
@pytest.mark.parametrize("name", ["clip.mp4", "folder"])
def test_wrong_frames_are_refused(tmp_path, frame, name):
    with pytest.raises(VideoError, match="frame 0"), open_writer(tmp_path / name, size=(8, 8)) as writer:
        writer.write(frame)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "options", "message"), [
    ("out.avi", {}, r"cannot write \.avi"), ("out.jpg", {}, r"cannot write \.jpg"),
    ("out.mp4", {"crf": 60}, "crf 60"), ("out.mp4", {"rate": 0}, "positive"), ("out.mp4", {"size": (0, 8)}, "0x8"),
])  # fmt: skip
def test_wrong_outputs_are_refused(tmp_path, name, options, message):
    with pytest.raises(VideoError, match=message):
        open_writer(tmp_path / name, **{"size": (8, 8), **options})


def test_an_output_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for name in ("file/clip.mp4", "file/image.png", "file/folder"):
        with pytest.raises(VideoError, match="cannot be written"):
            write(tmp_path / name, frames_of(1))
    with pytest.raises(VideoError, match="is no folder, expected one"):
        write(tmp_path / "file", frames_of(1))


def test_the_input_is_never_the_output(tmp_path):
    path = write(tmp_path / "in" / "clip.mp4", frames_of(1))
    detour = tmp_path / "in" / ".." / "in" / "clip.mp4"
    for output, source in ((path, probe(path)), (detour, path), (path.parent, path)):
        with pytest.raises(VideoError, match="the input"):
            open_writer(output, size=(8, 8), source=source, overwrite=True)
