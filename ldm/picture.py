"""One picture that shows what an upscaling did: whole frames, an enlarged detail, the motion of one line over time."""

import cv2
import numpy as np
import torch.nn.functional as F

PANEL = (780, 900)  # the largest width and height of one frame in the picture
MARGIN, GAP, LINE = 16, 12, 30  # pixels: around everything, between panels, of a row of text
ZOOM = 4  # of the detail, at least
PAPER, INK, ACCENT = (22, 23, 27), (226, 228, 233), (255, 176, 32)


def comparison(lq, sr, *, truth=None, column=None):
    """Draw input, output and, where it is known, the truth side by side: (H', W', 3) uint8 RGB, panels of at most 780.

    Top: the middle frame, the input enlarged bicubically. Middle: the most textured region of the output (boxed above),
    every pixel enlarged. Bottom: the row through that region over time, one row of the picture per frame, in which a
    steady video shows smooth lines and flicker shows as combs; with `column` (of the output) that column instead.

    Args:
        lq: (T, 3, h, w) in [0, 1].
        sr: (T, 3, H, W) in [0, 1], as many frames.
        truth: like `sr`, or None.

    Raises:
        ValueError: shapes that do not fit, no frame, or a column outside the output.
    """
    if truth is not None and truth.shape != sr.shape:
        raise ValueError(f"got output {tuple(sr.shape)} and truth {tuple(truth.shape)}, expected the same shape")
    if lq.ndim != 4 or sr.ndim != 4 or lq.shape[:2] != sr.shape[:2] or lq.shape[1] != 3 or lq.shape[0] == 0:
        raise ValueError(f"got input {tuple(lq.shape)}, output {tuple(sr.shape)}, expected (T, 3, height, width) twice")
    if column is not None and not 0 <= column < sr.shape[3]:
        raise ValueError(f"got column {column}, expected 0 to {sr.shape[3] - 1}")
    height, width = size = sr.shape[2:]
    middle = len(sr) // 2
    frames = [_enlarged(lq[middle], size), _pixels(sr[middle])]
    box = _busiest_box(frames[1], _panel_size(height, width)[0])
    line = column if column is not None else box[0] + box[2] // 2
    titles = [f"bicubic input {lq.shape[3]}x{lq.shape[2]}", f"output {width}x{height}"]
    clips, columns = [lq, sr], []
    if truth is not None:
        clips, frames, titles = [*clips, truth], [*frames, _pixels(truth[middle])], [*titles, "truth"]
    for clip, frame, title in zip(clips, frames, titles, strict=True):
        parts = _frame_panels(frame, box, title, (line, column is not None))
        columns.append(np.vstack(parts + _profile_panel(clip, size, line, vertical=column is not None)))
    gap = np.full((columns[0].shape[0], GAP, 3), PAPER, np.uint8)
    sheet = np.hstack([part for column in columns for part in (column, gap)][:-1])
    return cv2.copyMakeBorder(sheet, MARGIN // 2, MARGIN, MARGIN, MARGIN, cv2.BORDER_CONSTANT, value=PAPER)


def _pixels(image):
    """(3, h, w) in [0, 1] -> (h, w, 3) uint8."""
    values = image.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return values.permute(1, 2, 0).contiguous().numpy()


def _enlarged(image, size):
    if image.shape[1:] == size:
        return _pixels(image)
    image = image.detach().float().cpu()[None]
    return _pixels(F.interpolate(image, size=size, mode="bicubic", align_corners=False)[0])


def _panel_size(height, width):
    """(width, height) at which a frame is shown: shrunk to fit, or enlarged by a whole number."""
    scale = min(PANEL[0] / width, PANEL[1] / height)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _busiest_box(image, panel_width):
    """(top, left, height, width) of the region with the greatest gradient energy that fills a panel when enlarged."""
    height, width = image.shape[:2]
    box_w = min(width, max(8, min(panel_width // ZOOM, width // 2)))
    box_h = min(height, max(1, box_w // 2))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    total = cv2.integral(across**2 + down**2)
    inside = total[box_h:, box_w:] - total[:-box_h, box_w:] - total[box_h:, :-box_w] + total[:-box_h, :-box_w]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return int(top), int(left), box_h, box_w


def _frame_panels(frame, box, title, line):
    """The frame with the box and the profile's line marked, and the enlarged detail, each under its title."""
    top, left, box_h, box_w = box
    width, height = _panel_size(*frame.shape[:2])
    shrinks = width < frame.shape[1]
    shown = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    scale = width / frame.shape[1], height / frame.shape[0]
    start, end = ([round(x * scale[0]), round(y * scale[1])] for x, y in ((left, top), (left + box_w, top + box_h)))
    for colour, thickness in ((PAPER, 4), (ACCENT, 2)):
        cv2.rectangle(shown, start, [end[0] - 1, end[1] - 1], colour, thickness)
    _mark_line(shown, line, scale)
    zoom = max(1, width // box_w)
    size = (box_w * zoom, box_h * zoom)
    detail = cv2.resize(frame[top : top + box_h, left : left + box_w], size, interpolation=cv2.INTER_NEAREST)
    return [_title(title, width), shown, _title(f"detail x{zoom}", width), _padded(detail, width)]


def _mark_line(shown, line, scale):
    """Draw two short ticks at the borders, at the ends of the line whose profile is shown."""
    number, vertical = line
    at = int((number + 0.5) * scale[0 if vertical else 1])
    view = shown.swapaxes(0, 1) if vertical else shown
    for reach in (slice(0, 14), slice(-14, None)):
        view[max(at - 1, 0) : at + 2, reach] = ACCENT


def _profile_panel(clip, size, line, *, vertical):
    """One line of every frame, time downward, stretched to be readable, under its title."""
    images = (_enlarged(frame, size) for frame in clip)
    rows = np.stack([image[:, line] if vertical else image[line] for image in images])
    width = _panel_size(*size)[0]
    tall = min(len(rows) * max(1, round(128 / len(rows))), 400)
    name = "y-t profile, column" if vertical else "x-t profile, row"
    title = _title(f"{name} {line}, {len(rows)} frame{'s' * (len(rows) > 1)} (time downward)", width)
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
