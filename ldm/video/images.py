"""Read image files as RGB of 8 bits with Pillow, or of 16 bits with FFmpeg.

OpenCV is not used for files: its reader of animated PNG hangs or ends the process on damaged ones.
"""

import io
import os
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ldm.memory import free_host_memory
from ldm.video.pixels import to_bytes, with_channels
from ldm.video.source import IMAGE_SUFFIXES, MOST_PIXELS, VIDEO_SUFFIXES, VideoError, check_pixels

READERS = (AvifImagePlugin.AvifImageFile, BmpImagePlugin.BmpImageFile, BmpImagePlugin.DibImageFile)
READERS += (GifImagePlugin.GifImageFile, JpegImagePlugin.JpegImageFile)
READERS += (PngImagePlugin.PngImageFile, PpmImagePlugin.PpmImageFile, TiffImagePlugin.TiffImageFile)
FORMATS = tuple(reader.format for reader in (*READERS, WebPImagePlugin.WebPImageFile))
ANIMATED = ("PNG", "TIFF", "WEBP", "AVIF", "GIF")  # an MPO holds other views of the same picture
# first bytes of image files, for files with an unknown suffix
SIGNS = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"P4", b"P5", b"P6")
DEEP_CODECS = {"PNG": "png", "TIFF": "tiff", "PPM": "ppm"}  # FFmpeg's decoders of images deeper than 8 bits
ORIENTATION = 0x0112  # EXIF
BITS_PER_SAMPLE, SAMPLE_FORMAT, PHOTOMETRIC, TILE_WIDTH = 258, 339, 262, 322  # TIFF
# turns of the EXIF orientation: (transposed, mirrored up and down, mirrored left and right)
TURNS = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}
DECODING_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError)
DECODING_ERRORS += (struct.error, Image.DecompressionBombError, MemoryError, AttributeError, ZeroDivisionError)


class Form(NamedTuple):
    """The form of all frames of an image sequence: size as shown, bits per sample (8 or 16), transparency."""

    width: int
    height: int
    depth: int
    alpha: bool


def is_image(path) -> bool:
    """Whether a file is an image, by its suffix, or by its first bytes if the suffix is unknown."""
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix == ".gif":
        return True
    if suffix in VIDEO_SUFFIXES:
        return False
    with open(path, "rb") as file:
        head = file.read(12)
    return head.startswith(SIGNS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def open_image(path) -> Image.Image:
    """Open an image file with Pillow, without decoding it. Raises VideoError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large and damaged files are checked below
            image = Image.open(io.BytesIO(_bytes_of(path)), formats=FORMATS)
            check_pixels(path, *image.size, held=len(image.fp.getbuffer()))
            if image.format == "PNG" and b"IEND" not in image.fp.getvalue():  # Pillow accepts a truncated PNG
                raise _unreadable(path)
            return image
    except VideoError:
        raise
    except Image.DecompressionBombError:
        raise VideoError(f"{path}: its picture is too large, expected at most {MOST_PIXELS} pixels") from None
    except DECODING_ERRORS:
        raise _unreadable(path) from None


def _unreadable(path):
    return VideoError(f"{path}: not a readable image, or cut short (expected 8 or 16 bits per sample)")


def _bytes_of(path):
    try:
        with open(path, "rb") as file:
            size, free = os.fstat(file.fileno()).st_size, free_host_memory()
            if free is not None and size > free:
                raise VideoError(f"{path}: {size / 1e9:.1f} GB do not fit into the {free / 1e9:.1f} GB that are free")
            return file.read()
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror})") from None


def frame_count(path) -> int:
    """Return the number of frames, or of pages of one size, of an image file."""
    image = open_image(path)
    if image.format not in ANIMATED:
        return 1
    try:
        count = getattr(image, "n_frames", 1)
        return count if image.format != "TIFF" or count < 2 else _equal_pages(image, count)
    except DECODING_ERRORS:
        raise _unreadable(path) from None


def _equal_pages(image, count):
    """Return the number of pages if all have one size; otherwise 1, since the others are thumbnails or masks."""
    sizes = set()
    for page in range(count):
        image.seek(page)
        sizes.add(image.size)
    image.seek(0)
    return count if len(sizes) == 1 else 1


def read_image(path, depth=8, alpha=False):
    """Read an image file as (h, w, 3) RGB, or (h, w, 4) with straight alpha: uint8 if `depth` is 8, else uint16.

    EXIF orientation is applied; samples of another depth are rounded or widened.

    Raises:
        VideoError: a file that is unreadable, cut short, or neither 8 nor 16 bits deep.
    """
    image = open_image(path)
    pixels = deep_pixels(path, image) if sample_depth(path, image) == 16 else loaded_pixels(path, image)
    pixels = with_channels(pixels, 4 if alpha else 3)
    if (pixels.dtype == np.uint8) == (depth == 8):
        return pixels
    return to_bytes(pixels) if depth == 8 else pixels.astype(np.uint16) * np.uint16(257)


def loaded_pixels(path, image):
    """Return the current frame of a Pillow image, (h, w, 3 or 4) uint8, upright. Raises VideoError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(image)
            image.load()
            return np.array(image.convert("RGBA" if _has_alpha(image) else "RGB"))
    except DECODING_ERRORS:
        raise _unreadable(path) from None


def _has_alpha(image):
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def sample_depth(path, image) -> int:
    """Return the bits per sample, 8 or 16. Raises VideoError for others."""
    if image.mode == "F" or (image.format == "TIFF" and set(image.tag_v2.get(SAMPLE_FORMAT, (1,))) - {1}):
        raise VideoError(f"{path}: got samples that are no natural numbers, expected 8 or 16 bits")
    if image.format == "TIFF":
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
        if bits > 16:
            raise VideoError(f"{path}: got samples of {bits} bits, expected 8 or 16 bits")
        return 16 if bits > 8 else 8
    if image.format == "PNG":
        image.fp.seek(24)
        depth = image.fp.read(1)
        image.fp.seek(0)
        return 16 if depth == b"\x10" else 8
    if image.format == "PPM":
        return 16 if _pnm_maximum(image) > 255 else 8
    return 8


def _pnm_maximum(image):
    """Return the maximum value of a PGM or PPM file."""
    image.fp.seek(0)
    head = b" ".join(line.partition(b"#")[0] for line in image.fp.read(512).split(b"\n"))
    words = head.split()
    return int(words[3]) if words[0] != b"P4" and len(words) > 3 and words[3].isdigit() else 255


def deep_pixels(path, image):
    """Read an image of more than 8 bits as (h, w, 3 or 4) uint16 of full scale, upright. Raises VideoError."""
    data = image.fp.getvalue()
    if image.format == "TIFF" and (TILE_WIDTH in image.tag_v2 or image.tag_v2.get(PHOTOMETRIC) == 0):
        raise VideoError(f"{path}: a deep TIFF in tiles, or whose 0 is white, cannot be read; save it as PNG")
    name = DEEP_CODECS[image.format]
    name = "pgm" if name == "ppm" and data[:2] in (b"P2", b"P5") else name
    try:
        decoder = av.CodecContext.create(name, "r")
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
        if len(frames) != 1 or frames[0].is_corrupt or {frames[0].width, frames[0].height} != {*image.size}:
            raise _unreadable(path)
        pixels = _words(frames[0])
    except (av.FFmpegError, ValueError, MemoryError):
        raise _unreadable(path) from None
    if pixels is None:
        raise VideoError(f"{path}: got pixels as {frames[0].format.name}, expected grey or RGB of 8 or 16 bits")
    flipped, rows, columns = TURNS.get(image.getexif().get(ORIENTATION), (0, 0, 0))
    pixels = pixels.swapaxes(0, 1) if flipped else pixels
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1])


