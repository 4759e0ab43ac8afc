"""The pictures of a report: what of a clip to look at, and how to keep it small."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ldm import video
from ldm.engine import provenance
from ldm.metrics.temporal import e_warp, motion_back
from ldm.ops.dis import DISFlow
from ldm.ops.flow import flow_warp

INPUT, TRUTH = "input", "truth"
WIDEST, NARROWEST = 1280, 160  # pixels of a picture on the page
LONGEST = 240  # frames of a temporal profile
TALL = 160  # pixels of it at least
DETAIL = (160, 90)  # width and height of the detail, in pixels of the output
QUALITY = 86  # of WebP
FULL = 0.1  # of the difference maps' scale at least: a difference of 25 in 255


@dataclass(frozen=True)
class Strand:
    """One video of a clip. `key` is INPUT, TRUTH, or any other word for a result; `size` (width, height) is that of the
    output, `sha256` what was scored, where that is known."""

    key: str
    path: Path
    size: tuple[int, int]
    sha256: str | None = None

    def open(self, frames: int) -> video.Source:
        """Raises ValueError for a path without a video, with too few frames, or with others than were scored."""
        source = video.probe(self.path)
        if self.sha256 and provenance.digest(source.path, source.names) != self.sha256:
            raise ValueError(f"{self.path}: has changed since it was scored; run benchmark.py again")
        if source.frames < frames:
            raise ValueError(f"{self.path}: has {source.frames} frames, expected {frames}")
        return source

    def frames(self, source: video.Source, first: int, stop: int) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 in the size of the output: the input is enlarged bicubically; others lose the rows and
        columns that are too many, as in scoring."""
        width, height = self.size
        for frame in video.read(source, first, stop, as_rgb8=True):
            if self.key == INPUT and frame.shape[1::-1] != self.size:
                frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_CUBIC)
            if frame.shape[0] < height or frame.shape[1] < width:
                got = f"{frame.shape[1]}x{frame.shape[0]}"
                raise ValueError(f"{self.path}: got frames of {got}, expected {width}x{height}")
            yield frame[:height, :width]


class Wanted(NamedTuple):
    """What is shown of a clip: the frame of the slider, the second of a pair of frames, the worst frames."""

    frames: int
    middle: int
    pair: int
    worst: Sequence[int] = ()

    def numbers(self) -> set[int]:
        pair = {self.pair - 1, self.pair} if self.frames > 1 else set()
        return {self.middle, *pair, *self.worst}

    def span(self) -> range:
        """The stretch of the temporal profile: all frames, or so many around the middle of a long clip."""
        count = min(self.frames, LONGEST)
        first = (self.frames - count) // 2
        return range(first, first + count)


class Views(NamedTuple):
    """Pictures (H, W, 3) uint8 of a clip by strand."""

    wanted: Wanted
    middle: dict[str, np.ndarray]
    detail: dict[str, np.ndarray]
    box: tuple[int, int, int, int]  # left, top, width, height of the detail
    profiles: dict[str, np.ndarray]  # of the row through the middle of the detail, time downward
    maps: dict[str, np.ndarray]  # {} for a clip of one frame
    errors: dict[str, float]  # E_warp of the pair
    scale: float  # of the maps: the difference, of 1, that is drawn brightest
    worst: dict[int, dict[str, np.ndarray]]


