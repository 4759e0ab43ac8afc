"""JPEG compression of every frame, with a quality that walks from frame to frame."""

from collections.abc import Iterable, Iterator, Mapping

import cv2
import numpy as np

from basicsr_deg.walk import check_probability, read_walk

BUILDABLE = ("JPEG",)  # what a configuration may name as a target


def as_bytes(frame: np.ndarray) -> np.ndarray:
    """Frame of grey levels, rounded and clipped to uint8; a uint8 frame is returned unchanged."""
    return frame if frame.dtype == np.uint8 else np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def jpeg(frame: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress an RGB frame (h, w, 3), rounded to uint8, with JPEG at `quality` in 0..100.

    Raises:
        ValueError: the frame is too large for a JPEG.
    """
    written, data = cv2.imencode(".jpg", as_bytes(frame)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not written:
        raise ValueError(f"got a frame of {frame.shape[1]}x{frame.shape[0]}, which does not fit into a JPEG; crop it")
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


class JPEG:
    """Compress every frame with JPEG; the output is uint8.

    Args:
        quality: `{range, step}` of the quality, within 0..100; first value and steps are rounded to integers.
        prob: probability that the stage is applied.
    Raises:
        ValueError: a quality or probability out of range.
    """

    def __init__(self, quality: Mapping, *, prob: float = 1.0):
        self.quality, self.prob = read_walk(quality, "quality"), check_probability(prob)
        if self.quality.low < 0 or self.quality.high > 100:
            raise ValueError(f"quality: got {quality['range']}, expected a range within 0 to 100")

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        notes = {} if notes is None else notes
        notes["quality"] = []
        quality = round(self.quality.start(rng))
        for frame in frames:
            notes["quality"].append(quality)
            yield jpeg(frame, quality)
            step = round(rng.uniform(-self.quality.step, self.quality.step))
            quality = int(self.quality.clipped(quality + step))
