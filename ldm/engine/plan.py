"""A memory plan: the best levers of a method that fit, from costs measured on this model and device."""

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
from ldm.files import write_whole
from ldm.methods.contract import Costs, Levers, Method, Request

PROBE = (16, 32)  # sides of the latents on which costs are measured; a cost is a + b * pixels through both
HEAPS = 150 * 10**6  # bytes on the CPU that are not counted, such as the heaps of threads
FRAGMENTED = 0.1  # part of a peak on other devices that an allocator may lose to gaps
CODED = 15, 24, 10**7  # an encoder's bytes per pixel for each frame of a part, for so many frames, and for itself
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Plan:
    """The levers of a method, and the number of frames (or units of work) between two savings of the state."""

    levers: Levers
    part_frames: int

    def plain(self) -> dict:
        """As plain values, for manifests."""
        return {**asdict(self.levers), "part_frames": self.part_frames}

    def next(self, method: Method) -> "Plan | None":
        """The plan that takes less memory, None where there is none."""
        ladder = list(method.levers())
        after = ladder.index(self.levers) + 1 if self.levers in ladder else len(ladder)
        return replace(self, levers=ladder[after]) if after < len(ladder) else None

    def __str__(self) -> str:
        return f"{self.levers}, saved every {self.part_frames} frames"


def resumed_plan(method: Method, begun: Mapping | None, *, part_frames: int) -> Plan | None:
    """The plan that a manifest states; None where it states none of this method."""
    plans = (Plan(levers, part_frames) for levers in method.levers())
    return next((plan for plan in plans if plan.plain() == dict(begun or {})), None)


def parse_bytes(text: str) -> int:
    """ "12G", "800M", "1.5T" or plain bytes -> bytes. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    if not match or not float(match[1]):
        raise ValueError(f"got memory {text!r}, expected a size such as 12G or 800M")
    return int(float(match[1]) * UNITS[match[2]])


# ---- measuring


def measured_costs(method: Method, *, signature: str, cache: Path | None = None) -> dict[str, list[float]]:
    """{probe: [a, b]}: a run on latents of p pixels takes a + b p bytes beside the weights.

    "once" is what remains of the first call of everything, such as buffers of libraries. Measured by running the
    method's probes at two sizes, once for each model, device and precision, which `signature` names; kept in `cache`.
    """
    device = str(method.device)
    path = cache and cache / f"costs-{_key(signature, device)}.json"
    if path and path.exists():
        with contextlib.suppress(OSError, ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
    before = Peak(device).reset()
    costs = {name: _line(run, device) for name, run in method.probes(method.levers()[0]).items()}
    costs["once"] = [float(max(Peak(device).reset() - before, 0)), 0.0]
    if path:
        with contextlib.suppress(OSError):  # without a cache it is measured again
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(costs).encode())
    return costs


def _line(run: Callable[[int], int | None], device: str) -> list[float]:
    """[a, b] through the peaks at both probes, or through what the probe states."""
    peak, taken = Peak(device), []
    run(PROBE[0])  # what is allocated once, such as buffers of libraries, is no cost of a tile
    for side in PROBE:
        before = peak.reset()
        stated = run(side)
        taken.append(max(peak.read() - before, 0) if stated is None else stated)
    slope = max(taken[1] - taken[0], 0) / (PROBE[1] ** 2 - PROBE[0] ** 2)
    return [max(taken[0] - slope * PROBE[0] ** 2, 0.0), slope]


def _key(signature: str, device: str) -> str:
    text = repr(("probes", signature, hardware(device)["name"], torch.__version__))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where measured costs are kept: MGLDVSR_CACHE, else the user's cache."""
    given = os.environ.get("MGLDVSR_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(given) / "mgldvsr" if given else Path.home() / ".cache" / "mgldvsr"


# ---- planning


def predicted_peak(method: Method, plan: Plan, costs: Costs, request: Request) -> int | None:
    """Bytes on the method's device that restoring takes at most beside what is in use now; None: not predicted."""
    need = method.peak(request, plan.levers, costs)
    if need is None or method.device.type != "cpu":
        return need
    each, most, itself = CODED
    frames = request.frames if request.frames is not None else 10**9
    target = math.prod(int(side * request.upscale) for side in request.size)
    return int(need + each * min(frames, plan.part_frames, most) * target + itself)


def with_reserve(need: int, device: str) -> int:
    """A predicted peak with a reserve for what is not counted."""
    return need + HEAPS if device == "cpu" else int(need / (1 - FRAGMENTED))


def fitting_plan(
    method: Method, plan: Plan, budget: int, predict: Callable[[Plan], int | None]
) -> tuple[Plan, int | None]:
    """The first plan from `plan` downwards whose predicted peak fits into `budget` bytes, and that peak.

    Raises ValueError saying how much the smallest would take.
    """
    while (need := predict(plan)) is not None and need > budget:
        smaller = plan.next(method)
        if smaller is None:
            needed = f"{need / 1e9:.1f} GB with the smallest tiles"
            raise ValueError(f"got {budget / 1e9:.1f} GB of memory, expected {needed}; lower --upscale or --n_frames")
        plan = smaller
    return plan, need
