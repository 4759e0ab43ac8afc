"""What people have and what becomes of it: every row is tried, and the table of docs/FORMATS.md is what was found.

Run `python -m tests.video.test_support_matrix` after a change that is meant, and look at the difference.
"""

import struct
import tempfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ldm.video import VideoError, choose_format, dry_run_output, list_omissions, probe, read
from tests.video.films import film
from tests.video.test_dry_run import sounding_film

DOCUMENT = Path(__file__).parents[2] / "docs" / "FORMATS.md"
HEAD = """# What comes in, and what becomes of it

Written by `tests/video/test_support_matrix.py`, which makes each of these inputs and tries it. Images and animations
are read by Pillow, and by FFmpeg where they are deeper than 8 bits; videos by FFmpeg. What is not kept is named in a
line before the work begins; an output that could not be written is refused then, too.
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEEP = PIXELS.astype(np.uint16) * 257
SOUNDS = [
    ("avi", "pcm_s16le", 44100, "stereo"), ("avi", "pcm_u8", 22254, "mono"), ("avi", "pcm_s16le", 6000, "mono"),
    ("avi", "adpcm_ms", 22050, "mono"), ("avi", "pcm_mulaw", 8000, "mono"), ("avi", "pcm_s16le", 48000, "quad"),
    ("avi", "mp2", 48000, "stereo"), ("wmv", "wmav2", 44100, "stereo"), ("mkv", "flac", 48000, "5.1"),
    ("mkv", "flac", 96000, "stereo"), ("mkv", "pcm_s24le", 48000, "stereo"), ("mkv", "ac3", 48000, "5.1"),
    ("mov", "pcm_s16be", 48000, "stereo"), ("mov", "alac", 44100, "stereo"), ("mp4", "aac", 44100, "mono"),
    ("ts", "mp2", 48000, "stereo"), ("mkv", "libopus", 48000, "stereo"), ("nut", "pcm_s16le", 32000, "mono"),
    ("avi", "adpcm_ima_wav", 44100, "stereo"), ("avi", "libmp3lame", 11025, "mono"), ("mov", "pcm_u8", 11025, "mono"),
    ("mov", "pcm_alaw", 8000, "mono"), ("mp4", "libopus", 48000, "stereo"), ("mp4", "eac3", 48000, "5.1"),
    ("mkv", "pcm_s24le", 48000, "7.1"), ("mkv", "wavpack", 48000, "stereo"), ("vob", "mp2", 48000, "stereo"),
]  # fmt: skip


def save_pillow(path, mode="RGB", **options):
    Image.fromarray(PIXELS).convert(mode).save(path, **options)


def save_opencv(path, pixels):
    assert cv2.imwrite(str(path), pixels)


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_pillow(path, exif=exif)


def pnm(path, maximum):
    dtype = "u1" if maximum < 256 else ">u2"
    head = f"P6 32 24 {maximum}\n".encode()
    path.write_bytes(head + (PIXELS.astype(int) * maximum // 255).astype(dtype).tobytes())


def animated(path, **options):
    frames = [Image.fromarray(np.roll(PIXELS, k, 1)) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def disposed(path):
    """A GIF whose frames are kept, cleared and restored in turn, with times of their own."""
    frames = [Image.fromarray(np.roll(PIXELS, 5 * k, 1)).convert("P") for k in range(4)]
    times, ways = [20, 100, 300, 50], [1, 2, 3, 2]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, disposal=ways, transparency=0)


def with_thumbnail(path):
    Image.fromarray(PIXELS).save(path, save_all=True, append_images=[Image.fromarray(PIXELS[:12, :16])])


def bmp_core(path):
    """A bitmap of OS/2's header, with a palette of 2 colours and 8 bits."""
    head = b"BM" + struct.pack("<IHHI", 26 + 6 + 32 * 24, 0, 0, 32) + struct.pack("<IHHHH", 12, 32, 24, 1, 8)
    path.write_bytes(head + b"\0\0\0\xff\xff\xff" + bytes(32 * 24))


