"""Blur by a kernel whose family and size are drawn once per clip and whose parameters walk from frame to frame."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np

from basicsr_deg import kernels
from basicsr_deg.walk import check_probability, pick, read_walk, read_weights

BUILDABLE = ("Blur",)  # what a configuration may name as a target

FAMILIES = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc")
PARAMETERS = ("sigma_x", "sigma_y", "angle", "beta_gaussian", "beta_plateau", "omega")  # in the order they are drawn
BETA = {"generalized": "beta_gaussian", "plateau": "beta_plateau"}


class Blur:
    """Blur frames (h, w, 3) with values 0..255; uint8 stays uint8 (rounded), any other type becomes float32.

    Args:
        kernel_types: family -> probability.
        kernel_sizes: odd sides in pixels, drawn with equal probability.
        walks: `{range, step}` for every name in PARAMETERS, and optionally `omega_large`, which replaces omega for
            kernels of at least `large` pixels. The parameters of all families walk, whether used or not.
        large: smallest side in pixels for which `omega_large` is used.
        beta: "walk", the exponents walk like the other parameters; "released", an exponent is drawn for every frame
            between 1 and the walking value, as in the released code (B14 in docs/RELEASED.md).
        prob: probability that the stage is applied.
    Raises:
        ValueError: an unknown family or parameter, or a value out of range.
    """

    def __init__(
        self,
        kernel_types: Mapping[str, float],
        kernel_sizes: Sequence[int],
        walks: Mapping[str, Mapping],
        *,
        large: int = 13,
        beta: str = "walk",
        prob: float = 1.0,
    ):
        self.kernel_types = read_weights(kernel_types, FAMILIES, "kernel_types")
        if not kernel_sizes or any(not isinstance(n, int) or n < 1 or n % 2 == 0 for n in kernel_sizes):
            raise ValueError(f"kernel_sizes: got {list(kernel_sizes)}, expected odd numbers of pixels")
        if beta not in ("walk", "released"):
            raise ValueError(f"beta: got {beta!r}, expected walk or released")
        if wrong := set(walks) - {*PARAMETERS, "omega_large"} or set(PARAMETERS) - set(walks):
            raise ValueError(f"walks: {sorted(wrong)[0]!r} is missing or unknown, expected {', '.join(PARAMETERS)}")
        self.kernel_sizes, self.large, self.beta = list(kernel_sizes), large, beta
        self.walks = {name: read_walk(setting, f"walks.{name}") for name, setting in walks.items()}
        if any(self.walks[name].low < 0 for name in PARAMETERS if name != "angle"):
            raise ValueError("walks: got a range below 0, expected at least 0 for all but the angle")
        if set(self.kernel_types) != {"sinc"} and not min(self.walks[name].low for name in PARAMETERS[:2]) > 0:
            raise ValueError("walks: got a sigma of 0, expected more than 0 pixels for all families but sinc")
        if "sinc" in self.kernel_types and not min(w.low for name, w in self.walks.items() if "omega" in name) > 0:
            raise ValueError("walks: got an omega of 0, expected more than 0 radians per pixel")
        self.prob = check_probability(prob)

    def __call__(self, frames: Iterable[np.ndarray], rng, *, notes: dict | None = None, size=None) -> Iterator:
        kernels = self.kernels(rng, notes=notes)
        for frame in frames:
            image = frame if frame.dtype == np.uint8 else frame.astype(np.float32, copy=False)
            yield cv2.filter2D(image, -1, next(kernels))

    def kernels(self, rng, *, notes: dict | None = None) -> Iterator[np.ndarray]:
        """Generate the kernels (n, n) float64 of the frames of one clip, without end."""
        notes = {} if notes is None else notes
        family = pick(self.kernel_types, rng)
        side = int(rng.choice(self.kernel_sizes))
        walks = {name: self.walks[name] for name in PARAMETERS}
        if side >= self.large:
            walks["omega"] = self.walks.get("omega_large", walks["omega"])
        values = {name: walk.start(rng) for name, walk in walks.items()}
        used = parameters_of(family)
        notes |= {"family": family, "size": side} | {name: [] for name in used}
        while True:
            now = values | (self._redrawn(family, values, rng) if self.beta == "released" else {})
            for name in used:
                notes[name].append(now[name])
            yield make_kernel(family, side, now)
            values = {name: walk.moved(values[name], rng) for name, walk in walks.items()}

    def _redrawn(self, family: str, values: Mapping[str, float], rng) -> dict[str, float]:
        """Draw an exponent between 1 and the walking value, with the random numbers that the released code uses.

        The released code also draws the family and all other values of each frame, from ranges of zero width.
        """
        pick({family: 1.0}, rng)
        drawn = {}
        for name in parameters_of(family):
            if name in BETA.values():
                below = rng.random() <= 0.5
                low, high = (values[name], 1.0) if below else (1.0, values[name])
                drawn[name] = low + (high - low) * rng.random()
            else:
                rng.uniform(values[name], values[name])
        return drawn


def parameters_of(family: str) -> list[str]:
    """Names of the parameters of a kernel family."""
    if family == "sinc":
        return ["omega"]
    shape = ["sigma_x"] if family.endswith("iso") and not family.endswith("aniso") else PARAMETERS[:3]
    return [*shape, *(BETA[kind] for kind in BETA if family.startswith(kind))]


def make_kernel(family: str, side: int, values: Mapping[str, float]) -> np.ndarray:
    """Kernel (side, side) float64 of a family with the given parameter values."""
    if family == "sinc":
        return kernels.sinc(side, values["omega"])
    shape = {name: values[name] for name in parameters_of(family)[:3] if name not in BETA.values()}
    q = kernels.distance(side, **shape)
    if family.startswith("generalized"):
        return kernels.generalized_gaussian(q, values["beta_gaussian"])
    if family.startswith("plateau"):
        return kernels.plateau(q, values["beta_plateau"])
    return kernels.gaussian(q)
