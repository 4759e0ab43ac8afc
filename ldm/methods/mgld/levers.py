"""Memory settings of MGLD-VSR and their predicted peak memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm.methods.contract import Costs, Request
from ldm.methods.mgld.conditions import MAX_CACHED_BYTES
from ldm.methods.mgld.settings import Decoding
from ldm.methods.windows import Windows, smaller_tiles
from ldm.nets.whole_frame import HOLD

if TYPE_CHECKING:
    from ldm.methods.mgld.method import MGLD

UNLIMITED = 2**60  # a limit in bytes that no map exceeds
MAPS_AT_ONCE = 3  # maps of the maximum held size that exist at the same time
COPIES = 3.5  # float32 copies of a window of enlarged frames during decoding
WHOLE = 2**16  # side of a tile that no latent exceeds
LARGE_CACHE = 2**33  # bytes of the cache of conditions on a device whose memory allows it
MAX_CACHED_PICTURES = 2**30  # bytes of enlarged frames cached from encoding to decoding


@dataclass(frozen=True)
class TileLevers:
    """Tiles in latent pixels, the norms of the autoencoders (`settings.Decoding`), and bytes of cached conditions."""

    tile: int
    tile_overlap: int
    decoder_tile: int
    decoder_overlap: int
    norms: str
    hold: int
    attention: int = 0
    cached: int = MAX_CACHED_BYTES

    def sampling_windows(self, windows: Windows) -> Windows:
        """Return the windows of the denoiser with these tiles."""
        return windows.with_tiles(self.tile, self.tile_overlap)

    def decoding(self, decoding: Decoding) -> Decoding:
        """Return the decoding settings with these tiles and norms."""
        tiles = decoding.windows.with_tiles(self.decoder_tile, self.decoder_overlap)
        return replace(decoding, windows=tiles, norms=self.norms, hold=self.hold)

    def __str__(self) -> str:
        latent = f"{self.tile} every {self.tile - self.tile_overlap}"
        decoder = f"in tiles of {self.decoder_tile} every {self.decoder_tile - self.decoder_overlap} (approximate)"
        if self.norms == "shared":
            decoder = f"in tiles of {self.decoder_tile} with shared statistics (approximate)"
        if self.norms == "frame":
            decoder = (
                "exactly"
                if self.hold >= UNLIMITED or self.decoder_tile == WHOLE
                else f"exactly, in tiles of {self.decoder_tile}"
            )
        text = f"sampled in tiles of {latent} latent pixels, decoded {decoder}"
        if self.attention and self.norms != "tile":
            text += f", attention within {self.attention} latent pixels (approximate)"
        return text


def ladder(windows: Windows, decoding: Decoding, *, step: int, on_cpu: bool = True) -> list[TileLevers]:
    """Return all levers, from those of the settings down to the least memory.

    Off the CPU, where each tile costs launches of kernels, they begin above the settings: a large cache of conditions
    and, if norms are those of the whole frame, a decoder without tiles, which has the same result.

    First the norms use less of the frame; then the larger of the two tiles is halved repeatedly. Tiles stay multiples
    of `step`. Norms "auto" start with the exact statistics of the whole frame.
    """
    tiles, auto = decoding.windows, decoding.norms == "auto"
    norms, hold = ("frame", UNLIMITED) if auto else (decoding.norms, decoding.hold)
    first = TileLevers(
        windows.tile, windows.tile_overlap, tiles.tile, tiles.tile_overlap, norms, hold, decoding.attention
    )
    largest = []
    if not on_cpu:
        whole = replace(first, decoder_tile=WHOLE, decoder_overlap=0) if norms == "frame" else first
        largest = [levers for levers in (replace(whole, cached=LARGE_CACHE), whole) if levers != first]
    return [*largest, *_descend(first, step)]


def _descend(levers: TileLevers, step: int) -> Iterator[TileLevers]:
    yield levers
    if levers.norms == "frame":
        for hold in (HOLD, HOLD // 8, HOLD // 64):
            levers = replace(levers, norms="shared", hold=hold)
            yield levers
    if levers.norms == "shared":
        levers = replace(levers, norms="tile")
        yield levers
    yield from smaller_tiles(levers, step=step)


# ---- memory


def frames_held(steps: int, *, windows: Windows, reach: int, decoding: Windows) -> int:
    """Return the maximum number of frames in a stream: each stage waits for a window or for neighbours."""
    guided = reach + 3 if reach else 0
    return 1 + steps * (windows.n_frames + 1 + guided) + decoding.n_frames + 1


def peak(method: "MGLD", request: Request, levers: TileLevers, costs: Costs) -> int:
    """Predict the peak in bytes, including frames between stages (`ldm.methods.contract.Method.peak`)."""
    geometry, codec = method.geometry(request.size, request.upscale), method.codec(levers)
    h, w = geometry.latent
    picture = h * w * codec.downsampling**2 * 3 * 4
    frames = request.frames if request.frames is not None else 10**9
    windows, decoding = levers.sampling_windows(method.windows), codec.decoding.windows

    def tile(probe: str, side: int, batch: int = 1) -> float:
        a, b = costs[probe]
        return a + b * min(side, h) * min(side, w) * batch

    exact = levers.norms == "frame" and levers.hold >= UNLIMITED  # costs are measured in this mode
    side = max(h, w) if exact else levers.decoder_tile
    held = 0 if exact or levers.norms == "tile" else MAPS_AT_ONCE * min(levers.hold, codec.largest_map((h, w)))
    count = min(frames, decoding.n_frames)
    work = max(
        tile("sampling", levers.tile, windows.batch),
        tile("encoding", side) + picture * COPIES + held,
        tile("decoding", side, decoding.batch) + count * picture * COPIES + held,
    )
    return int(work + costs["once"][0] + _cached_maps(method, levers, costs, (h, w)) + _held_frames(method, request))


def _cached_maps(method: "MGLD", levers: TileLevers, costs: Costs, latent: tuple[int, int]) -> float:
    """Return the bytes of cached maps for frames that windows share, over all steps and tiles (`conditions`)."""
    windows = levers.sampling_windows(method.windows)
    tiles = replace(windows, batch=1).calls(1, *latent)
    pixels = tiles * min(windows.tile, latent[0]) * min(windows.tile, latent[1])
    shared = sum(windows.places.overlap_of(step) for step in range(len(method.sampling.schedule)))
    return min(levers.cached, shared * pixels * costs["maps"][1])


def _held_frames(method: "MGLD", request: Request) -> int:
    """Return the bytes of frames between stages: "x", "z", the history of the sampler and motion in float32, the LQ and
    the enlarged frame."""
    geometry = method.geometry(request.size, request.upscale)
    count = min(request.frames if request.frames is not None else 10**9, method.frames_held)
    latents = (2 + method.sampling.history) * method.channels + 2 * (2 + 1)
    each = math.prod(geometry.latent) * latents * 4 + math.prod(geometry.size) * 3 * 2
    kept = geometry.picture_bytes if caches_pictures(method, request) else 0
    return count * (each + kept)


def caches_pictures(method: "MGLD", request: Request) -> bool:
    """Whether enlarged frames are cached from encoding to decoding; otherwise they are computed twice."""
    geometry = method.geometry(request.size, request.upscale)
    return method.frames_held * geometry.picture_bytes <= MAX_CACHED_PICTURES
