"""Convert samples: decoded frames to RGB arrays, arrays to tensors, and either to frames for an encoder.

Frames are arrays (h, w, 3|4): RGB or RGBA with straight alpha, uint8 or uint16 of full scale (65535 is one); or float
tensors (3|4, h, w) in [0, 1]. FFmpeg's scaler converts 8-bit frames. It maps white of deeper ones to 65283 of 65535
(it shifts where it should scale), so those are computed here, from the definition of ITU-T H.273.
"""

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from ldm.video.source import Color, VideoError

# FFmpeg's swscale flags: bicubic | full chroma interpolation | full chroma input | accurate rounding
EXACT_SCALING = 0x4 | 0x2000 | 0x4000 | 0x40000
BT709, BT601 = 1, 6  # AVColorSpace; also the numbers of their primaries and transfer curves
BT2020 = (9, 10)
LIMITED, FULL = 1, 2  # AVColorRange
# AVColorSpace -> swscale's number of the same matrix: BT.709, FCC, BT.470BG, SMPTE 170M, SMPTE 240M, BT.2020
SCALER_MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
# AVColorSpace -> shares of red and blue in luma
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
LUMA |= {9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}


def matrix_of_size(height, width):
    """Return the colour matrix that players assume for a picture of this size: BT709 or BT601."""
    return BT709 if width >= 1280 or height > 576 else BT601


# --------------------------------------------------------------------------------------------- arrays and tensors


def frame_tensor(frame) -> torch.Tensor:
    """Convert an array (h, w, c), uint8 or uint16, to a float32 tensor (c, h, w) in [0, 1]."""
    return torch.from_numpy(
        np.ascontiguousarray(frame.transpose(2, 0, 1)).astype(np.float32) / np.iinfo(frame.dtype).max
    )


def to_samples(frame, dtype, what="a frame"):
    """Convert an array or tensor to (h, w, 3|4) of `dtype`, np.uint8 or np.uint16, rounded to the nearest.

    Raises:
        VideoError: another shape or type; values that are not finite numbers.
    """
    most = np.iinfo(dtype).max
    if isinstance(frame, torch.Tensor):
        values = _checked_tensor(frame, what).clamp(0, 1).mul(most).round()
        return values.permute(1, 2, 0).contiguous().numpy().astype(dtype)
    if frame.ndim != 3 or frame.shape[2] not in (3, 4) or frame.dtype not in (np.uint8, np.uint16):
        want = "(h, w, 3) or (h, w, 4) of uint8 or uint16, or a float tensor"
        raise VideoError(f"got {what} as {frame.shape} {frame.dtype}, expected {want}")
    if frame.dtype == dtype:
        return np.ascontiguousarray(frame)
    return to_bytes(frame) if most == 255 else frame.astype(np.uint16) * np.uint16(257)


def to_bytes(deep):
    """Convert uint16 samples to uint8, rounded to the nearest; the inverse of a multiplication by 257."""
    return ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)


