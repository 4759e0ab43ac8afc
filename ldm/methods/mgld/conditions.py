"""A cache of the structure encoder's maps for frames that consecutive windows share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_CACHED_BYTES = 256 * 2**20  # maximum size of the cache


class Conditions:
    """Compute the maps of a window and cache those that the next window needs.

    A map depends only on the latents of a frame in a tile and on the time step; its key is the number of the frame, its
    tile and the step. On a CPU, frames are encoded one by one, so that cached and computed results are bitwise equal;
    on other devices, all frames of a window that are not cached in one call.

    Args:
        structure: the structure encoder.
        limit: maximum size of the cache in bytes; further maps are computed again.
    """

    def __init__(self, structure: nn.Module, *, limit: int = MAX_CACHED_BYTES) -> None:
        self.structure, self.limit = structure, limit
        self._kept: dict[tuple, dict[int, list[Tensor]]] = {}

    def __call__(self, z: Tensor, t: Tensor, *, place: tuple, frames: Sequence[int], shared: int) -> list[Tensor]:
        """Encode tiles z (B, T, c, h, w) of `frames` at `place`, time step t (1,) -> (B*T, c', h', w') per level.

        `shared` is the number of these frames that the next window has, too.
        """
        maps = self._kept.pop(place, {})
        new = [k for k, frame in enumerate(frames) if frame not in maps]
        maps |= zip([frames[k] for k in new], self._encoded([z[:, k] for k in new], t), strict=True)
        if shared:
            kept = {frame: maps[frame] for frame in frames[-shared:]}
            if self.bytes_kept + sum(map(_bytes_of, kept.values())) <= self.limit:
                self._kept[place] = kept
        levels = zip(*(maps[frame] for frame in frames), strict=True)
        return [torch.stack(level, dim=1).flatten(0, 1) for level in levels]

    def _encoded(self, frames: list[Tensor], t: Tensor) -> list[list[Tensor]]:
        """Return the maps of each of the latents (B, c, h, w), in the dtype of the weights."""
        frames = [z.to(dtype_of(self.structure, z.dtype)) for z in frames]
        if len(frames) < 2 or frames[0].device.type == "cpu":
            return [self.structure(z, t) for z in frames]
        levels = [level.chunk(len(frames)) for level in self.structure(torch.cat(frames), t)]
        return [list(maps) for maps in zip(*levels, strict=True)]

    @property
    def bytes_kept(self) -> int:
        """Size of the cached maps in bytes."""
        return sum(_bytes_of(maps) for frames in self._kept.values() for maps in frames.values())


def dtype_of(network: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the dtype of the first weight of a network, or `default` if it has none."""
    return next((weight.dtype for weight in network.parameters()), default)


def _bytes_of(maps: list[Tensor]) -> int:
    return sum(level.nbytes for level in maps)
