"""Where the random numbers of a restoration come from. All classes are called (step, frames, shape) -> noise.

`step` is the index of a sampling step, or a name for noise drawn outside the loop: "posterior" for the autoencoder's
sample of the low-quality latent and "start" for the noise of x_T.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def _checked(seed: int) -> int:
    """The seed, or ValueError unless it is one that generators take."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"got seed {seed}, expected 0 to 2**63 - 1")
    return seed


class FrameNoise:
    """Standard normal noise with an address: seed, step and frame number alone decide it.

    So a result does not depend on tiles, windows, chunks, the order of work or resumed runs.
    """

    def __init__(self, seed: int) -> None:
        self.seed = _checked(seed)

    def __call__(self, step: int | str, frames: Sequence[int], shape: Sequence[int]) -> Tensor:
        """(T, *shape) float32 on the CPU for the frame numbers `frames` (>= 0) of the whole video.

        `shape` is (c, h, w) of the whole latent frame; cut tiles afterwards.
        """
        return torch.stack([self._frame(step, frame, shape) for frame in frames])

    def _frame(self, step: int | str, frame: int, shape: Sequence[int]) -> Tensor:
        named = isinstance(step, str)
        where = zlib.crc32(step.encode()) if named else step
        if where < 0 or frame < 0:
            raise ValueError(f"got step {step} and frame {frame}, expected neither below 0")
        address = [self.seed % 2**32, self.seed >> 32, int(named), where, frame]
        state = np.random.SeedSequence(address).generate_state(1, np.uint64)
        return torch.randn(*shape, generator=torch.Generator().manual_seed(int(state[0])))


class ReleasedNoise:
    """The noise of the released script: one sequential CPU generator, seeded anew for every image patch (bug B27).

    Make one per patch and segment (its seed there is 42) and draw in the released order: "posterior", "start", then one
    tensor per step from the last to 0. The frame numbers only say how many frames there are.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(_checked(seed))

    def __call__(self, step: int | str, frames: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The next (T, *shape) float32 numbers of the stream; "start" is filled in the order T, h, w, c."""
        out = torch.empty(len(frames), *shape)
        if step == "start":  # the released latent is channels_last there, which changes order and use of the stream
            out = out.contiguous(memory_format=torch.channels_last)
        return out.normal_(generator=self.generator).contiguous()


class SequentialNoise:
    """One CPU generator, frame after frame, as the released StableVSR draws: results depend on the order of work."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(_checked(seed))

    def __call__(self, step: int | str, frames: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The next (T, *shape) float32 numbers of the stream, one frame at a time."""
        return torch.stack([torch.randn(*shape, generator=self.generator) for _ in frames])


def sequential(source: Callable, frames: int) -> Callable[[int | str, Sequence[int], Sequence[int]], Tensor]:
    """noise(step, numbers of frames 0 to frames - 1, shape) -> (T, *shape) from a source such as `ReleasedNoise`.

    The numbers of a step are drawn for all frames at once, at its first call.
    """
    drawn: dict[int | str, Tensor] = {}

    def noise(step: int | str, numbers: Sequence[int], shape: Sequence[int]) -> Tensor:
        if step not in drawn:
            drawn[step] = source(step, range(frames), shape)
        return drawn[step][list(numbers)]

    return noise
