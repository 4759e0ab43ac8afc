"""Sources of random numbers. All classes are called as source(step, frames, shape) -> noise.

`step` is the index of a sampling step or a name: "posterior" for the sample of the autoencoder's posterior, "start" for
the noise of the initial sample x_T.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def _checked(seed: int) -> int:
    """Return the seed. Raises ValueError if it is not valid for generators."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"got seed {seed}, expected 0 to 2**63 - 1")
    return seed


class FrameNoise:
    """Standard normal noise that depends on seed, step and frame number alone.

    Results therefore do not depend on tiles, windows, parts, the order of computation or resumption. Raises ValueError
    for a seed outside 0 to 2**63 - 1.
    """

    def __init__(self, seed: int) -> None:
        self.seed = _checked(seed)

    def __call__(self, step: int | str, frames: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return noise (T, *shape), float32 on the CPU, for T frame numbers of the video.

        `shape` is (c, h, w) of the full latent frame; tiles are cut afterwards. Raises ValueError for negative numbers.
        """
        return torch.stack([self._frame(step, frame, shape) for frame in frames])

    def _frame(self, step: int | str, frame: int, shape: Sequence[int]) -> Tensor:
        is_name = isinstance(step, str)
        where = zlib.crc32(step.encode()) if is_name else step
        if where < 0 or frame < 0:
            raise ValueError(f"got step {step} and frame {frame}, expected neither below 0")
        address = [self.seed % 2**32, self.seed >> 32, int(is_name), where, frame]
        state = np.random.SeedSequence(address).generate_state(1, np.uint64)
        return torch.randn(*shape, generator=torch.Generator().manual_seed(int(state[0])))


class ReleasedNoise:
    """The noise of the released script: a sequential CPU generator with the same seed for each image patch (bug B27).

    Create one per patch and segment (the released seed is 42) and draw in the released order: "posterior", "start",
    then one tensor per step from the last to 0. Only the number of frames matters, not their numbers.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(_checked(seed))

    def __call__(self, step: int | str, frames: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return the next float32 numbers as (T, *shape); "start" is filled in the order T, h, w, c."""
        out = torch.empty(len(frames), *shape)
        if step == "start":  # the released latent is channels_last, which changes the order of the numbers
            out = out.contiguous(memory_format=torch.channels_last)
        return out.normal_(generator=self.generator).contiguous()


class SequentialNoise:
    """A sequential CPU generator for all frames, as in the released StableVSR; results depend on call order."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(_checked(seed))

    def __call__(self, step: int | str, frames: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return the next float32 numbers as (T, *shape), drawn frame by frame."""
        return torch.stack([torch.randn(*shape, generator=self.generator) for _ in frames])


def sequential(source: Callable, frames: int) -> Callable[[int | str, Sequence[int], Sequence[int]], Tensor]:
    """Return noise(step, frame numbers, shape) -> (T, *shape) from a sequential source such as `ReleasedNoise`.

    Frame numbers are 0 to frames - 1. The numbers of a step are drawn for all frames at its first call.
    """
    drawn: dict[int | str, Tensor] = {}

    def noise(step: int | str, numbers: Sequence[int], shape: Sequence[int]) -> Tensor:
        if step not in drawn:
            drawn[step] = source(step, range(frames), shape)
        return drawn[step][list(numbers)]

    return noise
