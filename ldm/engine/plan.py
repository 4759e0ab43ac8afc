"""A memory plan: tiles that fit, from costs measured on this model and device."""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ldm.engine.device import Peak, hardware
from ldm.files import write_whole
from ldm.methods.conditions import KEPT
from ldm.methods.mgld import MGLD
from ldm.methods.settings import HOLD
from ldm.streaming.pipeline import Frame

LEAST_TILE = 16  # latent pixels; smaller tiles are nearly all overlap
PROBE = (16, 32)  # sides of the latents on which costs are measured; a cost is a + b * pixels through both
SPARE = 0.1  # of a peak is kept for what is not counted: allocators do not give back all, threads have own heaps
HELD_MAPS = 3  # maps of the size that may be held which exist at the same time
CODED = 15, 24, 10**7  # an encoder's bytes a pixel for each frame of a part, for so many frames, and for itself
COPIES = 3.5  # float32 copies of a window of enlarged frames while it is decoded
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Plan:
    """Sides of the tiles in latent pixels, what the autoencoders' norms see and may hold (see
    `ldm.methods.settings.Decoding`), and how many frames go by between two savings of the state."""

    tile: int
    tile_overlap: int
    decoder_tile: int
    decoder_overlap: int
    norms: str
    hold: int
    part_frames: int

    @classmethod
    def of(cls, method: MGLD, *, part_frames: int) -> "Plan":
        """What the configuration says; norms that are to be chosen see the whole frame, held whole."""
        first, decoding = method.windows, method.decoding
        second, auto = decoding.windows, decoding.norms == "auto"
        norms, hold = ("frame", 2**60) if auto else (decoding.norms, decoding.hold)
        return cls(first.tile, first.tile_overlap, second.tile, second.tile_overlap, norms, hold, part_frames)

    def apply(self, method: MGLD) -> None:
        """Give the method these tiles."""
        method.windows = replace(method.windows, tile=self.tile, tile_overlap=self.tile_overlap)
        windows = replace(method.decoding.windows, tile=self.decoder_tile, tile_overlap=self.decoder_overlap)
        method.decoding = replace(method.decoding, windows=windows, norms=self.norms, hold=self.hold)

    def smaller(self, *, step: int, hold: int = HOLD // 8) -> "Plan | None":
        """Less memory: norms that see less, then the larger of both tiles halved, in multiples of `step`. None: no way.

        `hold` is what maps may take that are still held.
        """
        if self.norms == "frame":
            return replace(self, norms="shared", hold=hold)
        if self.norms == "shared":
            return replace(self, norms="tile")
        if max(self.tile, self.decoder_tile) <= LEAST_TILE:
            return None
        if self.decoder_tile >= self.tile:
            side = _halved(self.decoder_tile, step)
            return replace(self, decoder_tile=side, decoder_overlap=min(self.decoder_overlap, side // 3))
        side = _halved(self.tile, step)
        return replace(self, tile=side, tile_overlap=min(self.tile_overlap, side // 2))

    def __str__(self) -> str:
        latent = f"{self.tile} every {self.tile - self.tile_overlap}"
        decoder = f"in tiles of {self.decoder_tile} every {self.decoder_tile - self.decoder_overlap} (approximate)"
        if self.norms == "shared":
            decoder = f"in tiles of {self.decoder_tile} with statistics in common (approximate)"
        if self.norms == "frame":
            decoder = "exactly" if self.hold >= 2**60 else f"exactly, in tiles of {self.decoder_tile}"
        return f"sampled in tiles of {latent} latent pixels, decoded {decoder}, saved every {self.part_frames} frames"


def _halved(side: int, step: int) -> int:
    return max(side // 2 // step * step, LEAST_TILE, step)


def parse_bytes(text: str) -> int:
    """ "12G", "800M", "1.5T" or plain bytes -> bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    if not match or not float(match[1]):
        raise ValueError(f"got memory {text!r}, expected a size such as 12G or 800M")
    return int(float(match[1]) * UNITS[match[2]])


# ---- measuring


def measured_costs(method: MGLD, *, cache: Path | None = None) -> dict[str, list[float]]:
    """{stage: [a, b]}: a window of tiles of p latent pixels takes a + b p bytes beside the weights.

    "maps" are those of the structure encoder for one frame and step, which are kept from one window for the next,
    "once" is what stays of the first call of everything, such as buffers of libraries.

    Measured by running each stage on two small windows, once for each model, device and precision: kept in `cache`.
    """
    path = cache and cache / f"costs-{_signature(method)}.json"
    if path and path.exists():
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
    before = Peak(str(method.device)).reset()
    costs = {name: _line(run, str(method.device)) for name, run in _stages(method).items()}
    costs["maps"] = [0.0, _map_bytes(method)]
    costs["once"] = [float(max(Peak(str(method.device)).reset() - before, 0)), 0.0]
    if path:
        with contextlib.suppress(OSError):  # without a cache it is only measured again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(costs).encode())
    return costs


def _stages(method: MGLD) -> dict[str, Callable[[int], None]]:
    """What is measured, as functions of the side of the latents."""
    f, channels = method.autoencoder.downsampling, method.autoencoder.post_quant_conv.in_channels

    def latents(frames: int, side: int) -> Tensor:
        return torch.zeros(1, frames, channels, side, side, device=method.device)

    def pictures(frames: int, side: int) -> Tensor:
        return torch.zeros(1, frames, 3, side * f, side * f, device=method.device)

    def sampling(side: int) -> None:
        frames = [
            Frame(k, {name: latents(1, side)[:, 0].cpu() for name in "xz"}) for k in range(method.windows.n_frames)
        ]
        method.denoise_window(frames)

    def decoding(side: int) -> None:
        count = method.decoding.windows.n_frames
        method.decode(latents(count, side), pictures(count, side))

    return {
        "sampling": sampling,
        "encoding": lambda side: method.encode(pictures(1, side), latents(1, side)),
        "decoding": decoding,
    }


@torch.no_grad()
def _map_bytes(method: MGLD) -> float:
    """Bytes of the structure encoder's maps of a frame, for each latent pixel."""
    z = torch.zeros(1, method.autoencoder.post_quant_conv.in_channels, PROBE[0], PROBE[0], device=method.device)
    with method.autocast():
        maps = method.structure(z, torch.zeros(1, dtype=torch.long, device=method.device))
    return sum(value.nbytes for value in (z, *maps)) / PROBE[0] ** 2


def _line(run: Callable[[int], None], device: str) -> list[float]:
    """[a, b] through the peaks at both probes."""
    peak, taken = Peak(device), []
    run(PROBE[0])  # what is allocated once, such as buffers of libraries, is no cost of a tile
    for side in PROBE:
        before = peak.reset()
        run(side)
        taken.append(max(peak.read() - before, 0))
    slope = max(taken[1] - taken[0], 0) / (PROBE[1] ** 2 - PROBE[0] ** 2)
    return [max(taken[0] - slope * PROBE[0] ** 2, 0.0), slope]


def _signature(method: MGLD) -> str:
    """Names what the costs depend on."""
    shapes = [(name, tuple(value.shape)) for name, value in method.state_dict().items()]
    device = hardware(str(method.device))["name"]
    windows = method.windows.n_frames, method.windows.batch
    text = repr(("stages, maps, once", shapes, device, str(method.dtype), windows, method.decoding, torch.__version__))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where measured costs are kept: MGLDVSR_CACHE, else the user's cache."""
    given = os.environ.get("MGLDVSR_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(given) / "mgldvsr" if given else Path.home() / ".cache" / "mgldvsr"


# ---- planning


def predicted_peak(
    method: MGLD, plan: Plan, costs: Mapping[str, list[float]], *, size: tuple[int, int], upscale: float, frames: int
) -> int:
    """Bytes that restoring frames of `size` (h, w) takes at most beside what is in use now; `frames` of the clip."""
    geometry, f = method.geometry(size, upscale), method.autoencoder.downsampling
    h, w = geometry.latent
    picture = h * w * f * f * 3 * 4
    count = min(frames, method.decoding.windows.n_frames)

    def tile(stage: str, side: int, batch: int = 1) -> float:
        a, b = costs[stage]
        return a + b * min(side, h) * min(side, w) * batch

    exact = plan.norms == "frame" and plan.hold >= 2**60  # measured as such: costs grow with the frame, not the tile
    side = max(h, w) if exact else plan.decoder_tile
    held = 0 if exact or plan.norms == "tile" else HELD_MAPS * min(plan.hold, method.largest_map(geometry.latent))
    work = max(
        tile("sampling", plan.tile, method.windows.batch),
        tile("encoding", side) + picture * COPIES + held,
        tile("decoding", side, method.decoding.windows.batch) + count * picture * COPIES + held,
    )
    work += costs["once"][0] + _kept_maps(method, plan, costs["maps"][1], (h, w))
    if method.device.type == "cuda":
        return int(work)  # frames on the way wait in the host's memory
    on_the_way = min(frames, method.held_frames) * method.frame_bytes(geometry)
    each, most, itself = CODED
    encoder = each * min(frames, plan.part_frames, most) * math.prod(geometry.target) + itself
    return int(work + on_the_way + encoder)


def _kept_maps(method: MGLD, plan: Plan, each: float, latent: tuple[int, int]) -> float:
    """Bytes of maps that are kept for frames which windows share, at every step and tile (`ldm.methods.conditions`)."""
    tiles = replace(method.windows, tile=plan.tile, tile_overlap=plan.tile_overlap, batch=1).calls(1, *latent)
    pixels = tiles * min(plan.tile, latent[0]) * min(plan.tile, latent[1])
    return min(KEPT, len(method.sampling.schedule) * method.windows.frame_overlap * pixels * each)


def with_spare(need: int) -> int:
    """A peak in bytes as it may really be: what was counted came to 90 to 98 % of it in small runs."""
    return int(need / (1 - SPARE))


def fitting_plan(method: MGLD, plan: Plan, budget: int, predict: Callable[[Plan], int]) -> tuple[Plan, int]:
    """The largest plan from `plan` downwards whose predicted peak fits into `budget` bytes, and that peak.

    Raises ValueError saying how much the smallest would take.
    """
    while (need := predict(plan)) > budget:
        smaller = plan.smaller(step=method.unet.downsampling, hold=min(HOLD, budget // 10))
        if smaller is None:
            needed = f"{need / 1e9:.1f} GB with the smallest tiles"
            raise ValueError(f"got {budget / 1e9:.1f} GB of memory, expected {needed}; lower --upscale or --n_frames")
        plan = smaller
    return plan, need
