"""The sizes of a frame in StableVSR: the network's input, its output, and what was asked for."""

from functools import partial

import torch
from torch import Tensor

from ldm.methods.geometry import floor_pixels, to_unit
from ldm.methods.words import choose
from ldm.ops.lanczos import floored_to_multiple
from ldm.ops.padding import Padding, pad_to_multiple, unpad
from ldm.ops.resize import resize

MULTIPLE = 4  # of the sides that the released pipeline gives its networks


class Sizes:
    """Frames of `size` (h, w) as the networks take them, and back.

    Args:
        upscale: output size over input size.
        factor: of the networks' enlargement.
        fit: how sides become multiples of 4: "padded" by reflection, and cropped in the end; "floored" by Lanczos on
            8-bit pixels, as released, and brought to the output's size in the end.

    `latent` is the size of the latents, `target` that of the output. Raises ValueError for another `fit`.
    """

    def __init__(self, size: tuple[int, int], *, upscale: float, factor: int, fit: str) -> None:
        self.fit = choose({"padded": partial(pad_to_multiple, multiple=MULTIPLE), "floored": _floored}, fit, "fit")
        self.target, self.factor = tuple(floor_pixels(side * upscale) for side in size), factor
        blank = torch.zeros(1, 3, *size)
        fitted, self.padding = self.fit(blank)
        self.latent = tuple(fitted.shape[-2:])

    def fitted(self, lq: Tensor) -> Tensor:
        """A frame (1, 3, h, w), float in [0, 1] or uint8 or uint16 of full scale -> (1, 3, *latent) in [-1, 1]."""
        return self.fit(to_unit(lq))[0] * 2 - 1

    def enlarged(self, lr: Tensor) -> Tensor:
        """What `fitted` gave, enlarged for the flow and in [0, 1]; not clamped."""
        return resize(lr, tuple(side * self.factor for side in self.latent)) / 2 + 0.5

    def finished(self, sr: Tensor) -> Tensor:
        """A restored frame, about [-1, 1], in the size that was asked for and in [0, 1]."""
        sr = unpad(sr, self.padding, scale=self.factor).div(2).add_(0.5).clamp_(0, 1)
        return resize(sr, self.target).clamp_(0, 1)


def _floored(frame: Tensor) -> tuple[Tensor, Padding]:
    """A frame (1, 3, h, w) in [0, 1] shrunk to multiples of 4 as 8-bit pixels, and no padding."""
    pixels = (frame[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    planes = torch.tensor(floored_to_multiple(pixels, multiple=MULTIPLE)).permute(2, 0, 1)[None]
    return planes.to(frame.device).float() / 255, Padding(planes.shape[-2], planes.shape[-1], 0, 0)
