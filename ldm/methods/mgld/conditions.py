"""A cache of the structure encoder's maps for frames that consecutive windows share."""

import torch
from torch import Tensor, nn

MAX_CACHED_BYTES = 256 * 2**20  # maximum size of the cache


class Conditions:
    """Compute the maps of a window and cache those that the next window needs.

    A map depends only on the latents of a frame in a tile and on the time step, which form the key of the cache. Frames
    are encoded one by one, so that cached and computed results are bitwise equal.

    Args:
        structure: the structure encoder.
        shared: number of frames that consecutive windows share.
        limit: maximum size of the cache in bytes; further maps are computed again.
    """

    def __init__(self, structure: nn.Module, *, shared: int, limit: int = MAX_CACHED_BYTES) -> None:
        self.structure, self.shared, self.limit = structure, shared, limit
        self._kept: dict[tuple, list[tuple[Tensor, list[Tensor]]]] = {}

    def __call__(self, z: Tensor, t: Tensor, *, place: tuple) -> list[Tensor]:
        """Encode tiles z (B, T, c, h, w) at `place`, time step t (1,) -> a map (B*T, c', h', w') for each level."""
        before = self._kept.pop(place, [])
        frames = [(z[:, k], self._maps(z[:, k], t, before)) for k in range(z.shape[1])]
        if self.shared and self.bytes_kept + sum(map(_bytes_of, frames[-self.shared :])) <= self.limit:
            self._kept[place] = frames[-self.shared :]
        levels = zip(*(maps for _, maps in frames), strict=True)
        return [torch.stack(level, dim=1).flatten(0, 1) for level in levels]

    def _maps(self, z: Tensor, t: Tensor, before: list[tuple[Tensor, list[Tensor]]]) -> list[Tensor]:
        same = (maps for known, maps in before if known.shape == z.shape and torch.equal(known, z))
        maps = next(same, None)
        return self.structure(z, t) if maps is None else maps

    @property
    def bytes_kept(self) -> int:
        """Size of the cached maps and their latents in bytes."""
        return sum(_bytes_of(frame) for frames in self._kept.values() for frame in frames)


def _bytes_of(frame: tuple[Tensor, list[Tensor]]) -> int:
    return sum(value.nbytes for value in (frame[0], *frame[1]))
