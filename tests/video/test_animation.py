"""Image files of several frames are clips: with all frames, and the times that the file gives them."""

import numpy as np
import pytest
from PIL import Image

from ldm.video import VideoError, probe, read
from tests.video.clips import frames_of, save
from tests.video.films import through

DURATIONS = [50, 120, 80, 400]


def animated(path, frames, durations=DURATIONS, **options):
    pictures = [Image.fromarray(frame) for frame in frames]
    timing = {} if path.suffix in (".tif", ".tiff") else {"duration": durations}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **timing, **options)
    return path


@pytest.mark.parametrize(("suffix", "options"), [
    (".webp", {"lossless": True}), (".png", {}), (".apng", {"format": "PNG"}), (".tif", {}), (".gif", {}),
])  # fmt: skip
def test_all_frames_are_taken_at_their_times(tmp_path, suffix, options):
    frames = frames_of(4, 24, 32)
    source = probe(animated(tmp_path / f"a{suffix}", frames, **options))
    assert (source.kind, source.frames, source.width, source.height) == ("animation", 4, 32, 24)
    if suffix == ".tif":
        assert source.times is None and "pages are taken for frames" in source.notes[0]
    else:
        assert (source.times, source.end) == ((0, 50, 170, 250), 650)
    found = [frame[..., :3] for frame in read(source)]
    assert np.abs(np.stack(found).astype(int) - frames).max() <= (60 if suffix == ".gif" else 0)
    np.testing.assert_array_equal([frame[..., :3] for frame in read(source, 2, 4)], found[2:])
    through(source, tmp_path / "out.mp4", cuts=(1,))
    made = probe(tmp_path / "out.mp4")
    assert made.frames == 4
    if source.times:
        assert [float(made.seconds(number)) for number in range(5)] == pytest.approx([0, 0.05, 0.17, 0.25, 0.65])
    through(source, tmp_path / "folder")
    assert probe(tmp_path / "folder").frames == 4


def test_a_gif_smaller_than_its_canvas_is_drawn_onto_it(tmp_path):
    pictures = [Image.new("P", (20, 16), 0) for _ in range(2)]
    pictures[0].putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    pictures[1].putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    pictures[0].paste(1, (0, 0, 20, 16))
    pictures[1].paste(1, (0, 0, 20, 16))
    pictures[1].paste(2, (4, 4, 8, 8))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=50)
    first, second = (frame[..., :3] for frame in read(tmp_path / "a.gif"))
    assert (first == [255, 0, 0]).all() and (second[5, 5] == [0, 0, 255]).all() and (second[0, 0] == [255, 0, 0]).all()


def test_an_animation_that_is_damaged_is_refused_in_one_line(tmp_path):
    path = animated(tmp_path / "a.png", frames_of(4, 24, 32))
    data = path.read_bytes()
    at = data.index(b"fdAT") + 12
    path.write_bytes(data[:at] + bytes(40) + data[at + 40 :])
    with pytest.raises(VideoError, match=r"a\.png") as caught:
        list(read(path))
    assert "\n" not in str(caught.value)


def test_pages_of_several_sizes_are_one_picture(tmp_path):
    big, small = Image.new("RGB", (32, 24)), Image.new("RGB", (8, 6))
    big.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    assert (probe(tmp_path / "a.tif").kind, probe(tmp_path / "a.tif").width) == ("image", 32)


def test_in_a_folder_the_first_frame_is_taken_and_said(tmp_path):
    (tmp_path / "clip").mkdir()
    animated(tmp_path / "clip" / "1.webp", frames_of(4, 24, 32))
    save(tmp_path / "clip" / "2.png", frames_of(1, 24, 32)[0])
    source = probe(tmp_path / "clip")
    assert source.frames == 2 and "1 images, such as 1.webp, hold several frames" in source.notes[0]
