"""The maps of the structure encoder, computed once for frames that two windows of a step share."""

import torch
from torch import Tensor, nn

KEPT = 256 * 2**20  # limit of the maps that are kept, in bytes


class Conditions:
    """Maps of the frames of a window at one place and time step, kept for the next window.

    A map depends only on the latents of the frame in the tile and on the time step. They are the key of what is kept,
    and frames are encoded one by one, so a result is the same to the bit whether it was kept or computed.

    Args:
        structure: the condition encoder.
        shared: frames that consecutive windows have in common.
        limit: bytes of maps to keep; beyond it maps are computed again.
    """

    def __init__(self, structure: nn.Module, *, shared: int, limit: int = KEPT) -> None:
        self.structure, self.shared, self.limit = structure, shared, limit
        self._kept: dict[tuple, list[tuple[Tensor, list[Tensor]]]] = {}

    def __call__(self, z: Tensor, t: Tensor, *, place: tuple) -> list[Tensor]:
        """Latents z (B, T, c, h, w) of tiles at `place`, time step t (1,) -> a map (B*T, c', h', w') for each level."""
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
        """Of the maps and the latents they belong to."""
        return sum(_bytes_of(frame) for frames in self._kept.values() for frame in frames)


def _bytes_of(frame: tuple[Tensor, list[Tensor]]) -> int:
    return sum(value.nbytes for value in (frame[0], *frame[1]))