def _words(frame):
    """Return the 16-bit samples of a decoded grey or RGB frame as (h, w, 3 or 4); None for other kinds."""
    if frame.format.name in ("gbrp16le", "gbrap16le"):
        planes = [np.frombuffer(p, "<u2").reshape(p.height, -1)[:, : p.width] for p in frame.planes]
        return np.dstack([planes[2], planes[0], planes[1], *planes[3:]])
    names = {"gray16": 1, "ya16": 2, "rgb48": 3, "rgba64": 4, "gray12": 1, "gray10": 1, "gray14": 1}
    name, order = frame.format.name[:-2], {"be": ">u2", "le": "<u2"}.get(frame.format.name[-2:])
    if name not in names or order is None:
        return None
    plane, channels = frame.planes[0], names[name]
    words = np.frombuffer(plane, order).reshape(frame.height, -1)[:, : frame.width * channels]
    pixels = words.reshape(frame.height, frame.width, channels).astype(np.uint16)
    if channels < 3:
        pixels = np.dstack([pixels[..., :1]] * 3 + [pixels[..., 1:]])
    return pixels


def common_form(folder, names):
    """Return (form of a folder's images, notes on losses): the greatest depth, with alpha if any image has it.

    Raises:
        VideoError: two images whose sizes differ, by name.
    """
    first = read_image(folder / names[0]).shape[1::-1]
    depth, alpha, profiles, several = 8, False, False, []
    for name in names:
        form, profile, animated = _quick_form(folder / name)
        depth, alpha, profiles = max(depth, form.depth), alpha or form.alpha, profiles or profile
        several += [name] * (animated and len(names) > 1)
        if form[:2] != first and (size := read_image(folder / name).shape[1::-1]) != first:  # may be rotated
            raise VideoError(mixed_sizes(folder, names[0], first, name, size))
    notes = ("the images' colour profiles (ICC) cannot be carried over",) if profiles else ()
    if several:
        notes += (f"{len(several)} images, such as {several[0]}, hold several frames; the first of each is taken",)
    return Form(*first, depth, alpha), notes


def mixed_sizes(folder, first, size, other, other_size):
    """Return the message about two images of one folder with different sizes (width, height)."""
    return "{}: {} is {}x{} but {} is {}x{}; expected one size".format(folder, first, *size, other, *other_size)


def _quick_form(path):
    """Return (form as shown, whether it has a colour profile, whether it has several frames) without decoding."""
    image = open_image(path)
    try:
        depth = sample_depth(path, image)
        stated = image.format != "TIFF" and (
            image.format != "PNG" or "exif" in image.info
        )  # reading it would decode the others
        turned = stated and TURNS.get(image.getexif().get(ORIENTATION), (0, 0, 0))[0]
        animated = image.format in ANIMATED and getattr(image, "is_animated", False)
        width, height = image.size[::-1] if turned else image.size
        form = Form(width, height, depth, _has_alpha(image))
    except VideoError:
        raise
    except DECODING_ERRORS:
        raise _unreadable(path) from None
    return form, bool(image.info.get("icc_profile")), animated


ImageFile.LOAD_TRUNCATED_IMAGES = False  # a cut file is an error, not a grey area
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow raises DecompressionBombError above twice as many
