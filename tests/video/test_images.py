"""Images and folders of them: formats, orders, names."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from ldm.video import VideoError, probe, read, read_clip, sequences
from tests.video.clips import frames_of, save, write
from tests.video.films import film


def test_a_folder_is_read_in_natural_order(tmp_path):
    for number in (10, 9, 1, 2):
        save(tmp_path / f"f{number}.png", np.full((4, 6, 3), number, np.uint8))
    (tmp_path / ".hidden.png").write_bytes(b"not an image")
    (tmp_path / "f1_flow.npz").write_bytes(b"not an image")
    (tmp_path / "notes.txt").write_text("not an image")
    source = probe(tmp_path)
    assert (source.kind, source.frames, source.width, source.height) == ("folder", 4, 6, 4)
    assert source.names == ("f1.png", "f2.png", "f9.png", "f10.png")
    assert [int(frame[0, 0, 0]) for frame in read(source)] == [1, 2, 9, 10]


def test_names_of_a_folder_are_kept(tmp_path):
    for name in ("a2.png", "a10.jpg"):
        save(tmp_path / "in" / name, np.zeros((4, 4, 3), np.uint8))
    source = probe(tmp_path / "in")
    write(tmp_path / "out", list(read(source)), source=source)
    assert probe(tmp_path / "out").names == ("a2.png", "a10.png")
    write(tmp_path / "part", list(read(source))[1:], names=source.names[1:])
    assert probe(tmp_path / "part").names == ("a10.png",)
    write(tmp_path / "clash", frames_of(2), names=("a.jpg", "a.bmp"))
    assert sorted(probe(tmp_path / "clash").names) == ["a.bmp.png", "a.jpg.png"]
    write(tmp_path / "plain", frames_of(2))
    assert probe(tmp_path / "plain").names == ("00000000.png", "00000001.png")
    with pytest.raises(VideoError, match="names for 1 frames only"):
        write(tmp_path / "few", frames_of(2), names=("a.png",))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm", ".webp", ".jpg"])
def test_image_formats(tmp_path, suffix):
    frame = frames_of(1, 24, 32)[0]
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if suffix == ".jpg" else []
    quality = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == ".webp" else quality
    path = tmp_path / f"image{suffix}"
    assert cv2.imwrite(str(path), frame[..., ::-1], quality)
    assert probe(path).kind == "image"
    assert np.abs(next(read(path)).astype(int) - frame).mean() <= (3 if suffix == ".jpg" else 0)


def test_grey_and_16_bit_become_rgb(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(next(read(save(tmp_path / "grey.png", grey))), three)
    for offset, rounded in ((128, 0), (129, 1)):
        deep = np.minimum(grey.astype(int) * 257 + offset, 65535).astype(np.uint16)
        source = probe(save(tmp_path / "deep.png", deep))
        assert (source.depth, source.alpha) == (16, False)
        np.testing.assert_array_equal(next(read(source)), np.repeat(deep[..., None], 3, axis=2))
        np.testing.assert_array_equal(next(read(source, as_rgb8=True)), three + rounded)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_transparency_is_read_and_left_out_on_request(tmp_path, suffix):
    rgba = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    rgba[..., 3] |= 1  # WebP forgets the colours of what cannot be seen
    path = tmp_path / f"alpha{suffix}"
    assert cv2.imwrite(str(path), rgba[..., [2, 1, 0, 3]], [cv2.IMWRITE_WEBP_QUALITY, 101] * (suffix == ".webp"))
    assert (probe(path).depth, probe(path).alpha) == (8, True)
    np.testing.assert_array_equal(next(read(path)), rgba)
    np.testing.assert_array_equal(next(read(path, as_rgb8=True)), rgba[..., :3])
    assert read_clip(path).shape == (1, 3, 3, 4)


def test_a_folder_of_mixed_kinds_is_read_as_the_richest(tmp_path):
    save(tmp_path / "1.png", np.full((3, 4), 7, np.uint8))
    save(tmp_path / "2.png", np.full((3, 4, 4), 1000, np.uint16))
    source = probe(tmp_path)
    assert (source.depth, source.alpha) == (16, True)
    first, second = read(source)
    assert first[0, 0].tolist() == [7 * 257] * 3 + [65535]
    assert second[0, 0].tolist() == [1000] * 4


def test_a_palette_image_shows_its_colours(tmp_path):
    """A hand-made indexed PNG of two pixels, red and blue."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0))
    body = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255])) + chunk(b"IDAT", zlib.compress(bytes([0, 0, 1])))
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    assert next(read(tmp_path / "p.png")).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_float_images_are_refused(tmp_path):
    save(tmp_path / "f.tif", np.zeros((3, 3, 3), np.float32))
    with pytest.raises(VideoError, match="expected 8 or 16 bits"):
        probe(tmp_path / "f.tif")


def test_sequences_of_every_kind(tmp_path):
    for name in ("s10", "s2"):
        save(tmp_path / "root" / name / "0.png", np.zeros((4, 4, 3), np.uint8))
    write(tmp_path / "root" / "s3.mp4", frames_of(2))
    (tmp_path / "root" / "empty").mkdir()
    (tmp_path / "root" / ".cache").mkdir()
    found = sequences(tmp_path / "root")
    assert [(source.path.name, source.kind) for source in found] == [
        ("s2", "folder"), ("s3.mp4", "video"), ("s10", "folder"),
    ]  # fmt: skip
    assert [source.kind for source in sequences(tmp_path / "root" / "s2")] == ["folder"]
    assert [source.kind for source in sequences(tmp_path / "root" / "s2" / "0.png")] == ["image"]
    assert [source.kind for source in sequences(tmp_path / "root" / "s3.mp4")] == ["video"]
    with pytest.raises(VideoError, match="no images, videos or folders"):
        sequences(tmp_path / "root" / "empty")


def hollow_png(path, side):
    """A PNG of `side` x `side` pixels that holds none of them."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    ends = [struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts]
    chunks = [struct.pack(">I", len(data)) + kind + data + end for (kind, data), end in zip(parts, ends, strict=True)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def test_sizes_in_headers_are_held_against_free_memory(tmp_path, monkeypatch):
    with pytest.raises(VideoError, match="a.png: .*expected at most 268435456 pixels"):
        probe(hollow_png(tmp_path / "a.png", 30000))
    path = hollow_png(tmp_path / "b.png", 3000)
    with pytest.raises(VideoError, match="not a readable image"):
        probe(path)
    monkeypatch.setattr("ldm.video.source.free_host_memory", lambda: 10**8)
    with pytest.raises(VideoError, match=r"b.png: 3000x3000 takes 0.3 GB, 0.1 GB are free; make it smaller first"):
        probe(path)
    with pytest.raises(VideoError, match=r"2048x2048 takes 0.1 GB"):
        probe(film(tmp_path / "c.mp4", 1, size=(2048, 2048)))
    monkeypatch.setattr("ldm.video.source.free_host_memory", lambda: None)
    with pytest.raises(VideoError, match="not a readable image"):
        probe(path)


def test_a_file_larger_than_memory_is_not_read(tmp_path, monkeypatch):
    with (tmp_path / "a.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(1 << 42)  # sparse
    with pytest.raises(VideoError, match="a.png: 4398.0 GB do not fit into"):
        probe(tmp_path / "a.png")
