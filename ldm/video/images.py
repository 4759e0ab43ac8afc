"""Image files as RGB of 8 or 16 bits, with what OpenCV leaves out: cut files are noticed, headers read cheaply."""

import contextlib
import os
import sys
import threading
from typing import NamedTuple

import cv2
import numpy as np

from ldm.video.pixels import to_bytes, with_channels
from ldm.video.source import VideoError

_ONE_AT_A_TIME = threading.Lock()  # the error stream belongs to the whole process


class Form(NamedTuple):
    """What frames of an image sequence have in common: size as shown, bits per sample (8 or 16), transparency."""

    width: int
    height: int
    depth: int
    alpha: bool


def read_image(path, depth=8, alpha=False):
    """An image file as (h, w, 3) RGB, or (h, w, 4) with straight alpha: uint8 if `depth` is 8, otherwise uint16.

    EXIF orientation is applied; samples of another depth are rounded or widened.

    Raises:
        VideoError: a file that is unreadable, cut short, or neither 8 nor 16 bits deep.
    """
    pixels = _decode_rgb(path)
    if alpha:
        pixels = with_channels(pixels, 3)
        pixels = np.dstack([pixels, _opacity(path, pixels)])
    if (pixels.dtype == np.uint8) == (depth == 8):
        return pixels
    return to_bytes(pixels) if depth == 8 else pixels.astype(np.uint16) * np.uint16(257)


def _decode_rgb(path):
    image = _decode(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise VideoError(f"{path}: not a readable image, or cut short")
    if image.dtype not in (np.uint8, np.uint16):
        raise VideoError(f"{path}: got {image.dtype} samples, expected 8 or 16 bits")
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _opacity(path, pixels):
    """The alpha channel of an image, opaque where it has none, turned the way its decoded `pixels` are."""
    stored = _decode(path, cv2.IMREAD_UNCHANGED)
    if stored.ndim == 2 or stored.shape[2] != 4:
        return np.full(pixels.shape[:2], np.iinfo(pixels.dtype).max, pixels.dtype)
    colours = np.ascontiguousarray(stored[..., 2::-1])
    for turns in range(4):
        for mirrored in (False, True):
            ways = [np.rot90(a[:, ::-1] if mirrored else a, turns) for a in (colours, stored[..., 3])]
            if ways[0].shape == pixels.shape and np.array_equal(ways[0], pixels):
                return ways[1]
    return stored[..., 3]


def common_form(folder, names):
    """(Form of a folder's images, notes on what is lost): the greatest depth, transparent if any image is.

    Raises:
        VideoError: two images whose sizes differ, by name.
    """
    first, stored = read_image(folder / names[0]).shape[1::-1], _quick_form(folder / names[0])
    depth, alpha, profiles = stored[0].depth, stored[0].alpha, stored[1]
    for name in names[1:]:
        form, profile = _quick_form(folder / name)
        depth, alpha, profiles = max(depth, form.depth), alpha or form.alpha, profiles or profile
        # stored sizes may differ for the same picture (EXIF orientation), so a difference is looked at closely
        if form[:2] != stored[0][:2]:
            size = read_image(folder / name).shape[1::-1]
            if size != first:
                raise VideoError(mixed_sizes(folder, names[0], first, name, size))
    notes = ("the images' colour profiles (ICC) cannot be carried over",) if profiles else ()
    return Form(*first, depth, alpha), notes


def mixed_sizes(folder, first, size, other, other_size):
    """The message about two images of one folder whose sizes (width, height) differ."""
    return "{}: {} is {}x{} but {} is {}x{}; expected one size".format(folder, first, *size, other, *other_size)


def _decode(path, flags):
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise VideoError(f"{path}: cannot be opened ({error.strerror})") from None
    if not _looks_whole(data.tobytes()):
        return None
    try:
        with _silent():
            return cv2.imdecode(data, flags)
    except cv2.error:  # OpenCV's way to say so for some formats; for others it returns None
        return None


@contextlib.contextmanager
def _silent():
    """Keep what the image libraries print about a damaged file, past every setting of OpenCV, off the error stream."""
    with _ONE_AT_A_TIME, open(os.devnull, "wb") as nowhere:
        sys.stderr.flush()
        stream = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stream, 2)
            os.close(stream)


def _looks_whole(data):
    """Whether a PNG or JPEG has its end mark: OpenCV fills what is missing with grey and says nothing."""
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") > 0
    if data.startswith(b"\xff\xd8"):
        return data.find(b"\xff\xd9", _jpeg_header(data)[1]) > 0
    return len(data) > 0


def _jpeg_header(data):
    """((width, height) or None, where the compressed picture starts), from the segments before it."""
    size, at = None, 2
    while at + 9 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            size = int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return size, at


def _quick_form(path):
    """(Form as stored, whether there is a colour profile), from the first bytes where they tell, else by decoding."""
    with open(path, "rb") as file:
        head = file.read(65536)
    profile = any(mark in head for mark in (b"iCCP", b"ICC_PROFILE\x00", b"ICCP"))
    if head[12:16] == b"IHDR":
        size = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
        alpha = head[25] in (4, 6) or b"tRNS" in head[: head.find(b"IDAT")]
        return Form(*size, 16 if head[24] == 16 else 8, alpha), profile
    if head.startswith(b"\xff\xd8") and (size := _jpeg_header(head)[0]):
        return Form(*size, 8, False), profile
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise VideoError(f"{path}: not a readable image, or cut short")
    alpha = image.ndim == 3 and image.shape[2] in (2, 4)
    return Form(*image.shape[1::-1], 16 if image.dtype == np.uint16 else 8, alpha), profile
