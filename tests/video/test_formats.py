"""The format of an output, refused formats, and reported list_omissions."""

from fractions import Fraction
from pathlib import Path

import pytest

from ldm.video import Color, Source, VideoError, choose_format, list_omissions, probe
from tests.video.clips import frames_of, save
from tests.video.films import UNEVEN, film

LIMITED_601 = Color(1, 6, 2, 2)


def source_of(depth=8, alpha=False, **options):
    return Source("video", Path("in.mp4"), 10, 64, 48, Fraction(25), depth=depth, alpha=alpha, **options)


def chosen(source, output, size=(48, 64), **options):
    made = choose_format(source, output, size=size, **options)
    return made.codec, made.pixel_format, made.depth, made.alpha


@pytest.mark.parametrize(("depth", "alpha", "output", "options", "expected"), [
    (8, False, "o.mp4", {}, ("h264", "yuv420p", 8, False)),
    (8, False, "o.mp4", {"size": (47, 64)}, ("h264", "yuv444p", 8, False)),
    (8, False, "o.mkv", {"lossless": True}, ("h264", "rgb24", 8, False)),
    (8, False, "o.mkv", {"codec": "ffv1"}, ("ffv1", "bgr0", 8, False)),
    (8, False, "o.mp4", {"depth": 10}, ("hevc", "yuv420p10le", 10, False)),
    (8, True, "o.mp4", {}, ("h264", "yuv420p", 8, False)),
    (8, True, "o.mov", {}, ("prores", "yuva444p10le", 10, True)),
    (8, True, "o.mkv", {}, ("ffv1", "bgra", 8, True)),
    (8, False, "o.mov", {"codec": "prores"}, ("prores", "yuv422p10le", 10, False)),
    (10, False, "o.mp4", {}, ("hevc", "yuv420p10le", 10, False)),
    (10, False, "o.mov", {}, ("hevc", "yuv420p10le", 10, False)),
    (10, False, "o.mp4", {"codec": "h264"}, ("h264", "yuv420p", 8, False)),
    (10, False, "o.mp4", {"lossless": True}, ("hevc", "gbrp10le", 10, False)),
    (10, False, "o.mkv", {"lossless": True}, ("ffv1", "gbrp10le", 10, False)),
    (10, False, "o.mkv", {"lossless": True, "depth": 16}, ("ffv1", "gbrp16le", 16, False)),
    (12, False, "o.mp4", {}, ("hevc", "yuv420p12le", 12, False)),
    (16, False, "o.mp4", {}, ("hevc", "yuv420p10le", 10, False)),
    (16, True, "o.mkv", {}, ("ffv1", "gbrap16le", 16, True)),
    (8, True, "o", {}, ("png", "rgba", 8, True)),
    (10, True, "o", {}, ("png", "rgba64", 16, True)),
    (16, False, "o.png", {"depth": 8}, ("png", "rgb", 8, False)),
])  # fmt: skip
def test_the_best_format(tmp_path, depth, alpha, output, options, expected):
    assert chosen(source_of(depth, alpha), tmp_path / output, **options) == expected


@pytest.mark.parametrize(("output", "options", "message"), [
    ("o.mp4", {"codec": "av1"}, "codec av1, expected one of h264"),
    ("o.mp4", {"codec": "prores"}, r"codec prores for \.mp4, expected it for \.mov"),
    ("o.mp4", {"codec": "ffv1"}, r"expected it for \.mkv"),
    ("o.mov", {"codec": "prores", "lossless": True}, "lossless with codec prores"),
    ("o.mp4", {"codec": "h264", "depth": 10}, "10 bits for h264, expected 8; choose codec hevc"),
    ("o.mov", {"codec": "hevc", "depth": 16}, "16 bits for hevc, expected 8 or 10 or 12"),
    ("o", {"codec": "h264"}, "codec h264 for images"), ("o", {"depth": 10}, "expected 8 or 16"),
    ("o.avi", {}, r"cannot write \.avi"), ("o.mp4", {"crf": 52}, "crf 52"), ("o.mp4", {"size": (0, 4)}, "0x4"),
])  # fmt: skip
def test_incompatible_options_are_refused(tmp_path, output, options, message):
    with pytest.raises(VideoError, match=message) as caught:
        choose_format(source_of(), tmp_path / output, **{"size": (48, 64), **options})
    assert "\n" not in str(caught.value)


