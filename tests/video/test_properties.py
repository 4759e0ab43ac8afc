"""What a video is beyond its pixels: noticed when looked at, and the same after a round through the room."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from ldm.video import VideoError, choose_format, list_omissions, probe, read
from ldm.video.source import Light
from tests.marks import mostly_slow
from tests.video.clips import frames_of, write
from tests.video.films import TICK, UNEVEN, film, through

X265 = {"codec": "libx265", "encoder": {"x265-params": "log-level=none", "crf": "6"}}
NAMES = ("color_range", "colorspace", "color_primaries", "color_trc")
COLORS = [(1, 6, 6, 6), (2, 1, 1, 1), (1, 9, 9, 16), (2, 9, 9, 18), (1, 5, 5, 6), (1, 7, 7, 7)]


def distance(one, other):
    """Mean difference of all frames of two sources, in levels of 255, alpha included."""
    levels = [[frame / (np.iinfo(frame.dtype).max / 255) for frame in read(source)] for source in (one, other)]
    assert len(levels[0]) == len(levels[1])
    return np.abs(np.stack(levels[0]) - np.stack(levels[1])).mean()


@mostly_slow("color", COLORS, fast=2)
@mostly_slow("suffix", ["mp4", "mkv", "mov"])
@mostly_slow("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_colours_are_kept(tmp_path, color, suffix, pix_fmt):
    made = {**X265, "pix_fmt": pix_fmt, "context": dict(zip(NAMES, color, strict=True))}
    source = probe(film(tmp_path / "in.mkv", 3, **made))
    assert (source.color, source.depth) == (color, 10 if "10" in pix_fmt else 8)
    output = tmp_path / f"out.{suffix}"
    through(source, output, crf=4)
    made = probe(output)
    assert (made.color, made.depth) == (source.color, source.depth)
    assert distance(source, made) < 3
    through(source, tmp_path / "prores.mov", codec="prores")
    assert probe(tmp_path / "prores.mov").color[1:] == color[1:]


@mostly_slow("suffix", ["mp4", "mkv", "mov"])
def test_hdr10_metadata_is_kept(tmp_path, suffix):
    light = Light((13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450, 10000000, 50), (1000, 400))
    display = "G({},{})B({},{})R({},{})WP({},{})L({},{})".format(*light.display)
    encoder = {"x265-params": f"log-level=none:master-display={display}:max-cll=1000,400"}
    made = {"codec": "libx265", "encoder": encoder, "context": dict(zip(NAMES, (1, 9, 9, 16), strict=True))}
    source = probe(film(tmp_path / "in.mp4", 3, pix_fmt="yuv420p10le", **made))
    assert source.light == light and source.notes == ()
    through(source, tmp_path / f"out.{suffix}", cuts=(1,))
    assert probe(tmp_path / f"out.{suffix}").light == light
    chosen = choose_format(source, tmp_path / "o.mov", size=(48, 64), codec="prores")
    assert [line.split(" are")[0] for line in list_omissions(source, chosen)] == [
        "HDR10's display and light level metadata"
    ]


def test_the_range_of_values_is_respected(tmp_path):
    """The same codes are brighter and darker, or not, by what the file says of them."""
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, code in zip(frame.planes, (235, 128, 128), strict=True):
        plane.update(bytes([code]) * plane.buffer_size)
    for range_, level in ((1, 255), (2, 235)):
        made = {"frames": [frame], "context": {"color_range": range_}, "encoder": {"qp": "0"}}
        path = film(tmp_path / f"{range_}.mp4", 1, **made)
        assert next(read(path))[9, 9].tolist() == [level] * 3
        through(path, tmp_path / f"o{range_}.mp4", crf=0)
        assert abs(int(next(read(tmp_path / f"o{range_}.mp4"))[9, 9, 0]) - level) <= 1
        assert probe(tmp_path / f"o{range_}.mp4").color.range == range_


def test_colours_that_cannot_be_converted_are_refused(tmp_path):
    path = film(tmp_path / "in.mp4", 2, context={"colorspace": 14})
    with pytest.raises(VideoError, match="its colours are ICtCp"):
        probe(path)


@mostly_slow("turn", [90, 180, -90])
@mostly_slow("suffix", ["mp4", "mov"])
def test_rotation_is_applied_once(tmp_path, turn, suffix):
    flat = film(tmp_path / "flat.mkv", 3, encoder={"crf": "4"})
    source = probe(film(tmp_path / f"in.{suffix}", 3, encoder={"crf": "4"}, turn=turn))
    upright = [np.rot90(frame, turn // 90) for frame in read(flat)]
    np.testing.assert_array_equal(list(read(source)), upright)
    assert (source.height, source.width) == upright[0].shape[:2]
    through(source, tmp_path / f"out.{suffix}", crf=4)
    made = probe(tmp_path / f"out.{suffix}")
    assert (made.height, made.width) == upright[0].shape[:2]
    assert distance(source, made) < 3


def test_a_mirrored_picture_is_shown_mirrored(tmp_path):
    frames = frames_of(1, 32, 48)
    path = write(tmp_path / "clip.mp4", frames, lossless=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 36
    for matrix, shown in (
        ((-1, 0, 0, 0, 1), frames[0][:, ::-1]), ((1, 0, 0, 0, -1), frames[0][::-1]),
        ((0, 1, 0, 1, 0), frames[0].swapaxes(0, 1)), ((0, -1, 0, -1, 0), frames[0].swapaxes(0, 1)[::-1, ::-1]),
    ):  # fmt: skip
        terms = [65536 * term for term in matrix] + [0, 0, 0, 1 << 30]
        data[at : at + 36] = np.array(terms, ">i4").tobytes()
        path.write_bytes(data)
        np.testing.assert_array_equal(next(read(path)), shown)


@mostly_slow("aspect", [Fraction(4, 3), Fraction(64, 45)])
@mostly_slow("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("turn", [0, 90])
def test_pixels_that_are_no_squares_stay_so(tmp_path, aspect, suffix, turn):
    source = probe(film(tmp_path / "in.mp4", 3, turn=turn, context={"sample_aspect_ratio": aspect}))
    assert source.sample_aspect == (1 / aspect if turn else aspect)
    through(source, tmp_path / f"out.{suffix}", factor=2)
    assert probe(tmp_path / f"out.{suffix}").sample_aspect == source.sample_aspect
    through(source, tmp_path / "deep.mov", codec="prores")
    assert probe(tmp_path / "deep.mov").sample_aspect == source.sample_aspect


@mostly_slow(("pix_fmt", "codec", "depth", "alpha"), [
    ("yuv420p", "ffv1", 8, False), ("bgra", "ffv1", 8, True), ("yuva444p10le", "ffv1", 10, True),
    ("yuv422p10le", "prores_ks", 10, False), ("yuva444p10le", "prores_ks", 12, True),
    ("gbrp12le", "ffv1", 12, False), ("gbrap16le", "ffv1", 16, True), ("gray16le", "ffv1", 16, False),
], fast=2)  # fmt: skip
def test_depth_and_alpha_are_kept(tmp_path, pix_fmt, codec, depth, alpha):
    source = probe(film(tmp_path / f"in.{'mov' if codec == 'prores_ks' else 'mkv'}", 3, codec=codec, pix_fmt=pix_fmt))
    assert (source.depth, source.alpha) == (depth, alpha)
    frame = next(read(source))
    assert (frame.dtype, frame.shape[2]) == (np.uint8 if depth == 8 else np.uint16, 4 if alpha else 3)
    through(source, tmp_path / "out.mkv", lossless=True)
    through(source, tmp_path / "folder")
    for made in (probe(tmp_path / "out.mkv"), probe(tmp_path / "folder")):
        assert (made.depth >= depth, made.alpha) == (True, alpha)
        assert distance(source, made) <= 0.5 * 255 / (2**depth - 1)
    through(source, tmp_path / "out.mov", **({} if alpha else {"codec": "prores"}))
    assert (probe(tmp_path / "out.mov").depth, probe(tmp_path / "out.mov").alpha) == (10, alpha)
    assert distance(source, tmp_path / "out.mov") < 4


def see_through(count, pix_fmt):
    for number, pixels in enumerate(frames_of(count)):
        alpha = cv2.resize(np.array([[0, 255], [90, 40 * number]], np.uint8), (64, 48))
        yield av.VideoFrame.from_ndarray(np.dstack([pixels, alpha]), format="rgba").reformat(format=pix_fmt)


@pytest.mark.parametrize(("name", "codec", "pix_fmt"), [
    ("in.mov", "prores_ks", "yuva444p10le"), ("in.webm", "libvpx-vp9", "yuva420p"), ("in.mov", "qtrle", "argb"),
])  # fmt: skip
@mostly_slow("output", ["out.mov", "out.mkv", "out"])
def test_what_is_transparent_stays_so(tmp_path, name, codec, pix_fmt, output):
    frames = list(see_through(4, pix_fmt))
    source = probe(film(tmp_path / name, 4, codec=codec, pix_fmt=pix_fmt, frames=frames))
    assert source.alpha
    through(source, tmp_path / output, cuts=(1,))
    for number, frame in enumerate(read(tmp_path / output)):
        wanted = frames[number].to_ndarray(format="rgba")[..., 3]
        assert np.abs(frame[..., 3] / (np.iinfo(frame.dtype).max / 255) - wanted).mean() < 3


def test_ten_bits_are_more_than_eight(tmp_path):
    """A ramp so slow that 8 bits would show steps keeps its codes through HEVC, ProRes and FFV1."""
    frame = av.VideoFrame(256, 16, "yuv444p10le")
    for index, plane in enumerate(frame.planes):
        words = np.full((16, plane.line_size // 2), 512, "<u2")
        words[:, :256] = 512 if index else 400 + np.arange(256) // 4
        plane.update(words.tobytes())
    made = {"codec": "ffv1", "pix_fmt": "yuv444p10le", "frames": [frame], "size": (16, 256)}
    source = film(tmp_path / "in.mkv", 1, **made)
    grey = next(read(source))[8, :, 1]
    assert len(set(grey.tolist())) == 64
    for name, options in (
        ("o.mp4", {"crf": 1}), ("o.mov", {"codec": "prores"}), ("o.mkv", {"lossless": True}), ("o", {})
    ):  # fmt: skip
        through(source, tmp_path / name, **options)
        back = next(read(tmp_path / name))[8, :, 1]
        assert np.abs(back.astype(int) - grey).max() <= 1.5 * 65535 / 876


@mostly_slow("start", [1, 13, 29, 30, 47, 59], fast=2)
@mostly_slow("codec", ["libx264", "libx265"])
@mostly_slow("suffix", ["mp4", "mkv"])
def test_reading_from_the_middle_gives_the_same_frames(tmp_path, start, codec, suffix):
    encoder = {"g": "15", "x265-params": "log-level=none:keyint=15:open-gop=1"} if codec == "libx265" else {"g": "15"}
    times = [number * 3003 + number % 3 * 700 + 9000 for number in range(60)]
    source = probe(film(tmp_path / f"in.{suffix}", 60, codec=codec, times=times, encoder=encoder))
    assert source.seekable
    whole = list(read(source))
    np.testing.assert_array_equal(list(read(source, start)), whole[start:])
    np.testing.assert_array_equal(list(read(source, start, start + 2)), whole[start : start + 2])


@pytest.mark.parametrize(("name", "made", "times"), [
    ("a.ts", {}, [time + 9000 for time in UNEVEN]), ("a.avi", {"context": {"time_base": Fraction(1, 25)}}, None),
    ("a.h264", {"format": "h264"}, None), ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}, None),
    ("a.webm", {"codec": "libvpx", "encoder": {"auto-alt-ref": "1", "lag-in-frames": "16"}}, None),
])  # fmt: skip
def test_frames_are_counted_by_decoding_where_packets_do_not_tell(tmp_path, name, made, times):
    source = probe(film(tmp_path / name, 12, times=times, **made))
    assert (source.frames, source.alpha, source.notes) == (12, False, ())
    assert source.times is None or len(source.times) == 12
    if name == "a.ts":
        assert (source.times, source.origin) == (UNEVEN, Fraction(1, 10))
    assert len(list(read(source))) == 12
    np.testing.assert_array_equal(list(read(source, 5)), list(read(source))[5:])
    through(source, tmp_path / "out.mp4", cuts=(5,))
    assert probe(tmp_path / "out.mp4").frames == 12


def test_a_cover_picture_is_not_the_video(tmp_path):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        cover = container.add_stream("png", rate=25)
        cover.height, cover.width, cover.pix_fmt, cover.disposition = 8, 8, "rgb24", 1 << 10
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for target, size in ((cover, (8, 8)), (stream, (48, 64))):
            frame = av.VideoFrame.from_ndarray(frames_of(1, *size)[0], format="rgb24").reformat(format=target.pix_fmt)
            frame.pts, frame.time_base = 0, TICK
            container.mux([*target.encode(frame), *target.encode()])
    source = probe(tmp_path / "in.mp4")
    assert (source.height, source.width, source.frames, source.others) == (48, 64, 1, ("video png",))
    assert next(read(source)).shape == (48, 64, 3)


def test_frames_that_vanish_between_looking_and_reading_are_missed(tmp_path):
    source = probe(film(tmp_path / "in.mkv", 12))
    film(tmp_path / "in.mkv", 8)
    with pytest.raises(VideoError, match="8 of 12 frames"):
        list(read(source))


def test_frames_that_cannot_be_decoded_at_the_beginning_are_not_counted(tmp_path):
    """A recording cut at a key frame of an open group: pictures before it in time lean on what was cut away."""
    encoder = {"x265-params": "log-level=none:keyint=15:min-keyint=15:open-gop=1:bframes=4:b-adapt=0:scenecut=0"}
    whole = film(tmp_path / "whole.mkv", 45, codec="libx265", encoder=encoder)
    with av.open(str(whole)) as old, av.open(str(tmp_path / "cut.mkv"), "w") as new:
        target, keys, promised = new.add_stream_from_template(old.streams.video[0], opaque=True), 0, 0
        for packet in old.demux(video=0):
            keys += packet.is_keyframe
            if packet.size and keys > 1:
                packet.stream, promised = target, promised + 1
                new.mux(packet)
    source = probe(tmp_path / "cut.mkv")
    frames = list(read(source))
    assert source.frames == len(source.times) == len(frames) < promised
    np.testing.assert_array_equal(frames, list(read(whole))[-len(frames) :])
    through(source, tmp_path / "out.mp4", cuts=(3,))
    assert probe(tmp_path / "out.mp4").frames == len(frames)