def views_of(strands: Sequence[Strand], wanted: Wanted) -> Views:
    """Read a clip's strands, each once from its first needed frame to its last, and cut out what is shown.

    Raises ValueError or OSError for what cannot be read.
    """
    sources = {strand.key: strand.open(wanted.frames) for strand in strands}
    guide = next((strand for strand in strands if strand.key == TRUTH), strands[-1])
    first = next(iter(guide.frames(sources[guide.key], wanted.middle, wanted.middle + 1)))
    box = busiest_box(first, DETAIL)
    left, top, width, height = box
    profiles, kept = {}, {}
    for strand in strands:
        key = strand.key
        profiles[key], kept[key] = gather(strand, sources[key], wanted, row=top + height // 2)
    middle = {key: frames[wanted.middle] for key, frames in kept.items()}
    detail = {key: frame[top : top + height, left : left + width] for key, frame in middle.items()}
    pairs = {key: (frames[wanted.pair - 1], frames[wanted.pair]) for key, frames in kept.items()} \
        if wanted.frames > 1 else {}  # fmt: skip
    maps, errors, scale = difference_maps(pairs, guide.key) if pairs else ({}, {}, 0.0)
    worst = {number: {key: frames[number] for key, frames in kept.items()} for number in wanted.worst}
    return Views(wanted, middle, detail, box, profiles, maps, errors, scale, worst)


def gather(strand: Strand, source: video.Source, wanted: Wanted, *, row: int) -> tuple[np.ndarray, dict]:
    """(one row of every frame of the span, time downward; the wanted frames by number) in one pass.

    Rows of a short span are repeated, so that a lossy picture does not mix one frame with the next.
    """
    span, numbers = wanted.span(), wanted.numbers()
    first, last = min(span.start, *numbers), max(span.stop - 1, *numbers)
    rows, kept = [], {}
    for number, frame in enumerate(strand.frames(source, first, last + 1), first):
        if number in span:
            rows.append(frame[row].copy())
        if number in numbers:
            kept[number] = frame
    return np.repeat(np.stack(rows), math.ceil(TALL / len(rows)), axis=0), kept


def busiest_box(frame: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the region with the greatest gradient energy; `size` (width, height) at most."""
    height, width = frame.shape[:2]
    box_w, box_h = min(size[0], width), min(size[1], height)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    total = cv2.integral(cv2.Sobel(grey, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(grey, cv2.CV_32F, 0, 1) ** 2)
    inside = total[box_h:, box_w:] - total[:-box_h, box_w:] - total[box_h:, :-box_w] + total[:-box_h, :-box_w]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return int(left), int(top), box_w, box_h


def difference_maps(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], guide: str) -> tuple[dict, dict, float]:
    """How each strand's second frame differs from its first, fetched along the guide's motion (DIS).

    Returns pictures on one scale, black where nothing differs, grey where the motion cannot be followed; E_warp of each
    strand; and the difference, of 1, that is drawn brightest.
    """
    motion = motion_back(*pairs[guide], DISFlow())
    hidden = ~motion.visible.numpy()
    differences = {key: warped_difference(*pair, motion.flow) for key, pair in pairs.items()}
    shown = [values[~hidden] for values in differences.values()]
    scale = max([FULL, *(float(np.quantile(values, 0.995)) for values in shown if values.size)])
    maps = {}
    for key, values in differences.items():
        levels = np.uint8(np.clip(values / scale, 0, 1) * 255 + 0.5)
        maps[key] = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1].copy()
        maps[key][hidden] = 96
    errors = {key: e_warp(*pair, motion) for key, pair in pairs.items()}
    return maps, errors, scale


def warped_difference(before: np.ndarray, frame: np.ndarray, flow) -> np.ndarray:
    """The mean absolute difference over channels, (H, W) in [0, 1], of a frame and the one before it, fetched."""
    old, new = (video.frame_tensor(picture)[None] for picture in (before, frame))
    return (new - flow_warp(old, flow))[0].abs().mean(dim=0).numpy()


def inlined(pictures: Mapping[str, np.ndarray], most: float) -> dict[str, str]:
    """Pictures as data URIs of at most `most` characters together: all shrunk by one factor, so that they compare."""
    widest = max(picture.shape[1] for picture in pictures.values())
    factor = min(1.0, WIDEST / widest)
    while True:
        encoded = {name: data_uri(shrunk(picture, factor)) for name, picture in pictures.items()}
        length = sum(map(len, encoded.values()))
        if length <= most or factor * widest <= NARROWEST:
            return encoded
        factor = max(factor * min(0.9, (most / length) ** 0.5), NARROWEST / widest)


def shrunk(picture: np.ndarray, factor: float) -> np.ndarray:
    if factor >= 1:
        return picture
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def data_uri(picture: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a WebP inside an address."""
    options = [cv2.IMWRITE_WEBP_QUALITY, QUALITY]
    data = cv2.imencode(".webp", np.ascontiguousarray(picture[..., ::-1]), options)[1].tobytes()
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