def test_colour_tags_are_kept_and_assumptions_are_written():
    for color in (Color(1, 9, 9, 16), Color(2, 9, 9, 18), Color(2, 5, 5, 6)):
        assert choose_format(source_of(color=color), "o.mp4", size=(48, 64)).color == color
    assert choose_format(source_of(), "o.mp4", size=(2160, 3840)).color == LIMITED_601  # as it was read
    rgb = choose_format(source_of(color=Color(1, 9, 9, 16)), "o.mp4", size=(48, 64), lossless=True)
    assert rgb.color == Color(2, 0, 9, 16)
    pictures = Source("folder", Path("in"), 3, 64, 48, Fraction(25))
    assert choose_format(pictures, "o.mp4", size=(2160, 3840)).color == Color(1, 1, 1, 1)


def test_rounded_times_of_a_constant_rate_become_exact():
    rate = Fraction(24000, 1001)
    rounded = tuple(round(number / rate * 1000) for number in range(10))
    options = {"times": rounded, "end": 417, "time_base": Fraction(1, 1000)}
    source = Source("video", Path("in.mkv"), 10, 64, 48, rate, **options)
    assert choose_format(source, "o.mp4", size=(48, 64)).time_base == Fraction(1, 24000)
    assert choose_format(source, "o.mkv", size=(48, 64)).time_base == Fraction(1, 1000)
    uneven = Source("video", Path("in.mkv"), 10, 64, 48, rate, **{**options, "times": (*rounded[:9], 400)})
    assert choose_format(uneven, "o.mp4", size=(48, 64)).time_base == Fraction(1, 1000)


def said(source, output, **options):
    return list_omissions(source, choose_format(source, output, size=(48, 64), **options))


def test_lossless_outputs_report_no_loss(tmp_path):
    source = probe(film(tmp_path / "a.mp4", sound="aac", words="mov_text", times=UNEVEN, chapters=[(0, 0.3, "x")]))
    assert said(source, tmp_path / "o.mp4") == said(source, tmp_path / "o.mov") == []
    source = probe(film(tmp_path / "a.mkv", sound="libopus", words="ass", times=UNEVEN, attachment=b"letters"))
    assert said(source, tmp_path / "o.mkv") == []


@pytest.mark.parametrize(("made", "output", "options", "expected"), [
    ({"sound": "aac", "words": "srt", "attachment": b"x"}, "o.mp4", {},
     ["subtitles (subrip) cannot go into .mp4 unchanged: becomes mov_text, without its styles",
      "the attachment (letters.ttf) cannot go into .mp4"]),
    ({"sound": "libopus"}, "o.mov", {}, ["audio (opus) cannot go into .mov unchanged: becomes AAC"]),
    ({"sound": "aac", "words": "ass"}, "o", {},
     ["audio (aac) cannot go into images", "subtitles (ass) cannot go into images"]),
    ({"chapters": [(0, 1, "x")]}, "o", {}, ["chapters cannot go into images"]),
    ({"times": UNEVEN}, "o", {}, ["the times of the frames are dropped"]),
    ({"codec": "libx265", "pix_fmt": "yuv420p10le", "encoder": {"x265-params": "log-level=none"}}, "o.mp4",
     {"codec": "h264"}, ["10 bits per sample become 8 (h264 in .mp4; choose --codec hevc)"]),
    ({"codec": "ffv1", "pix_fmt": "bgra"}, "o.mp4", {}, ["transparency is dropped: .mp4 cannot hold it"]),
    ({"context": {"sample_aspect_ratio": Fraction(4, 3)}}, "o", {}, ["the sample aspect ratio 4:3 is dropped"]),
    ({"context": {"sample_aspect_ratio": Fraction(4, 3)}}, "o.mkv", {"codec": "ffv1"}, ["the sample aspect ratio 4:3"]),
])  # fmt: skip
def test_each_loss_is_named(tmp_path, made, output, options, expected):
    lines = said(probe(film(tmp_path / "a.mkv", **made)), tmp_path / output, **options)
    assert len(lines) == len(expected), lines
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start) and "\n" not in line


def test_losses_of_other_files_are_named(tmp_path):
    uneven = probe(film(tmp_path / "a.mp4", times=UNEVEN, words="mov_text"))
    lines = said(uneven, tmp_path / "o.mkv")
    assert lines[1:] == ["subtitles (mov_text) cannot go into .mkv unchanged: becomes SubRip, without its styles"]
    assert lines[0].startswith("the times of the frames are rounded to milliseconds in .mkv")
    save(tmp_path / "in" / "a.png", frames_of(1)[0].astype("uint16") * 257)
    assert said(probe(tmp_path / "in"), tmp_path / "o.mp4")[0].startswith("16 bits per sample become 10")