def with_channels(pixels, channels):
    """Return pixels with 3 or 4 channels: alpha is dropped, or added as opaque."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.ascontiguousarray(pixels[..., :3])
    opaque = np.full((*pixels.shape[:2], 1), np.iinfo(pixels.dtype).max, pixels.dtype)
    return np.concatenate([pixels, opaque], axis=2)


def _checked_tensor(frame, what):
    if frame.ndim != 3 or frame.shape[0] not in (3, 4) or not frame.is_floating_point():
        want = "(3, h, w) or (4, h, w) float in [0, 1]"
        raise VideoError(f"got {what} as {tuple(frame.shape)} {frame.dtype}, expected {want}")
    values = frame.detach().float().cpu()
    if not torch.isfinite(values).all():
        raise VideoError(f"{what} holds values that are not finite numbers")
    return values


# ------------------------------------------------------------------------------------------------ decoded frames


def depth_of(frame_format):
    """Return the bits per sample of a pixel format, rounded up to 8, 10, 12 or 16."""
    bits = max(component.bits for component in frame_format.components)
    return next((depth for depth in (8, 10, 12) if bits <= depth), 16)


def has_transparency(frame_format):
    """Whether a pixel format has alpha."""
    return any(component.is_alpha for component in frame_format.components)


def frame_pixels(frame, alpha, color: Color, reformatter: VideoReformatter):
    """Convert a decoded frame to an upright array (h, w, 4 if alpha else 3), uint8, or uint16 for deeper formats.

    Without a known colour matrix, BT.709 is assumed for high definition and BT.601 otherwise, as players do.
    """
    matrix = color.matrix if color.matrix in LUMA else matrix_of_size(frame.height, frame.width)
    if depth_of(frame.format) == 8:
        options = {"src_colorspace": SCALER_MATRIX[matrix], "interpolation": EXACT_SCALING}
        return upright(reformatter.reformat(frame, format="rgba" if alpha else "rgb24", **options).to_ndarray(), frame)
    if frame.format.is_rgb or len(frame.format.components) == 2:
        name = "rgba64le" if alpha else "rgb48le"
        return upright(reformatter.reformat(frame, format=name, interpolation=EXACT_SCALING).to_ndarray(), frame)
    if not _is_planar(frame.format):  # samples side by side, or big-endian: put into planes, their values kept
        name = "yuva444p16le" if alpha else "yuv444p16le"
        frame = reformatter.reformat(frame, format=name, interpolation=EXACT_SCALING)
    return upright(_deep_rgb(frame, alpha, color.range, matrix), frame)


def upright(pixels, frame):
    """Rotate and mirror pixels by the display matrix of their frame."""
    a, b, c, d = display_matrix(frame)
    if a == d == 0:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def display_matrix(frame):
    """Return the signs (a, b, c, d) of the display matrix x' = ax + cy, y' = bx + dy; (1, 0, 0, 1) without one.

    Raises:
        VideoError: an angle that is no multiple of 90 degrees.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    terms = np.frombuffer(bytes(data), "=i4")[[0, 1, 3, 4]].astype(int)
    signs = tuple(int(term) for term in np.sign(np.where(abs(terms) < abs(terms).max() / 256, 0, terms)))
    if [sign != 0 for sign in signs] not in ([True, False, False, True], [False, True, True, False]):
        raise VideoError(f"got a display matrix of {terms.tolist()}, expected a turn by a multiple of 90 degrees")
    return signs


def _deep_rgb(frame, alpha, color_range, matrix):
    """Convert a YUV or grey frame of more than 8 bits to RGB or RGBA, uint16 of full scale."""
    components = frame.format.components
    bits, planes = components[0].bits, _planes(frame)
    opacity = np.full(planes[0].shape, 65535, np.uint16)
    if alpha:
        opacity = _rescaled(planes.pop(), 2**bits - 1, 65535)
    if len(planes) == 1:
        full = color_range != LIMITED
        low, high = (0, 2**bits - 1) if full else (16 << bits - 8, 235 << bits - 8)
        grey = _rescaled(np.clip(planes[0], low, high) - np.uint16(low), high - low, 65535)
        return np.dstack([grey] * 3 + [opacity] * alpha)
    chroma = [_upsampled_chroma(plane, planes[0].shape) for plane in planes[1:]]
    yuv = np.dstack([planes[0].astype(np.float32), *chroma])
    rgb = cv2.transform(yuv, _to_rgb_matrix(bits, color_range, matrix))
    rgb = np.rint(np.clip(rgb, 0, 1) * 65535).astype(np.uint16)
    return np.dstack([rgb, opacity]) if alpha else rgb