IMAGES = [
    ("8-bit grey PNG", "png", lambda p: save_pillow(p, "L")),
    ("1-bit PNG", "png", lambda p: save_pillow(p, "1")),
    ("palette PNG", "png", lambda p: save_pillow(p, "P")),
    ("PNG with alpha", "png", lambda p: save_pillow(p, "RGBA")),
    ("16-bit PNG", "png", lambda p: save_opencv(p, DEEP)),
    ("16-bit grey PNG", "png", lambda p: save_opencv(p, DEEP[..., 0])),
    ("PNG turned by EXIF", "png", turned),
    ("JPEG", "jpg", save_pillow),
    ("CMYK JPEG", "jpg", lambda p: save_pillow(p, "CMYK")),
    ("progressive JPEG", "jpeg", lambda p: save_pillow(p, progressive=True)),
    ("JPEG turned by EXIF", "jpg", turned),
    ("JPEG with a video behind it", "jpg", lambda p: (save_pillow(p), p.write_bytes(p.read_bytes() + bytes(9000)))),
    ("BMP", "bmp", save_pillow),
    ("BMP with a core header and palette", "bmp", bmp_core),
    ("WebP, lossless", "webp", lambda p: save_pillow(p, lossless=True)),
    ("AVIF", "avif", save_pillow),
    ("TIFF, LZW with predictor", "tif", lambda p: save_pillow(p, compression="tiff_lzw", tiffinfo={317: 2})),
    ("TIFF, CMYK", "tif", lambda p: save_pillow(p, "CMYK")),
    ("TIFF, 16 bits", "tif", lambda p: save_opencv(p, DEEP)),
    ("TIFF, float", "tif", lambda p: save_opencv(p, PIXELS.astype(np.float32))),
    ("PPM whose white is 100", "ppm", lambda p: pnm(p, 100)),
    ("PPM whose white is 1023", "ppm", lambda p: pnm(p, 1023)),
    ("animated WebP", "webp", lambda p: animated(p, duration=80, lossless=True)),
    ("animated PNG", "png", lambda p: animated(p, duration=80)),
    ("GIF", "gif", lambda p: animated(p, duration=80)),
    ("TIFF with pages", "tif", animated),
    ("GIF of other disposals", "gif", disposed),
    ("TIFF with a thumbnail", "tif", with_thumbnail),
    ("TIFF, fax of 1 bit", "tif", lambda p: save_pillow(p, "1", compression="group4")),
    ("TIFF, JPEG inside", "tif", lambda p: save_pillow(p, compression="jpeg")),
    ("PPM whose white is 1000", "ppm", lambda p: pnm(p, 1000)),
    ("palette BMP", "bmp", lambda p: save_pillow(p, "P")),
    ("JPEG 2000", "jp2", save_pillow),
    ("PDF", "pdf", save_pillow),
]  # fmt: skip
X265 = {"x265-params": "log-level=none"}
AVI, FIELDS = {"time_base": Fraction(1, 25)}, {"flags": "+ilme+ildct", "bf": "0"}
HDR = {"color_primaries": 9, "color_trc": 16, "colorspace": 9, "color_range": 1}
TS = {"sound": "aac", "encoder": {"bf": "0"}}
FILMS = [
    ("variable rate", "mkv", lambda p: film(p, times=[k * 3600 + k % 3 * 900 for k in range(12)])),
    ("rate 24000/1001", "mp4", lambda p: film(p, rate=Fraction(24000, 1001))),
    ("begins at 10 s", "ts", lambda p: film(p, times=[900_000 + k * 3600 for k in range(12)], encoder={"bf": "0"})),
    ("clock that starts again", "ts", lambda p: p.write_bytes(film(p, 10, **TS).read_bytes() * 2)),
    ("10 bits", "mkv", lambda p: film(p, codec="libx265", pix_fmt="yuv420p10le", encoder=X265)),
    ("VP9", "webm", lambda p: film(p, codec="libvpx-vp9")),
    ("VP8", "webm", lambda p: film(p, codec="libvpx")),
    ("MPEG-4 Part 2 in AVI", "avi", lambda p: film(p, codec="mpeg4", context={"time_base": Fraction(1, 25)})),
    ("raw H.264", "h264", lambda p: film(p, format="h264")),
    ("turned by 90 degrees", "mov", lambda p: film(p, turn=90)),
    ("a name with a colon", "12:30.mp4", film),
    ("times before zero", "mkv", lambda p: film(p, times=[3600 * (k - 2) for k in range(12)])),
    ("HDR10", "mkv", lambda p: film(p, codec="libx265", pix_fmt="yuv420p10le", encoder=X265, context=HDR)),
    ("4:1:1, odd size", "mkv", lambda p: film(p, codec="ffv1", pix_fmt="yuv411p", size=(47, 61))),
    ("4:4:0, odd size", "mkv", lambda p: film(p, codec="ffv1", pix_fmt="yuv440p", size=(47, 61))),
    ("interlaced MPEG-2", "mpg", lambda p: film(p, codec="mpeg2video", encoder=FIELDS, context=AVI)),
    ("Motion JPEG in AVI", "avi", lambda p: film(p, codec="mjpeg", pix_fmt="yuvj422p", context=AVI)),
    ("RGB of 15 bits in AVI", "avi", lambda p: film(p, codec="rawvideo", pix_fmt="rgb555le", context=AVI)),
    ("Windows Media", "wmv", lambda p: film(p, codec="wmv2", context=AVI)),
    ("Sorenson in FLV", "flv", lambda p: film(p, codec="flv", context=AVI)),
    ("QuickTime Animation with alpha", "mov", lambda p: film(p, codec="qtrle", pix_fmt="argb")),
    ("raw HEVC", "h265", lambda p: film(p, codec="libx265", format="hevc", encoder=X265)),
    ("subtitles of ASS", "mkv", lambda p: film(p, words="ass")),
    ("one frame", "mp4", lambda p: film(p, 1)),
    ("1000 frames per second", "mp4", lambda p: film(p, rate=1000)),
    ("cut in half", "mp4", lambda p: p.write_bytes(film(p, 60).read_bytes()[:2000])),
]  # fmt: skip


