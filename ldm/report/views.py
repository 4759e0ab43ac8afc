"""The pictures of a report: which parts of a clip are shown, and at what size. Frames are (H, W, 3) uint8 RGB."""

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
from ldm.picture import busiest_box, encoded
from ldm.report.figures import curve_of

INPUT, TRUTH = "input", "truth"
SHARES = {"middle": 0.5, "detail": 0.2, "profiles": 0.15, "maps": 0.15}  # of the size that a clip's pictures may have
WIDEST, NARROWEST = 1280, 160  # pixels of a picture on the page
LONGEST = 240  # frames of a temporal profile
TALL = 160  # pixels of it at least
DETAIL = (160, 90)  # width and height of the detail, in pixels of the output
QUALITY = 86  # of WebP
FULL = 0.1  # of the difference maps' scale at least: a difference of 25 in 255


@dataclass(frozen=True)
class Rendition:
    """One version of a clip: the input, the ground truth, or a result.

    Args:
        key: "input", "truth", or "result-N".
        path: path of the frames.
        size: (width, height) of the output.
        sha256: hash of the frames that were scored.
        folders: folders from which frames may be read, since results.json is not trusted.
    """

    key: str
    path: Path
    size: tuple[int, int]
    sha256: str | None
    folders: Sequence[Path]

    def open(self, frames: int) -> video.Source:
        """Open the frames. Raises ValueError for a path outside the folders, another hash, or too few frames."""
        path = self.path.resolve()
        if not any(path.is_relative_to(folder.resolve()) for folder in self.folders):
            raise ValueError(f"{self.path}: outside the folders of the run, not shown")
        if not self.sha256:
            raise ValueError(f"{self.path}: results.json holds no hash of it; run benchmark.py again")
        source = video.probe(self.path)
        if provenance.digest(source.path, source.names) != self.sha256:
            raise ValueError(f"{self.path}: has changed since it was scored; run benchmark.py again")
        if source.frames < frames:
            raise ValueError(f"{self.path}: has {source.frames} frames, expected {frames}")
        return source

    def frames(self, source: video.Source, first: int, stop: int) -> Iterator[np.ndarray]:
        """Generate frames of the output size: the input enlarged (bicubic), others cropped as in scoring."""
        width, height = self.size
        for frame in video.read(source, first, stop, as_rgb8=True):
            if self.key == INPUT and frame.shape[1::-1] != self.size:
                frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_CUBIC)
            if frame.shape[0] < height or frame.shape[1] < width:
                got = f"{frame.shape[1]}x{frame.shape[0]}"
                raise ValueError(f"{self.path}: got frames of {got}, expected {width}x{height}")
            yield frame[:height, :width]


def renditions_of(run: Mapping, clip: Mapping, folder: Path) -> list[Rendition]:
    """Return input, results and ground truth of a clip, in the order of the page. Raises ValueError for none."""
    size, renditions, hashes = (clip["width"], clip["height"]), [], clip.get("sha256") or {}
    own = [run["dataset"]["root"], *(method["path"] for method in run["methods"])]
    folders = [folder, *(folder / place for place in own if place)]
    if clip["lq"]:
        renditions.append(Rendition(INPUT, folder / clip["lq"], size, hashes.get("lq"), folders))
    for place, method in enumerate(run["methods"]):
        for seed, path in [*(clip["results"].get(method["name"]) or {}).items()][:1]:
            known = hashes.get(f"{method['name']}/{seed}" if seed else method["name"])
            renditions.append(Rendition(f"result-{place}", folder / path, size, known, folders))
    if clip["gt"]:
        renditions.append(Rendition(TRUTH, folder / clip["gt"], size, hashes.get("gt"), folders))
    if not renditions:
        raise ValueError(f"{clip['name']}: results.json names no frames")
    return renditions


def name_of(key: str, run: Mapping) -> str:
    """Return the name of a rendition on the page."""
    return key if key in (INPUT, TRUTH) else run["methods"][int(key.removeprefix("result-"))]["name"]


