"""Plan memory: choose the best levers of a method that fit, from costs measured on this model and device."""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ldm.engine.device import Peak, hardware
from ldm.files import read_object, write_atomically
from ldm.methods.contract import Costs, Levers, Method, Request

PROBE_SIDES = (16, 32)  # sides of the measured latents; a cost is the line a + b * pixels through both measurements
RESERVE = 150 * 10**6  # bytes of memory on the CPU that is not predicted, such as thread heaps
FRAGMENTED = 0.1  # fraction of a peak that the allocator of other devices may lose to fragmentation
# Memory of a video encoder: bytes per pixel and frame, maximum number of frames held, and a constant in bytes
ENCODER_BYTES = 15, 24, 10**7
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Plan:
    """The levers of a method and the number of frames (or units of work) between saved states."""

    levers: Levers
    part_frames: int

    def plain(self) -> dict:
        """Return the plan as plain values, for manifests."""
        return {**asdict(self.levers), "part_frames": self.part_frames}

    def next(self, method: Method) -> "Plan | None":
        """Return the plan with the next smaller levers; None if there are none."""
        ladder = list(method.levers())
        after = ladder.index(self.levers) + 1 if self.levers in ladder else len(ladder)
        return replace(self, levers=ladder[after]) if after < len(ladder) else None

    def __str__(self) -> str:
        return f"{self.levers}, saved every {self.part_frames} frames"


def resumed_plan(method: Method, begun: Mapping | None, *, part_frames: int) -> Plan | None:
    """Return the plan that a manifest records; None if it records no plan of this method."""
    plans = (Plan(levers, part_frames) for levers in method.levers())
    return next((plan for plan in plans if plan.plain() == dict(begun or {})), None)


def parse_bytes(text: str) -> int:
    """Parse "12G", "800M", "1.5T" or a number of bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    if not match or not float(match[1]):
        raise ValueError(f"got memory {text!r}, expected a size such as 12G or 800M")
    return int(float(match[1]) * UNITS[match[2]])


# ---- measuring


def measured_costs(method: Method, *, signature: str, cache: Path | None = None) -> dict[str, list[float]]:
    """Measure the costs of a method: {probe: [a, b]}; a probe on latents of p pixels takes a + b p bytes.

    Weights are not counted. "once" is the memory that stays after the first calls, such as buffers of libraries. Each
    probe runs at two sizes. Results are cached in the folder `cache` under `signature` (model and precision), the
    device and the version of torch.
    """
    device = str(method.device)
    path = cache and cache / f"costs-{_key(signature, device)}.json"
    if path and path.exists():
        with contextlib.suppress(OSError, ValueError):
            return read_object(path)
    before = Peak(device).reset()
    costs = {name: _line(run, device) for name, run in method.probes(method.levers()[0]).items()}
    costs["once"] = [float(max(Peak(device).reset() - before, 0)), 0.0]
    if path:
        with contextlib.suppress(OSError):  # without a cache, costs are measured again next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(costs).encode())
    return costs


def _line(run: Callable[[int], int | None], device: str) -> list[float]:
    """Return [a, b], fitted to the peaks of a probe at both sizes, or to the bytes that it returns."""
    peak, taken = Peak(device), []
    run(PROBE_SIDES[0])  # one-time allocations, such as buffers of libraries, are not a cost of a tile
    for side in PROBE_SIDES:
        before = peak.reset()
        stated = run(side)
        taken.append(max(peak.read() - before, 0) if stated is None else stated)
    slope = max(taken[1] - taken[0], 0) / (PROBE_SIDES[1] ** 2 - PROBE_SIDES[0] ** 2)
    return [max(taken[0] - slope * PROBE_SIDES[0] ** 2, 0.0), slope]


def _key(signature: str, device: str) -> str:
    text = repr(("probes", signature, hardware(device)["name"], torch.__version__))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Return the folder of measured costs: $MGLDVSR_CACHE, or `mgldvsr` in the user's cache folder."""
    given = os.environ.get("MGLDVSR_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(given) / "mgldvsr" if given else Path.home() / ".cache" / "mgldvsr"


# ---- planning


def predicted_peak(method: Method, plan: Plan, costs: Costs, request: Request) -> int | None:
    """Predict the peak in bytes on the method's device, beyond the memory now in use; None if unknown."""
    need = method.peak(request, plan.levers, costs)
    if need is None or method.device.type != "cpu":
        return need
    each, most, itself = ENCODER_BYTES
    frames = request.frames if request.frames is not None else 10**9
    target = math.prod(int(side * request.upscale) for side in request.size)
    return int(need + each * min(frames, plan.part_frames, most) * target + itself)


def with_reserve(need: int, device: str) -> int:
    """Add the reserve for memory that is not predicted to a peak."""
    return need + RESERVE if device == "cpu" else int(need / (1 - FRAGMENTED))


def fitting_plan(
    method: Method, plan: Plan, budget: int, predict: Callable[[Plan], int | None]
) -> tuple[Plan, int | None]:
    """Return the first plan, from `plan` downwards, whose predicted peak fits into `budget` bytes, and that peak.

    Raises ValueError with the peak of the smallest plan if none fits.
    """
    while (need := predict(plan)) is not None and need > budget:
        smaller = plan.next(method)
        if smaller is None:
            needed = f"{need / 1e9:.1f} GB with the smallest tiles"
            raise ValueError(f"got {budget / 1e9:.1f} GB of memory, expected {needed}; lower --upscale or --n_frames")
        plan = smaller
    return plan, need
