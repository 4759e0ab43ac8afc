"""Image files as 8-bit RGB, with what OpenCV leaves out: cut files are noticed, sizes are read without decoding."""

import cv2
import numpy as np

from ldm.video.source import VideoError


def read_image(path):
    """An image file as (h, w, 3) uint8 RGB: EXIF orientation applied, alpha dropped, 16 bits rounded to 8.

    Raises:
        VideoError: a file that is unreadable, cut short, or neither 8 nor 16 bits deep.
    """
    image = _decode(path, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise VideoError(f"{path}: not a readable image, or cut short")
    if image.dtype == np.uint16:
        image = np.round(image / 257.0).astype(np.uint8)
    if image.dtype != np.uint8:
        raise VideoError(f"{path}: got {image.dtype} samples, expected 8 or 16 bits")
    if image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def has_alpha(path):
    """Whether an image file stores transparency."""
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    return image is not None and image.ndim == 3 and image.shape[2] in (2, 4)


def common_size(folder, names):
    """The decoded size (width, height) of a folder's images; raises VideoError naming two that differ."""
    first, stored = read_image(folder / names[0]).shape[1::-1], _quick_size(folder / names[0])
    for name in names[1:]:
        # stored sizes may differ for the same picture (EXIF orientation), so a difference is looked at closely
        if _quick_size(folder / name) != stored:
            size = read_image(folder / name).shape[1::-1]
            if size != first:
                raise VideoError(mixed_sizes(folder, names[0], first, name, size))
    return first


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
        return cv2.imdecode(data, flags)
    except cv2.error:  # OpenCV's way to say so for some formats; for others it returns None
        return None


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


def _quick_size(path):
    """(width, height) from the first bytes where they tell, otherwise by decoding."""
    with open(path, "rb") as file:
        head = file.read(65536)
    if head[12:16] == b"IHDR":
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    if head.startswith(b"\xff\xd8") and (size := _jpeg_header(head)[0]):
        return size
    return read_image(path).shape[1::-1]
