"""Gaussian and Poisson noise whose strength walks over the frames."""

from collections.abc import Iterable, Iterator, Mapping

import cv2
import numpy as np

from basicsr_deg.walk import check_probability, pick, read_walk, read_weights

BUILDABLE = ("Noise",)  # what a configuration may name as a target


class Noise:
    """Add noise to RGB frames (h, w, 3), 0..255, float32 out, neither rounded nor clipped.

    types: gaussian, poisson -> probability; sigma: `{range, step}` of the gaussian's deviation in grey levels; scale:
    `{range, step}` of the factor on the poisson noise; gray_prob: gaussian, poisson -> the probability, drawn once for
    a clip, that all channels get the same noise.
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
        """Normal noise of deviation sigma; grey noise is that of the first channel."""
        notes = {} if notes is None else notes
        sigma, gray = self.sigma.start(rng), self._is_gray("gaussian", rng)
        notes |= {"gray": gray, "sigma": []}
        for frame in frames:
            notes["sigma"].append(sigma)
            noise = rng.standard_normal(frame.shape, dtype=np.float32)
            yield frame + np.float32(sigma) * (noise[..., :1] if gray else noise)
            sigma = self.sigma.moved(sigma, rng)

    def poisson(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None) -> Iterator[np.ndarray]:
        """scale (P(v x)/v - x) for grey levels x of the rounded frame, or of its luma for grey noise.

        v is the number of different grey levels in it, rounded up to a power of two, as released: the deviation is
        scale sqrt(x / v).
        """
        notes = {} if notes is None else notes
        scale, gray = self.scale.start(rng), self._is_gray("poisson", rng)
        notes |= {"gray": gray, "scale": []}
        for frame in frames:
            notes["scale"].append(scale)
            yield frame + np.float32(scale) * poisson_noise(_luma(frame) if gray else frame, rng)
            scale = self.scale.moved(scale, rng)

    def _is_gray(self, kind: str, rng) -> bool:
        return bool(rng.uniform() < self.gray_prob[kind])


def _luma(frame: np.ndarray) -> np.ndarray:
    """The grey picture (h, w, 1) float32 of an RGB frame (BT.601 weights)."""
    return cv2.cvtColor(frame.astype(np.float32, copy=False), cv2.COLOR_RGB2GRAY)[..., None]


def poisson_noise(frame: np.ndarray, rng) -> np.ndarray:
    """Photon noise of a frame, float32, 0 on average."""
    levels = np.clip(np.rint(frame), 0, 255).astype(np.uint8)
    present = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    v = 2.0 ** np.ceil(np.log2(present))
    return (rng.poisson(levels * v) / v - levels).astype(np.float32)