class Selection(NamedTuple):
    """Frames of a clip that are shown: that of the slider, the second one of a pair, and the worst ones."""

    frames: int
    middle: int
    pair: int
    worst: Sequence[int] = ()

    def numbers(self) -> set[int]:
        """Return the numbers of all frames that are kept."""
        pair = {self.pair - 1, self.pair} if self.frames > 1 else set()
        return {self.middle, *pair, *self.worst}

    def span(self) -> range:
        """Return the frames of the temporal profile: all, or those around the middle of a long clip."""
        count = min(self.frames, LONGEST)
        first = (self.frames - count) // 2
        return range(first, first + count)


def selection_of(run: Mapping, clip: Mapping, method: str, worst: Sequence[int]) -> Selection:
    """Select the middle frame, and the pair with the largest warping error of the method."""
    frames = clip["frames"]
    pair = min(frames // 2 + 1, frames - 1)
    names = [metric["name"] for metric in run["metrics"] if metric["per"] == "pair" and not metric["of"]]
    names.sort(key=lambda name: not name.startswith("e_warp"))
    if names and (curve := curve_of(run, clip["name"], names[0], method)):
        known = [(value, curve["first"] + k) for k, value in enumerate(curve["values"]) if value is not None]
        pair = max((n for n in known if 1 <= n[1] < frames), default=(0, pair))[1]
    return Selection(frames, frames // 2, pair, list(worst))


class Views(NamedTuple):
    """Pictures of a clip by rendition."""

    selection: Selection
    middle: dict[str, np.ndarray]
    detail: dict[str, np.ndarray]
    box: tuple[int, int, int, int]  # left, top, width, height of the detail
    profiles: dict[str, np.ndarray]  # of the row through the middle of the detail, time downward
    maps: dict[str, np.ndarray]  # {} for a clip of one frame
    errors: dict[str, float]  # E_warp of the pair
    scale: float  # of the maps: the difference, of 1, that is drawn brightest
    worst: dict[int, dict[str, np.ndarray]]


def views_of(renditions: Sequence[Rendition], selection: Selection) -> Views:
    """Read each rendition once and crop the parts that are shown.

    Raises ValueError or OSError for frames that cannot be read or must not be shown.
    """
    sources = {rendition.key: rendition.open(selection.frames) for rendition in renditions}
    guide = next((rendition for rendition in renditions if rendition.key == TRUTH), renditions[-1])
    first = next(iter(guide.frames(sources[guide.key], selection.middle, selection.middle + 1)))
    left, top, width, height = box = busiest_box(first, DETAIL)
    profiles, kept = {}, {}
    for rendition in renditions:
        row = top + height // 2
        profiles[rendition.key], kept[rendition.key] = gather(rendition, sources[rendition.key], selection, row=row)
    middle = {key: frames[selection.middle] for key, frames in kept.items()}
    detail = {key: frame[top : top + height, left : left + width] for key, frame in middle.items()}
    maps, errors, scale = {}, {}, 0.0
    if selection.frames > 1:
        pairs = {key: (frames[selection.pair - 1], frames[selection.pair]) for key, frames in kept.items()}
        maps, errors, scale = difference_maps(pairs, guide.key)
    worst = {number: {key: frames[number] for key, frames in kept.items()} for number in selection.worst}
    return Views(selection, middle, detail, box, profiles, maps, errors, scale, worst)


def pictures_of(run: Mapping, clip: Mapping, views: Views, most: float, method: str) -> dict:
    """Return the pictures of a clip, at most about `most` characters; the slider starts with the input and `method`."""
    names = {key: name_of(key, run) for key in views.middle}
    shown = {}
    for part, share in SHARES.items():
        pictures = getattr(views, part)
        uris = inlined(pictures, most * share) if pictures else {}
        shown[part] = [{"key": key, "uri": uri, "caption": names[key]} for key, uri in uris.items()]
    for entry in shown["maps"]:
        entry["caption"] += f", E_warp {1000 * views.errors[entry['key']]:.3f}/1000"
    left, *others = names
    right = next((key for key in others if names[key] == method and key != TRUTH), [*names][-1])
    guide = "the truth" if TRUTH in names else names[[*names][-1]]
    selection, row = views.selection, views.box[1] + views.box[3] // 2
    about = {"left": left, "right": right, "guide": guide, "box": views.box, "row": row, "scale": views.scale}
    where = {"middle": selection.middle, "pair": selection.pair, "span": selection.span()}
    return {"slider": shown.pop("middle"), **shown, **about, **where}


def thumbnails_of(views: Views, number: int, run: Mapping, method: str, most: float) -> list[dict]:
    """Return pictures of one of the worst frames: the result, and the ground truth or otherwise the input."""
    frames = views.worst[number]
    place = next(place for place, other in enumerate(run["methods"]) if other["name"] == method)
    keys = [key for key in (f"result-{place}", TRUTH if TRUTH in frames else INPUT) if key in frames]
    uris = inlined({key: frames[key] for key in keys}, most)
    return [{"uri": uri, "caption": name_of(key, run)} for key, uri in uris.items()]


def gather(rendition: Rendition, source: video.Source, selection: Selection, *, row: int) -> tuple[np.ndarray, dict]:
    """Return one row of every frame of the span (time downwards) and the selected frames by number, in one pass.

    Rows of a short span are repeated, so that lossy compression does not mix neighbouring frames.
    """
    span, numbers = selection.span(), selection.numbers()
    first, last = min(span.start, *numbers), max(span.stop - 1, *numbers)
    rows, kept = [], {}
    for number, frame in enumerate(rendition.frames(source, first, last + 1), first):
        if number in span:
            rows.append(frame[row].copy())
        if number in numbers:
            kept[number] = frame
    return np.repeat(np.stack(rows), math.ceil(TALL / len(rows)), axis=0), kept


def difference_maps(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], guide: str) -> tuple[dict, dict, float]:
    """Compare the second frame of each rendition with its first, warped by the DIS flow of `guide`.

    Returns pictures on one scale (black: no difference; grey: occluded), E_warp of each rendition, and the difference
    in [0, 1] that has the brightest colour.
    """
    motion = motion_back(*pairs[guide], DISFlow())
    hidden = ~motion.visible.numpy()
    differences = {}
    for key, pair in pairs.items():
        old, new = (video.frame_tensor(picture)[None] for picture in pair)
        differences[key] = (new - flow_warp(old, motion.flow))[0].abs().mean(dim=0).numpy()
    shown = [values[~hidden] for values in differences.values()]
    scale = max([FULL, *(float(np.quantile(values, 0.995)) for values in shown if values.size)])
    maps = {}
    for key, values in differences.items():
        levels = np.uint8(np.clip(values / scale, 0, 1) * 255 + 0.5)
        maps[key] = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1].copy()
        maps[key][hidden] = 96
    errors = {key: e_warp(*pair, motion) for key, pair in pairs.items()}
    return maps, errors, scale


def inlined(pictures: Mapping[str, np.ndarray], most: float) -> dict[str, str]:
    """Return pictures as data URIs of at most `most` characters in total; all are shrunk by the same factor."""
    widest = max(picture.shape[1] for picture in pictures.values())
    factor = min(1.0, WIDEST / widest)
    while True:
        uris = {name: data_uri(shrunk(picture, factor)) for name, picture in pictures.items()}
        length = sum(map(len, uris.values()))
        if length <= most or factor * widest <= NARROWEST:
            return uris
        factor = max(factor * min(0.9, (most / length) ** 0.5), NARROWEST / widest)


def shrunk(picture: np.ndarray, factor: float) -> np.ndarray:
    """Shrink a picture (H, W, 3) by a factor; factors from 1 change nothing."""
    if factor >= 1:
        return picture
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def data_uri(picture: np.ndarray, *, quality: int = QUALITY) -> str:
    """Return a picture as a data URI in WebP of a quality from 1 to 100."""
    data = encoded(picture, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)
    return "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