def _planes(frame):
    """Return the planes of a planar frame of 16-bit words as arrays (h, w)."""
    arrays = []
    for plane in frame.planes:
        words = np.frombuffer(plane, "<u2")[: plane.height * (plane.line_size // 2)]
        arrays.append(words.reshape(plane.height, -1)[:, : plane.width])
    return arrays


def _is_planar(frame_format):
    return frame_format.name.startswith(("yuv", "gray")) and frame_format.name.endswith("le")


def _rescaled(codes, most, target):
    return np.rint(codes.astype(np.float64) * (target / most)).astype(np.uint16)


def _to_rgb_matrix(bits, color_range, matrix):
    """Return the matrix (3, 4) from codes of (Y, Cb, Cr, 1) to RGB in [0, 1] (H.273, MatrixCoefficients)."""
    (red, blue), scale = LUMA[matrix], 2 ** (bits - 8)
    low, luma, chroma = (0, 2**bits - 1, 2**bits - 1) if color_range == FULL else (16 * scale, 219 * scale, 224 * scale)
    green = 1 - red - blue
    ideal = np.array([[1, 0, 2 * (1 - red)], [1, 0, 0], [1, 2 * (1 - blue), 0]])
    ideal[1, 1:] = -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green
    linear = ideal / [luma, chroma, chroma]
    return np.column_stack([linear, -linear @ [low, 128 * scale, 128 * scale]])


# ---------------------------------------------------------------------------------------------- chroma resampling


def _upsampled_chroma(plane, shape):
    """Upsample chroma to full size, linearly; samples lie on the left pixel of a pair and between two rows."""
    plane = plane.astype(np.float32)
    if plane.shape[0] < shape[0]:
        above, below = np.vstack([plane[:1], plane[:-1]]), np.vstack([plane[1:], plane[-1:]])
        plane = np.stack([0.75 * plane + 0.25 * above, 0.75 * plane + 0.25 * below], 1)
        plane = plane.reshape(-1, plane.shape[2])[: shape[0]]
    if plane.shape[1] < shape[1]:
        right = np.hstack([plane[:, 1:], plane[:, -1:]])
        plane = np.stack([plane, 0.5 * (plane + right)], 2).reshape(plane.shape[0], -1)[:, : shape[1]]
    return plane


def _downsampled_chroma(plane, halved_rows, halved_columns):
    """Downsample chroma to half the size, for samples placed as in `_upsampled_chroma`."""
    if halved_columns:
        padded = np.pad(plane, ((0, 0), (1, 1)), "edge")
        plane = (0.25 * padded[:, :-2] + 0.5 * plane + 0.25 * padded[:, 2:])[:, ::2]
    return 0.5 * (plane[::2] + plane[1::2]) if halved_rows else plane


# ------------------------------------------------------------------------------------------- frames for an encoder


def encoder_frame(pixels, pixel_format, color: Color, reformatter: VideoReformatter):
    """Convert an array (h, w, 3|4) to a frame of `pixel_format`: 8 bits from uint8, deeper formats from uint16."""
    if pixels.dtype == np.uint8 and color.matrix in BT2020:  # which the scaler of older PyAV does not know
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    elif pixels.dtype == np.uint8:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24")
        if pixel_format.startswith("yuv"):
            options = {"dst_colorspace": SCALER_MATRIX[color.matrix], "dst_color_range": color.range}
            return reformatter.reformat(frame, format=pixel_format, interpolation=EXACT_SCALING, **options)
        return reformatter.reformat(frame, format=pixel_format, interpolation=EXACT_SCALING)
    if pixel_format.startswith("gbr"):
        return av.VideoFrame.from_ndarray(_rescaled(pixels, 65535, 2 ** _bits(pixel_format) - 1), format=pixel_format)
    return _yuv_frame(pixels, pixel_format, color)


def _bits(pixel_format):
    return av.VideoFormat(pixel_format).components[0].bits


def _yuv_frame(pixels, pixel_format, color):
    bits = _bits(pixel_format)
    matrix = _to_rgb_matrix(bits, color.range, color.matrix)
    inverse = np.linalg.inv(matrix[:, :3])
    inverse = np.column_stack([inverse / 65535, -inverse @ matrix[:, 3]])
    yuv = cv2.transform(pixels[..., :3].astype(np.float32), inverse)
    planes = [
        yuv[..., 0],
        *(_downsampled_chroma(yuv[..., i], "420" in pixel_format, "444" not in pixel_format) for i in (1, 2)),
    ]
    if pixels.shape[2] == 4:
        planes.append(pixels[..., 3] * ((2**bits - 1) / 65535))
    frame = av.VideoFrame(pixels.shape[1], pixels.shape[0], pixel_format)
    for plane, codes in zip(frame.planes, planes, strict=True):
        width = plane.line_size if bits == 8 else plane.line_size // 2
        words = np.zeros((plane.height, width), "u1" if bits == 8 else "<u2")
        words[:, : plane.width] = np.clip(np.rint(codes), 0, 2**bits - 1)
        plane.update(words.tobytes())
    return frame
