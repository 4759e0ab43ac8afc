"""One step of a sampler: x_{i-1} from x_i and the clean sample x0, independent of networks, conditions and tiles.

The loop over steps is a sequence of stages (`ldm.streaming.steps`), for clips of any length.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.denoiser import to_eps
from ldm.diffusion.schedule import Schedule


def assert_finite(x: Tensor, i: int) -> Tensor:
    """Return x. Raises FloatingPointError with the step if it has NaN or infinite values."""
    if not torch.isfinite(x).all():
        raise FloatingPointError(f"the sample is not finite after step {i}; use float32, or weaken the guidance")
    return x


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
