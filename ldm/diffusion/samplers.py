"""One step of a sampler: x_{i-1} from x_i and the clean sample x0, independent of networks, conditions and tiles.

The loop over steps is a sequence of stages (`ldm.streaming.steps`), for clips of any length. Samplers that use the
clean samples of earlier steps are in `ldm.diffusion.multistep`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.denoiser import to_eps
from ldm.diffusion.schedule import Schedule
from ldm.ops.finite import checked_finite


def assert_finite(x: Tensor, i: int) -> Tensor:
    """Return x. Raises FloatingPointError with the step if it has NaN or infinite values."""
    return checked_finite(x, lambda: f"the sample is not finite after step {i}; use float32, or weaken the guidance")


def ddpm_step(x0: Tensor, x: Tensor, i: int, schedule: Schedule, *, noise: Callable[[int], Tensor]) -> Tensor:
    """Draw x_{i-1} from the posterior q(x_{i-1} | x_i, x_0) (DDPM, equations 6-7)."""
    mean, variance, _ = schedule.posterior(x0, x, i)
    return mean + variance**0.5 * noise(i).to(x)


def ddim_step(
    x0: Tensor, x: Tensor, i: int, schedule: Schedule, *, noise: Callable[[int], Tensor], eta: float = 0.0
) -> Tensor:
    """Return x_{i-1} by the update of DDIM (equations 12 and 16); `noise` is not called for eta = 0."""
    prev, variance = schedule.abar_prev[i].item(), eta**2 * schedule.variance[i].item()
    x = prev**0.5 * x0 + max(1 - prev - variance, 0.0) ** 0.5 * to_eps(x0, x, schedule, i)
    return x + variance**0.5 * noise(i).to(x) if eta > 0 else x


def lcm_step(x0: Tensor, x: Tensor, i: int, schedule: Schedule, *, noise: Callable[[int], Tensor]) -> Tensor:
    """Return x_{i-1} = sqrt(abar_{i-1}) x0 + sqrt(1 - abar_{i-1}) noise; the last step returns x0 and draws nothing.

    Multistep consistency sampling of latent consistency models (Luo et al. 2023, algorithm 3). Their boundary
    condition, which mixes x into x0, is left out: its weight is below 1e-5 from time step 16 on.
    """
    prev = schedule.abar_prev[i].item()
    return x0 if prev == 1 else prev**0.5 * x0 + (1 - prev) ** 0.5 * noise(i).to(x)


def tcd_step(
    x0: Tensor, x: Tensor, i: int, schedule: Schedule, *, between: Tensor, noise: Callable[[int], Tensor]
) -> Tensor:
    """Return x_{i-1} by strategic stochastic sampling (TCD, Zheng et al. 2024, algorithm 4).

    x0 and the noise that leads from it to x give the sample at a cleaner time step, of signal power `between[i]`; fresh
    noise then leads up to step i-1. Draws nothing if `between[i]` is `abar_prev[i]`, which is DDIM. `between` (S,) is
    that of `intermediate_signal`; the last step returns x0, where the released code stops at time step 0.
    """
    middle, prev = between[i].item(), schedule.abar_prev[i].item()
    if prev == 1:
        return x0
    down = middle**0.5 * x0 + (1 - middle) ** 0.5 * to_eps(x0, x, schedule, i)
    if middle == prev:
        return down
    ratio = prev / middle
    return ratio**0.5 * down + (1 - ratio) ** 0.5 * noise(i).to(x)


def intermediate_signal(schedule: Schedule, full: Schedule, gamma: float) -> Tensor:
    """Return the signal powers (S,) float64 of the intermediate time steps of TCD: floor((1 - gamma) t_{i-1}).

    `full` is the training schedule; gamma, from 0 to 1, is the stochasticity. The entry of step 0 is 1. Raises
    ValueError for another gamma.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"got gamma {gamma}, expected 0 to 1")
    times = [int((1 - gamma) * t) for t in schedule.t.tolist()[:-1]]
    return torch.cat([torch.ones(1, dtype=torch.float64), full.abar[times]])
