"""Resizing stages: by random factors within the pipeline, and to the final size of the degraded clip."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np

from basicsr_deg.walk import Walk, check_probability, pick, read_range, read_weights

BUILDABLE = ("AntialiasedBicubic", "Fit", "Resize", "Subsample")  # what a configuration may name as a target

INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "bicubic": cv2.INTER_CUBIC}


def resized(frame: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize a frame (h, w, 3) to `size` (h, w) by OpenCV without antialiasing; float32, not rounded or clipped."""
    flags = INTERPOLATIONS[interpolation]
    return cv2.resize(frame.astype(np.float32, copy=False), tuple(size)[::-1], interpolation=flags)


class Resize:
    """Enlarge, shrink or keep frames by a factor that walks from frame to frame, to even sides.

    A side is 2 floor(side factor / 2), with the side of the first frame, and at least 2 pixels.

    Args:
        modes: up, down, keep -> probability; drawn once per clip.
        scale: [low, high]; the first factor is drawn from [1, high] for up and from [low, 1] for down.
        interpolations: bilinear, area, bicubic -> probability; drawn once per clip.
        step: largest change of the factor per frame.
        prob: probability that the stage is applied.
    Raises:
        ValueError: an unknown mode or interpolation, or a range or probability out of range.
    """

    def __init__(
        self,
        modes: Mapping[str, float],
        scale: Sequence[float],
        interpolations: Mapping[str, float],
        *,
        step: float = 0.0,
        prob: float = 1.0,
    ):
        low, high = read_range(scale, "scale")
        if not 0 < low <= 1 <= high:
            raise ValueError(f"scale: got {list(scale)}, expected [low, high] with 0 < low <= 1 <= high")
        self.modes = read_weights(modes, ("up", "down", "keep"), "modes")
        self.interpolations = read_weights(interpolations, tuple(INTERPOLATIONS), "interpolations")
        self.walk, self.prob = Walk(low, high, step), check_probability(prob)

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        notes = {} if notes is None else notes
        interpolation, mode = pick(self.interpolations, rng), pick(self.modes, rng)
        factor = 1.0
        if mode != "keep":
            factor = float(rng.uniform(*((1.0, self.walk.high) if mode == "up" else (self.walk.low, 1.0))))
        notes |= {"interpolation": interpolation, "mode": mode, "scale": []}
        first = None
        for frame in frames:
            first = first or frame.shape[:2]
            notes["scale"].append(factor)
            yield resized(frame, tuple(max(2 * int(side * factor / 2), 2) for side in first), interpolation)
            factor = self.walk.moved(factor, rng)


class Fit:
    """Resize every frame to the final size, by an interpolation (name -> probability) drawn once per clip."""

    def __init__(self, interpolations: Mapping[str, float], *, prob: float = 1.0):
        self.interpolations = read_weights(interpolations, tuple(INTERPOLATIONS), "interpolations")
        self.prob = check_probability(prob)

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        notes = {} if notes is None else notes
        notes |= {"interpolation": pick(self.interpolations, rng), "size": "{1}x{0}".format(*size)}
        for frame in frames:
            yield resized(frame, size, notes["interpolation"])


class AntialiasedBicubic:
    """Resize every frame to the final size by antialiased bicubic interpolation ("BI" degradation).

    As in MATLAB's imresize the cubic kernel (a = -0.5) is widened when shrinking and borders are mirrored. The output
    is float32, not rounded.
    """

    def __init__(self, *, prob: float = 1.0):
        self.prob = check_probability(prob)

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        for frame in frames:
            down, across = (cubic_weights(*sides) for sides in zip(frame.shape[:2], size, strict=True))
            rows = np.tensordot(down, frame.astype(np.float64), axes=(1, 0))
            yield np.tensordot(across, rows, axes=(1, 1)).swapaxes(0, 1).astype(np.float32)


class Subsample:
    """Keep every n-th pixel, starting with the first, where n is the integer ratio of the sides to the final size."""

    def __init__(self, *, prob: float = 1.0):
        self.prob = check_probability(prob)

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        for frame in frames:
            (h, w), (rows, columns) = frame.shape[:2], size
            if h % rows or w % columns:
                raise ValueError(f"got frames of {w}x{h}, expected a multiple of {columns}x{rows}; crop them first")
            yield np.ascontiguousarray(frame[:: h // rows, :: w // columns])


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Matrix (new, old) float64 of antialiased cubic resampling along one side; each row sums to 1.

    Keys, "Cubic convolution interpolation", 1981, with the kernel stretched by old/new if that is above 1.
    """
    stretch = max(old / new, 1.0)
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-reach, reach + 1)
    x = np.abs(taps - centre[:, None]) / stretch
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    values = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    mirrored = taps % (2 * old)
    mirrored = np.where(mirrored < old, mirrored, 2 * old - 1 - mirrored)
    weights = np.zeros((new, old))
    np.add.at(weights, (np.arange(new)[:, None], mirrored), values / values.sum(axis=1, keepdims=True))
    return weights
