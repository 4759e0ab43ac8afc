"""The sizes of a frame of Upscale-A-Video: low-resolution frames on the grid of the latents, and decoded ones."""

import math
from collections.abc import Callable

from torch import Tensor

from ldm.methods.geometry import floor_pixels, to_unit
from ldm.ops.resize import resize

EPSILON = 1e-6  # of a pixel, lost to floating point


def covering(side: float) -> int:
    """Pixels of the latents' grid for a side of so many: rounded up, so that it holds all of the frame."""
    return math.ceil(side - EPSILON)


def inside(side: float) -> int:
    """Pixels of the latents' grid for a side of so many: rounded down, as the released script shrinks frames."""
    return max(math.floor(side + EPSILON), 1)


class LowGeometry:
    """Resize frames of `size` (h, w) to the grid of the latents, and results to the size of the output.

    Args:
        upscale: output size over input size.
        factor: of the networks, output over latents.
        least: pixels that the short side of the latents has at least.
        grid: pixels of the latents' grid for a side, `covering` or `inside`.

    `low` is the size (h, w) of the latents, `large` that of a decoded frame, `target` that of the output.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        upscale: float,
        factor: int,
        least: int,
        grid: Callable[[float], int] = covering,
    ) -> None:
        sides = [side * upscale / factor for side in size]
        scale = max(least / min(sides), 1)
        self.size, self.target = tuple(size), tuple(floor_pixels(side * upscale) for side in size)
        self.low = tuple(grid(side * scale) for side in sides)
        self.large = tuple(side * factor for side in self.low)

    def reduce(self, lq: Tensor) -> Tensor:
        """A frame (..., 3, h, w), float in [0, 1] or uint8 or uint16 of full scale, on the grid of the latents.

        Averaged over areas where it shrinks, bicubic where it grows; float32 in [0, 1].
        """
        lq = to_unit(lq).float()
        mode = "area" if min(self.size) > min(self.low) else "bicubic"
        return resize(lq, self.low, mode=mode).clamp(0, 1)

    def finish(self, sr: Tensor) -> Tensor:
        """A restored frame, about [-1, 1], in the size of the output and in [0, 1]."""
        return resize(sr.add(1).div(2).clamp(0, 1), self.target).clamp(0, 1)
