"""Gaussian and Poisson noise whose strength walks from frame to frame."""

from collections.abc import Iterable, Iterator, Mapping

import cv2
import numpy as np

from basicsr_deg.walk import check_probability, pick, read_walk, read_weights

BUILDABLE = ("Noise",)  # what a configuration may name as a target


class Noise:
    """Add noise to RGB frames (h, w, 3) with values 0..255; the output is float32, neither rounded nor clipped.

    Args:
        types: gaussian, poisson -> probability; drawn once per clip.
        sigma: `{range, step}` of the standard deviation of gaussian noise, in grey levels.
        scale: `{range, step}` of the factor on Poisson noise.
        gray_prob: gaussian, poisson -> probability that all channels get the same noise; drawn once per clip.
        prob: probability that the stage is applied.
    Raises:
        ValueError: an unknown type, a negative range or a value that is not a probability.
    """

    def __init__(
        self,
        types: Mapping[str, float],
        sigma: Mapping,
        scale: Mapping,
        gray_prob: Mapping[str, float],
        *,
        prob: float = 1.0,
    ):
        self.types = read_weights(types, ("gaussian", "poisson"), "types")
        self.sigma, self.scale = read_walk(sigma, "sigma"), read_walk(scale, "scale")
        if min(self.sigma.low, self.scale.low) < 0:
            raise ValueError("sigma, scale: got a range below 0, expected at least 0")
        if set(gray_prob) != {"gaussian", "poisson"}:
            raise ValueError(f"gray_prob: got {dict(gray_prob)}, expected gaussian and poisson with a probability each")
        self.gray_prob = {kind: check_probability(p, f"gray_prob.{kind}") for kind, p in gray_prob.items()}
        self.prob = check_probability(prob)

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        kind = pick(self.types, rng)
        if notes is not None:
            notes["type"] = kind
        return getattr(self, kind)(frames, rng, notes=notes)

    def gaussian(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None) -> Iterator[np.ndarray]:
        """Add gaussian noise of standard deviation sigma; grey noise is the noise of the first channel."""
        notes = {} if notes is None else notes
        sigma, gray = self.sigma.start(rng), self._is_gray("gaussian", rng)
        notes |= {"gray": gray, "sigma": []}
        for frame in frames:
            notes["sigma"].append(sigma)
            noise = rng.standard_normal(frame.shape, dtype=np.float32)
            yield frame + np.float32(sigma) * (noise[..., :1] if gray else noise)
            sigma = self.sigma.moved(sigma, rng)

    def poisson(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None) -> Iterator[np.ndarray]:
        """Add Poisson noise scale (P(v x)/v - x) for the grey levels x of the rounded frame, or of its BT.601 luma.

        v is the number of different grey levels in the frame, rounded up to a power of two, as in the released code.
        The standard deviation is scale sqrt(x / v).
        """
        notes = {} if notes is None else notes
        scale, gray = self.scale.start(rng), self._is_gray("poisson", rng)
        notes |= {"gray": gray, "scale": []}
        for frame in frames:
            notes["scale"].append(scale)
            levels = cv2.cvtColor(frame.astype(np.float32), cv2.COLOR_RGB2GRAY)[..., None] if gray else frame
            yield frame + np.float32(scale) * poisson_noise(levels, rng)
            scale = self.scale.moved(scale, rng)

    def _is_gray(self, kind: str, rng) -> bool:
        return bool(rng.uniform() < self.gray_prob[kind])


def poisson_noise(frame: np.ndarray, rng) -> np.ndarray:
    """Poisson noise P(v x)/v - x of a frame x of grey levels, float32, with mean 0."""
    levels = np.clip(np.rint(frame), 0, 255).astype(np.uint8)
    present = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    v = 2.0 ** np.ceil(np.log2(present))
    return (rng.poisson(levels * v) / v - levels).astype(np.float32)
