"""How MGLD-VSR cuts its work to fit into memory, and what that takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm.methods.contract import Costs, Request
from ldm.methods.mgld.conditions import KEPT
from ldm.methods.mgld.settings import Decoding, Windows
from ldm.nets.whole_frame import HOLD

if TYPE_CHECKING:
    from ldm.methods.mgld.method import MGLD

LEAST_TILE = 16  # latent pixels; smaller tiles are nearly all overlap
WHOLE = 2**60  # bytes to hold that no map exceeds
HELD_MAPS = 3  # maps of the size that may be held which exist at the same time
COPIES = 3.5  # float32 copies of a window of enlarged frames while it is decoded
KEPT_PICTURES = 2**30  # bytes of enlarged frames that are kept from encoding to decoding


@dataclass(frozen=True)
class TileLevers:
    """Tiles in latent pixels, and what the norms of the autoencoders see and hold (`settings.Decoding`)."""

    tile: int
    tile_overlap: int
    decoder_tile: int
    decoder_overlap: int
    norms: str
    hold: int
    attention: int = 0

    def sampling_windows(self, windows: Windows) -> Windows:
        """The denoiser's windows with these tiles."""
        return replace(windows, tile=self.tile, tile_overlap=self.tile_overlap, tile_stride=None)

    def decoding(self, decoding: Decoding) -> Decoding:
        """The decoding with these tiles and norms."""
        tiles = replace(decoding.windows, tile=self.decoder_tile, tile_overlap=self.decoder_overlap, tile_stride=None)
        return replace(decoding, windows=tiles, norms=self.norms, hold=self.hold)

    def __str__(self) -> str:
        latent = f"{self.tile} every {self.tile - self.tile_overlap}"
        decoder = f"in tiles of {self.decoder_tile} every {self.decoder_tile - self.decoder_overlap} (approximate)"
        if self.norms == "shared":
            decoder = f"in tiles of {self.decoder_tile} with shared statistics (approximate)"
        if self.norms == "frame":
            decoder = "exactly" if self.hold >= WHOLE else f"exactly, in tiles of {self.decoder_tile}"
        text = f"sampled in tiles of {latent} latent pixels, decoded {decoder}"
        if self.attention and self.norms != "tile":
            text += f", attention within {self.attention} latent pixels (approximate)"
        return text


def ladder(windows: Windows, decoding: Decoding, *, step: int) -> list[TileLevers]:
    """All levers, from those of the settings down: norms that see less, then the larger of both tiles halved.

    Tiles stay multiples of `step`. Norms that are to be chosen see the whole frame first, held whole.
    """
    tiles, auto = decoding.windows, decoding.norms == "auto"
    norms, hold = ("frame", WHOLE) if auto else (decoding.norms, decoding.hold)
    first = TileLevers(
        windows.tile, windows.tile_overlap, tiles.tile, tiles.tile_overlap, norms, hold, decoding.attention
    )
    return list(_descend(first, step))


def _descend(levers: TileLevers, step: int) -> Iterator[TileLevers]:
    yield levers
    if levers.norms == "frame":
        for hold in (HOLD, HOLD // 8, HOLD // 64):
            levers = replace(levers, norms="shared", hold=hold)
            yield levers
    if levers.norms == "shared":
        levers = replace(levers, norms="tile")
        yield levers
    while max(levers.tile, levers.decoder_tile) > LEAST_TILE:
        if levers.decoder_tile >= levers.tile:
            side = _halved(levers.decoder_tile, step)
            levers = replace(levers, decoder_tile=side, decoder_overlap=min(levers.decoder_overlap, side // 3))
        else:
            side = _halved(levers.tile, step)
            levers = replace(levers, tile=side, tile_overlap=min(levers.tile_overlap, side // 2))
        yield levers


def _halved(side: int, step: int) -> int:
    return max(side // 2 // step * step, LEAST_TILE, step)


# ---- memory


def frames_held(steps: int, *, windows: Windows, reach: int, decoding: Windows) -> int:
    """Frames that a stream holds at most: each stage waits for a window, or for neighbours."""
    guided = reach + 3 if reach else 0
    return 1 + steps * (windows.n_frames + 1 + guided) + decoding.n_frames + 1


def peak(method: "MGLD", request: Request, levers: TileLevers, costs: Costs) -> int:
    """Bytes that restoring takes at most, frames held included (`ldm.methods.contract.Method.peak`)."""
    geometry, codec = method.geometry(request.size, request.upscale), method.codec(levers)
    h, w = geometry.latent
    picture = h * w * codec.downsampling**2 * 3 * 4
    frames = request.frames if request.frames is not None else 10**9
    windows, decoding = levers.sampling_windows(method.windows), codec.decoding.windows

    def tile(probe: str, side: int, batch: int = 1) -> float:
        a, b = costs[probe]
        return a + b * min(side, h) * min(side, w) * batch

    exact = levers.norms == "frame" and levers.hold >= WHOLE  # measured as such: costs grow with the frame
    side = max(h, w) if exact else levers.decoder_tile
    held = 0 if exact or levers.norms == "tile" else HELD_MAPS * min(levers.hold, codec.largest_map((h, w)))
    count = min(frames, decoding.n_frames)
    work = max(
        tile("sampling", levers.tile, windows.batch),
        tile("encoding", side) + picture * COPIES + held,
        tile("decoding", side, decoding.batch) + count * picture * COPIES + held,
    )
    return int(work + costs["once"][0] + _kept_maps(method, windows, costs, (h, w)) + _held_frames(method, request))


def _kept_maps(method: "MGLD", windows: Windows, costs: Costs, latent: tuple[int, int]) -> float:
    """Bytes of maps kept for frames that windows share, at every step and tile (`conditions`)."""
    tiles = replace(windows, batch=1).calls(1, *latent)
    pixels = tiles * min(windows.tile, latent[0]) * min(windows.tile, latent[1])
    return min(KEPT, len(method.sampling.schedule) * windows.frame_overlap * pixels * costs["maps"][1])


def _held_frames(method: "MGLD", request: Request) -> int:
    """Bytes of the frames held between stages: "x", "z" and motion in float32, the LQ frame, and the enlarged one."""
    geometry = method.geometry(request.size, request.upscale)
    count = min(request.frames if request.frames is not None else 10**9, method.frames_held)
    latents = 2 * method.channels + 2 * (2 + 1)
    each = math.prod(geometry.latent) * latents * 4 + math.prod(geometry.size) * 3 * 2
    kept = geometry.picture_bytes if keeps_pictures(method, request) else 0
    return count * (each + kept)


def keeps_pictures(method: "MGLD", request: Request) -> bool:
    """Whether enlarged frames are kept from encoding to decoding, rather than enlarged twice."""
    geometry = method.geometry(request.size, request.upscale)
    return method.frames_held * geometry.picture_bytes <= KEPT_PICTURES
