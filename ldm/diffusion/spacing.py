"""Which time steps a sampler visits, and the schedule over them. "released" is diffusers' "leading" spacing."""

from collections.abc import Sequence
from dataclasses import replace

from ldm.diffusion.schedule import Schedule

_SPACINGS = ("released", "from_end", "auto")
_NOISY = 0.92  # part of all time steps that a start must have behind it to pass for pure noise


def released_timesteps(count: int, total: int = 1000, *, offset: int = 1) -> list[int]:
    """Time steps k * floor(total / count) + offset, cleanest first, as Upscale-A-Video takes them.

    The fewer there are the earlier they start: 958 of 1000 for 30, 751 for 4, 1 for 1.

    Raises ValueError for a count that leads beyond the last time step.
    """
    _check_count(count, total)
    steps = [k * (total // count) + offset for k in range(count)]
    if steps[-1] >= total:
        raise ValueError(f"got {count} steps, which lead to time step {steps[-1]} of 0 to {total - 1}; take fewer")
    return steps


def timesteps_from_end(count: int, total: int = 1000) -> list[int]:
    """Evenly spaced time steps of which the last is the noisiest, cleanest first: 249, 499, 749, 999 for 4.

    "Trailing" spacing (Lin et al. 2024, table 2). Raises ValueError for a count outside 1 to `total`.
    """
    _check_count(count, total)
    return sorted(round(total - k * total / count) - 1 for k in range(count))


def choose_timesteps(count: int, total: int = 1000, *, spacing: str = "auto", offset: int = 1) -> list[int]:
    """Time steps by name, cleanest first.

    "auto" takes the released spacing where it starts in the noisiest 8 %, which it does for most counts from 15 on, and
    otherwise the spacing from the end: sampling starts from pure noise, which the network must expect. Raises
    ValueError for an unknown name and for a count that makes no sense.
    """
    if spacing not in _SPACINGS:
        raise ValueError(f"got spacing {spacing!r}, expected one of {_SPACINGS}")
    if spacing == "released":
        return released_timesteps(count, total, offset=offset)
    _check_count(count, total)
    start = (count - 1) * (total // count) + offset
    if spacing == "auto" and _NOISY * total < start < total:
        return released_timesteps(count, total, offset=offset)
    return timesteps_from_end(count, total)


def _check_count(count: int, total: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= total:
        raise ValueError(f"got {count!r} sampling steps, expected a whole number from 1 to {total}")


def spaced(schedule: Schedule, timesteps: Sequence[int], *, final_abar: float | None = None) -> Schedule:
    """`schedule` at some of its steps, cleanest first; behind the last one lies `final_abar`.

    `final_abar` None is that of time step 0, as where `set_alpha_to_one` is false; 1.0 is a clean sample. It is
    `abar_prev` of the first entry; the posterior's arrays are as if it were 1.

    Raises ValueError unless the time steps rise within the schedule.
    """
    steps = list(timesteps)
    if not steps or sorted(set(steps)) != steps or steps[0] < 0 or steps[-1] >= len(schedule):
        raise ValueError(f"got time steps {steps}, expected rising numbers from 0 to {len(schedule) - 1}")
    abar = schedule.abar[steps]
    before = abar.roll(1)
    before[0] = 1.0
    kept = Schedule.from_betas(1 - abar / before, t=schedule.t[steps])
    last = before.clone()
    last[0] = schedule.abar[0].item() if final_abar is None else final_abar
    return replace(kept, abar=abar, abar_prev=last)
