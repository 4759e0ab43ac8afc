"""Pictures of video: an input beside its output, and one line of several clips over time.

A frame is (H, W, 3) uint8 RGB unless stated otherwise.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch.nn.functional as F

PANEL = (780, 900)  # the largest width and height of one frame in the picture
MARGIN, GAP, LINE = 16, 12, 30  # pixels: around everything, between panels, of a row of text
ZOOM = 4  # of the detail, at least
STRIP = (640, 96)  # least width, and height, of a panel of `strips`
BAND = 48  # rows of a frame in the detail of `strips`
PAPER, INK, ACCENT = (22, 23, 27), (226, 228, 233), (255, 176, 32)


def comparison(lq, sr, *, truth=None):
    """Draw input, output and, where it is known, the truth side by side: (H', W', 3) uint8 RGB, panels of at most 780.

    Top: the middle frame, the input enlarged bicubically. Middle: the most textured region of the output (boxed above),
    every pixel enlarged. Bottom: the row through that region over time, one row of the picture per frame (x-t profile),
    in which flicker shows as a comb.

    Args:
        lq: (T, 3, h, w) in [0, 1].
        sr: (T, 3, H, W) in [0, 1], as many frames.
        truth: like `sr`, or None.

    Raises:
        ValueError: shapes that do not fit, or no frame.
    """
    if truth is not None and truth.shape != sr.shape:
        raise ValueError(f"got output {tuple(sr.shape)} and truth {tuple(truth.shape)}, expected the same shape")
    if lq.ndim != 4 or sr.ndim != 4 or lq.shape[:2] != sr.shape[:2] or lq.shape[1] != 3 or lq.shape[0] == 0:
        raise ValueError(f"got input {tuple(lq.shape)}, output {tuple(sr.shape)}, expected (T, 3, height, width) twice")
    height, width = size = sr.shape[2:]
    middle = len(sr) // 2
    frames = [_enlarged(lq[middle], size), pixels(sr[middle])]
    box = busiest_box(frames[1], _detail_size(width, height))
    row = box[1] + box[3] // 2
    titles = [f"bicubic input {lq.shape[3]}x{lq.shape[2]}", f"output {width}x{height}"]
    clips, columns = [lq, sr], []
    if truth is not None:
        clips, frames, titles = [*clips, truth], [*frames, pixels(truth[middle])], [*titles, "truth"]
    for clip, frame, title in zip(clips, frames, titles, strict=True):
        columns.append(np.vstack(_frame_panels(frame, box, title, row) + _profile_panel(clip, size, row)))
    gap = np.full((columns[0].shape[0], GAP, 3), PAPER, np.uint8)
    sheet = np.hstack([part for column in columns for part in (column, gap)][:-1])
    return cv2.copyMakeBorder(sheet, MARGIN // 2, MARGIN, MARGIN, MARGIN, cv2.BORDER_CONSTANT, value=PAPER)


def strips(clips: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Draw clips below one another: (H', W', 3) uint8 RGB, each under its title.

    Left a detail of the middle frame with one row marked, right that row over time, time downward. Detail and row are
    those of the most textured region of the last clip.
    """
    last = [*clips.values()][-1]
    frame = last[len(last) // 2]
    height, width = frame.shape[:2]
    _, top, _, band = busiest_box(frame, (width, BAND))
    row = top + band // 2
    y, panels = round((row - top + 0.5) * STRIP[1] / band), []
    for title, frames in clips.items():
        detail, time = frames[len(frames) // 2][top : top + band], np.stack([frame[row] for frame in frames])
        size = max(STRIP[0], width), STRIP[1]
        both = [cv2.resize(part, size, interpolation=cv2.INTER_NEAREST) for part in (detail, time)]
        for edge, inwards in ((0, GAP), (size[0] - 1, -GAP)):
            tip = np.array([[edge, y - GAP // 2], [edge + inwards, y], [edge, y + GAP // 2]])
            cv2.fillConvexPoly(both[0], tip, ACCENT, cv2.LINE_AA)
        gap = np.full((STRIP[1], GAP, 3), PAPER, np.uint8)
        panels += [_title(title, 2 * size[0] + GAP), np.hstack([both[0], gap, both[1]])]
    return np.vstack(panels)


def busiest_box(image: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the region of at most `size` (w, h) with the greatest gradient energy."""
    height, width = image.shape[:2]
    box_w, box_h = min(width, size[0]), min(height, size[1])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    total = cv2.integral(across**2 + down**2)
    inside = total[box_h:, box_w:] - total[:-box_h, box_w:] - total[box_h:, :-box_w] + total[:-box_h, :-box_w]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return int(left), int(top), box_w, box_h


def encoded(picture: np.ndarray, suffix: str, *options: int) -> bytes:
    """Return a picture as the bytes of an image file; `options` are those of `cv2.imencode`."""
    return cv2.imencode(suffix, np.ascontiguousarray(picture[..., ::-1]), options)[1].tobytes()


def png(picture: np.ndarray) -> bytes:
    """Return a picture as PNG with the strongest compression: a quarter of the size of OpenCV's default."""
    return encoded(picture, ".png", cv2.IMWRITE_PNG_COMPRESSION, 9)


def pixels(image) -> np.ndarray:
    """(..., 3, h, w) in [0, 1] -> (..., h, w, 3) uint8, rounded to the nearest."""
    return image.detach().float().cpu().clamp(0, 1).mul(255).round().byte().movedim(-3, -1).contiguous().numpy()


def _enlarged(image, size):
    if image.shape[1:] == size:
        return pixels(image)
    image = image.detach().float().cpu()[None]
    return pixels(F.interpolate(image, size=size, mode="bicubic", align_corners=False)[0])


def _panel_size(height, width):
    """(width, height) at which a frame is shown: shrunk to fit, or enlarged by a whole number."""
    scale = min(PANEL[0] / width, PANEL[1] / height)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _detail_size(width, height):
    """(width, height) of the region that fills a panel when it is enlarged."""
    box_w = min(width, max(8, min(_panel_size(height, width)[0] // ZOOM, width // 2)))
    return box_w, min(height, max(1, box_w // 2))


def _frame_panels(frame, box, title, row):
    """The frame with the box and the profile's row marked, and the enlarged detail, each under its title."""
    left, top, box_w, box_h = box
    width, height = _panel_size(*frame.shape[:2])
    shrinks = width < frame.shape[1]
    shown = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    scale = width / frame.shape[1], height / frame.shape[0]
    start, end = ([round(x * scale[0]), round(y * scale[1])] for x, y in ((left, top), (left + box_w, top + box_h)))
    for colour, thickness in ((PAPER, 4), (ACCENT, 2)):
        cv2.rectangle(shown, start, [end[0] - 1, end[1] - 1], colour, thickness)
    at = int((row + 0.5) * scale[1])
    for ends in (slice(0, 14), slice(-14, None)):  # two short ticks at the borders
        shown[max(at - 1, 0) : at + 2, ends] = ACCENT
    zoom = max(1, width // box_w)
    size = (box_w * zoom, box_h * zoom)
    detail = cv2.resize(frame[top : top + box_h, left : left + box_w], size, interpolation=cv2.INTER_NEAREST)
    return [_title(title, width), shown, _title(f"detail x{zoom}", width), _padded(detail, width)]


def _profile_panel(clip, size, row):
    """One row of every frame, time downward, stretched to be readable, under its title."""
    rows = np.stack([_enlarged(frame, size)[row] for frame in clip])
    width = _panel_size(*size)[0]
    tall = min(len(rows) * max(1, round(128 / len(rows))), 400)
    title = _title(f"x-t profile, row {row}, {len(rows)} frame{'s' * (len(rows) > 1)} (time downward)", width)
    return [title, cv2.resize(rows, (width, tall), interpolation=cv2.INTER_NEAREST)]


def _padded(panel, width):
    """A panel at the common width, in the middle."""
    spare = width - panel.shape[1]
    return cv2.copyMakeBorder(panel, 0, 0, spare // 2, spare - spare // 2, cv2.BORDER_CONSTANT, value=PAPER)


def _title(text, width):
    strip = np.full((LINE, width, 3), PAPER, np.uint8)
    scale = min(0.5, 0.5 * width / (9 * len(text)))
    cv2.putText(strip, text, (0, LINE - 9), cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
    return strip
