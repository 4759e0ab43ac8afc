"""When the picture that guides a frame is decoded, and when a picture decoded before is used again.

Decoding a clean estimate for guidance is 72 to 86 % of the arithmetic of the released method (a frame of 320x180 or
640x360). The choices below trade it for pictures of earlier steps. The last step is always decoded, because its
pictures are results.
"""

import re
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

WORDS = "full, cached, or every K such as every 2"


class GuidanceDecoder(Protocol):
    """When to decode; `keeps`: whether a frame keeps its last decoded picture, with the latents of it."""

    keeps: bool

    def due(self, step: int, x0: Tensor, decoded: Tensor) -> bool:
        """Return whether x0 is decoded in a step (0 is the noisiest), given the latents of the picture that is kept."""
        ...


@dataclass(frozen=True)
class EveryVisit:
    """Decode each time, as released."""

    keeps: bool = False

    def due(self, step: int, x0: Tensor, decoded: Tensor) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class EverySteps:
    """Decode in every `count`-th step, and where a frame has no picture yet."""

    count: int
    keeps: bool = True

    def due(self, step: int, x0: Tensor, decoded: Tensor) -> bool:
        """In steps that `count` divides."""
        return step % self.count == 0


@dataclass(frozen=True)
class WhenChanged:
    """Decode where the estimate has moved by more than `tolerance`, relative to its root mean square."""

    tolerance: float
    keeps: bool = True

    def due(self, step: int, x0: Tensor, decoded: Tensor) -> bool:
        """Where the change exceeds the tolerance."""
        return bool((x0 - decoded).square().mean() > self.tolerance**2 * decoded.square().mean())


def guidance_decoder_of(word: str, *, tolerance: float) -> GuidanceDecoder:
    """The decoder that a setting names: "full", "cached" (with its tolerance), or "every K". Raises ValueError."""
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"got guidance_tolerance {tolerance}, expected a number from 0")
    every = re.fullmatch(r"every ([1-9]\d{0,3})", word)
    if every:
        return EverySteps(int(every[1]))
    if word not in ("full", "cached"):
        raise ValueError(f"got guidance_decoder {word!r}, expected {WORDS}")
    return EveryVisit() if word == "full" else WhenChanged(tolerance)