def rows(folder):
    """(section, what, became) of every input."""
    for container, codec, rate, layout in SOUNDS:
        path = sounding_film(folder / f"s.{container}", codec, rate, layout)
        what = f"{codec}, {rate} Hz, {layout} in .{container}"
        yield "Sound", what, *(became(path, folder / f"o.{suffix}", sound=True) for suffix in ("mp4", "mkv", "mov"))
    for number, (what, suffix, make) in enumerate(IMAGES):
        path = folder / f"{number}.{suffix}"
        make(path)
        yield "Images", what, read_as(path)
    for number, (what, suffix, make) in enumerate(FILMS):
        path = folder / (suffix if ":" in suffix else f"f{number}.{suffix}")
        make(path)
        yield "Videos", what, became(path, folder / "o.mp4"), became(path, folder / "o.mkv")


def became(path, output, *, sound=False):
    """Words for what an output has of a video."""
    try:
        source = probe(path)
        chosen = choose_format(source, output, size=(source.height, source.width))
        dry_run_output(source, chosen, output)
    except VideoError as error:
        return f"refused: {str(error).partition(': ')[2].partition(';')[0]}"
    said = [line.partition(": becomes ")[2] or line for line in list_omissions(source, chosen)]
    kept = "copied" if sound else f"{source.frames} frames, {'times kept' if source.times else 'even times'}"
    return "; ".join(said if sound and said else [kept, *said])


def read_as(path):
    """Words for what an image is read as."""
    try:
        source = probe(path)
        frame = next(read(source))
    except VideoError as error:
        return f"refused: {str(error).partition(': ')[2]}"
    kind = (
        "an image" if source.kind == "image" else f"{source.frames} frames" + (", with times" if source.times else "")
    )
    alpha = ", transparent" if source.alpha else ""
    return "; ".join([f"{kind}, {frame.shape[1]}x{frame.shape[0]}, {source.depth} bits{alpha}", *source.notes])


HEADS = {
    "Sound": ("Sound of", ".mp4", ".mkv", ".mov"), "Images": ("Image of 32x24", "read as"),
    "Videos": ("Video", "into .mp4", "into .mkv"),
}  # fmt: skip


def document(found):
    text, section = [HEAD], None
    for name, *cells in found:
        if name != section:
            section = name
            text += [f"\n## {name}\n", "| " + " | ".join(HEADS[name]) + " |", "|---" * len(HEADS[name]) + "|"]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


@pytest.mark.slow  # makes and tries 87 inputs
def test_the_document_says_what_becomes_of_every_input(tmp_path):
    found = list(rows(tmp_path))
    assert len(found) >= 30
    assert document(found) == DOCUMENT.read_text(encoding="utf-8"), "write docs/FORMATS.md again if this is meant"


@pytest.mark.parametrize("maximum", [100, 1023])
def test_white_is_white_whatever_its_number_is(tmp_path, maximum):
    pnm(tmp_path / "a.ppm", maximum)
    frame = next(read(tmp_path / "a.ppm")).astype(float)
    most = 255 if maximum < 256 else 65535
    assert np.abs(frame / most - (PIXELS.astype(int) * maximum // 255) / maximum).max() < 1 / 254


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        DOCUMENT.write_text(document(rows(Path(made))), encoding="utf-8")
