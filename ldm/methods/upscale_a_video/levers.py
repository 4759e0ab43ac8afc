"""How Upscale-A-Video cuts its work to fit into memory, and what that takes."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm.methods.contract import Costs, Request
from ldm.methods.upscale_a_video.settings import BLOCK, ClipDecoding, ClipSampling
from ldm.methods.windows import Windows, smaller_tiles

if TYPE_CHECKING:
    from ldm.methods.upscale_a_video.method import UpscaleAVideo

COPIES = 3.5  # float32 copies of a window of frames while it is decoded and blended
UNKNOWN = 10**9  # frames of a clip whose length is not known


@dataclass(frozen=True)
class ClipLevers:
    """Tiles of the denoiser and of the decoder in latent pixels."""

    tile: int
    tile_overlap: int
    decoder_tile: int
    decoder_overlap: int

    def sampling_windows(self, windows: Windows) -> Windows:
        """The denoiser's windows with these tiles."""
        return windows.with_tiles(self.tile, self.tile_overlap)

    def decoding(self, decoding: ClipDecoding) -> ClipDecoding:
        """The decoding with these tiles."""
        return replace(decoding, windows=decoding.windows.with_tiles(self.decoder_tile, self.decoder_overlap))

    def __str__(self) -> str:
        sampled = f"{self.tile} every {self.tile - self.tile_overlap}"
        decoded = f"{self.decoder_tile} every {self.decoder_tile - self.decoder_overlap}"
        return f"sampled in tiles of {sampled} latent pixels, decoded in tiles of {decoded} (blended, approximate)"


def clip_ladder(windows: Windows, decoding: ClipDecoding) -> list[ClipLevers]:
    """All levers, from the tiles of the settings down, the larger of both halved at every rung."""
    tiles = decoding.windows
    first = ClipLevers(windows.tile, windows.tile_overlap, tiles.tile, tiles.tile_overlap)
    return [first, *smaller_tiles(first)]


# ---- memory


def clip_frames_held(sampling: ClipSampling, windows: Windows, decoding: Windows) -> int:
    """Frames that a stream holds at most: each step waits for a window, and a propagated one for its context."""
    propagated = len(sampling.propagated) * (BLOCK + 2 * sampling.context + 1)
    return 1 + len(sampling.schedule) * (windows.n_frames + 1) + propagated + decoding.n_frames + 1


def clip_peak(method: "UpscaleAVideo", request: Request, levers: ClipLevers, costs: Costs) -> int:
    """Bytes that restoring takes at most, frames held included (`ldm.methods.contract.Method.peak`)."""
    geometry = method.geometry(request.size, request.upscale)
    h, w = geometry.low
    frames = request.frames if request.frames is not None else UNKNOWN

    def tile(probe: str, side: int, batch: int) -> float:
        a, b = costs[probe]
        return a + b * min(side, h) * min(side, w) * batch

    count, batch = min(frames, method.decoding.windows.n_frames), method.decoding.windows.batch
    picture = math.prod(geometry.large) * 3 * 4
    work = max(
        tile("sampling", levers.tile, method.windows.batch),
        tile("decoding", levers.decoder_tile, batch) + count * picture * COPIES,
        tile("flow", max(h, w), 1),
    )
    values = 2 * method.channels + 2 * 3 + (4 if method.sampling.propagated else 0)  # "x", a result, frames, flows
    held = min(frames, method.frames_held) * h * w * values * 4
    return int(work + costs["once"][0] + held)
