"""No command: the clips of scripts/ablate.py, that is the truth, shrunk and cropped, and what scripts/degrade.py makes
of it."""

import argparse
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from basicsr_deg.pipeline import Degradation
from ldm import config, video
from ldm.metrics.fidelity import luma
from scripts import degrade

SCALE = 4
SMALLEST = 64  # pixels of a side of the truth


class Clip:
    """A clip with its truth, (h, w, 3) uint8 each, and what it became, `lq` (T, h/4, w/4, 3) uint8."""

    def __init__(self, name: str, truth: list[np.ndarray], lq: np.ndarray):
        self.name, self.truth, self.lq = name, truth, lq
        self.line = telling_row(truth)

    @property
    def digest(self) -> str:
        """A hash of all pixels."""
        return hashlib.sha256(b"".join(part.tobytes() for part in (self.lq, *self.truth))).hexdigest()


def telling_row(frames: list[np.ndarray]) -> int:
    """The row of (H, W, 3) uint8 frames to be looked at over time: with much detail along it, and no edge that lies
    along it within the reach of a degraded pixel, beside which blur would show the other side of the edge."""
    kernel, reach = np.float32([-0.5, 0, 0.5]), 2 * SCALE + 1
    smooth = [cv2.GaussianBlur(luma(frame), (0, 0), 1) for frame in frames]
    along = np.mean([np.abs(cv2.filter2D(frame, -1, kernel[None])).mean(axis=1) for frame in smooth], axis=0)
    across = np.max([np.abs(cv2.filter2D(frame, -1, kernel[:, None])).mean(axis=1) for frame in smooth], axis=0)
    detail = cv2.blur(along[:, None], (1, reach))[:, 0]
    edges = cv2.dilate(across[:, None], np.ones((reach, 1)))[:, 0]
    score = detail**2 / np.maximum(detail + edges, 1e-6)
    return SCALE + int(np.argmax(score[SCALE:-SCALE]))  # what lies beyond the border is not known


def find_clips(paths: list[Path]) -> dict[str, Path]:
    """Clips by name. Raises ValueError for two of one name, VideoError for what is no clip."""
    found = {}
    for path in (clip for given in paths for clip in video.clips_in(given)):
        name = degrade.names_of([path])[path]
        if name in found:
            raise ValueError(f"got two clips named {name} ({found[name]} and {path}); rename one")
        found[name] = path
    return found


def degrading(args: argparse.Namespace) -> Callable[[np.ndarray, str], np.ndarray]:
    """`degraded(truth, name)`, (T, H, W, 3) -> (T, h, w, 3) uint8: what scripts/degrade.py makes of a clip of that name
    with --protocol and --seed. Raises ValueError, or as `config.load`."""
    words = ["-i", ".", "-o", ".", f"--protocol={args.protocol}", f"--seed={args.seed}"]
    degradation = config.instantiate(degrade.read_settings(degrade.arguments(words)).degradation)
    if not isinstance(degradation, Degradation):
        raise ValueError(f"{args.protocol}: degradation is a {type(degradation).__name__}, expected a Degradation")

    def degraded(truth: np.ndarray, name: str) -> np.ndarray:
        rng = degrade.generator(args.seed, protocol_of(args), name)
        return np.rint(degradation(truth, rng) * 255).astype(np.uint8)

    return degraded


def protocol_of(args: argparse.Namespace) -> str:
    """The name of --protocol, which may be a path."""
    return degrade.find_protocol(args.protocol).stem


def seen_in_training(card: Path, clips: Mapping[str, Path]) -> list[str]:
    """Clips that a model's README names, by folder and name, or as `name`."""
    text, forms = card.read_text(encoding="utf-8") if card.is_file() else "", ("`{0.stem}`", "{0.parent.name}/{0.stem}")
    return [name for name, path in clips.items() if any(form.format(path) in text for form in forms)]


def load_clips(paths: Mapping[str, Path], args: argparse.Namespace) -> list[Clip]:
    """The clips of `find_clips` as the arguments say. Raises ValueError naming the clip."""
    degraded = degrading(args)
    return [load_clip(name, path, degraded, args) for name, path in paths.items()]


def load_clip(name: str, path: Path, degraded: Callable, args: argparse.Namespace) -> Clip:
    """The beginning of a clip, shrunk to cover --gt_size and cropped to it, and `degraded` (see `degrading`). Raises
    ValueError naming the clip."""
    truth = [fitted(frame, args.gt_size) for frame in video.read(path, 0, args.max_frames, as_rgb8=True)]
    if len(truth) < 2:
        raise ValueError(f"{path}: got {len(truth)} frame, expected at least 2 to see how steady they are")
    if min(truth[0].shape[:2]) < SMALLEST:
        raise ValueError(f"{path}: got frames with less than {SMALLEST} pixels a side, expected larger ones")
    lq = degraded(np.stack(truth), name)
    size = tuple(side // SCALE for side in truth[0].shape[:2])
    if lq.shape[1:3] != size:
        got = f"{lq.shape[2]}x{lq.shape[1]}"
        raise ValueError(f"got degraded frames of {got}, expected {size[1]}x{size[0]}; choose a protocol of scale 4")
    return Clip(name, truth, lq)


def fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame shrunk until it just covers `size` (w, h), its middle cropped to that, and to sides in fours."""
    height, width = frame.shape[:2]
    by = max(size[0] / width, size[1] / height)
    if by < 1:
        shrunk = max(round(width * by), size[0]), max(round(height * by), size[1])
        frame = cv2.resize(frame, shrunk, interpolation=cv2.INTER_AREA)
    height, width = frame.shape[:2]
    w, h = (min(side, wanted) // SCALE * SCALE for side, wanted in zip((width, height), size, strict=True))
    top, left = (height - h) // 2, (width - w) // 2
    return np.ascontiguousarray(frame[top : top + h, left : left + w])
