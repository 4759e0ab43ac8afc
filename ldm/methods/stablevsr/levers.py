"""How StableVSR cuts its work to fit into memory, and what that takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm.methods.contract import Costs, Request
from ldm.nets.whole_frame import HOLD

if TYPE_CHECKING:
    from ldm.methods.stablevsr.method import StableVSR

WHOLE = 2**60  # bytes to hold that no map exceeds
HELD_MAPS = 3  # maps of the size that may be held which exist at the same time
COPIES = 5  # float32 copies of an enlarged frame while its flow is estimated, or it is decoded and warped
TILE = 96  # latent pixels of a tile of the decoder, with its halo
SHORTER = (128, 64, 32, 16, 8)  # frames of a block at most
PYRAMID = 4 / 3  # correlations of all levels over those of the first
STRIDE = 8  # enlarged pixels per feature of an estimator that correlates all pairs


@dataclass(frozen=True)
class SceneLevers:
    """What the decoder holds, how flows are kept, and the frames of a block (0: whole scenes) and ahead of it."""

    hold: int = WHOLE
    tile: int = TILE
    half_flows: bool = False
    block: int = 0
    ahead: int = 0

    @property
    def whole(self) -> bool:
        """Whether frames are decoded in one piece."""
        return self.hold >= WHOLE

    def __str__(self) -> str:
        scenes = "whole scenes"
        if self.block:
            scenes = f"blocks of {self.block} frames"
        if self.ahead:
            scenes += f" with {self.ahead} ahead (approximate)"
        decoded = "in one piece" if self.whole else f"exactly, in tiles of {self.tile} latent pixels"
        flows = ", flows in float16" if self.half_flows else ""
        return f"{scenes}, decoded {decoded}{flows}"


def scene_ladder(*, block: int, ahead: int, blocks: bool) -> list[SceneLevers]:
    """All levers, best first: a decoder that holds less, flows of half precision, then smaller blocks.

    block: frames of the first block, 0 for whole scenes; ahead: frames after a block. blocks: whether scenes may be cut
    into blocks.
    """
    first = SceneLevers(block=block, ahead=ahead if block else 0)
    shorter = [size for size in SHORTER if not block or size < block] if blocks else []
    return list(_descend(first, [(size, min(ahead, size)) for size in shorter]))


def _descend(levers: SceneLevers, shorter: list[tuple[int, int]]) -> Iterator[SceneLevers]:
    yield levers
    for hold in (HOLD, HOLD // 8, HOLD // 64):
        levers = replace(levers, hold=hold)
        yield levers
    levers = replace(levers, half_flows=True)
    yield levers
    for block, ahead in shorter:
        levers = replace(levers, block=block, ahead=ahead)
        yield levers


def scene_peak(method: "StableVSR", request: Request, levers: SceneLevers, costs: Costs) -> int | None:
    """Bytes that restoring takes at most, held frames included; None where their number is not known.

    On the CPU these are the frames of the longest scene or block with all their values; on other devices only the
    latents, since flows and pictures stay on the CPU.
    """
    count = levers.block + levers.ahead if levers.block else request.frames
    if count is None:
        return None
    sizes = method.sizes(request.size, request.upscale)
    pixels = math.prod(sizes.latent)
    picture = pixels * sizes.factor**2 * 3 * 4

    def run(probe: str, side: float = math.inf) -> float:
        a, b = costs[probe]
        return a + b * min(side, sizes.latent[0]) * min(side, sizes.latent[1])

    held = 0 if levers.whole else HELD_MAPS * min(levers.hold, _largest_map(method, pixels * sizes.factor**2))
    decoding = run("decoding") if levers.whole else run("decoding", levers.tile) + held
    work = max(run("sampling"), decoding, run("flow") + _correlations(method, pixels * sizes.factor**2))
    scene = min(count, request.frames or count) * _frame_bytes(method, levers, pixels, sizes.factor)
    carried = len(method.sampling.schedule) * pixels * method.channels * 4 if levers.block else 0
    return int(work + COPIES * picture + scene + carried + costs["once"][0])


def _frame_bytes(method: "StableVSR", levers: SceneLevers, pixels: int, factor: int) -> int:
    """Bytes of a frame on the way: input, latents, clean estimate, and both flows or the picture.

    Where guidance uses a picture again, its latents too, and the picture besides the flows.
    """
    keeps = method.sampling.decoder.keeps
    flows, picture = 4 * (2 if levers.half_flows else 4), 3 * 4
    large = flows + picture if keeps else max(flows, picture)
    small = 4 * (3 + (3 if keeps else 2) * method.channels)
    return pixels * (small + (factor**2 * large if method.device.type == "cpu" else 0))


def _correlations(method: "StableVSR", pixels: int) -> float:
    """Bytes of the correlations of all pairs of features, which grow with the square of the pixels up to a limit."""
    limit = getattr(method.networks["flow"], "volume_limit", 0)
    return min((pixels / STRIDE**2) ** 2, limit) * PYRAMID * 4


def _largest_map(method: "StableVSR", pixels: int) -> int:
    """Bytes of the largest map of the decoder for a frame of so many pixels."""
    autoencoder = method.networks["autoencoder"]
    width = autoencoder.decoder.up[0].block[-1].conv2.out_channels
    return width * pixels // autoencoder.patch**2 * (2 if method.dtype else 4)
