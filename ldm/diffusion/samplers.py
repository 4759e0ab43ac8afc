"""Samplers are functions of `denoise(x, i) -> x0`. They know no network, no condition, no tile.

`ddpm_step` and `ddim_step` are one step, for samplers that do not hold the whole clip at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.denoiser import to_eps
from ldm.diffusion.schedule import Schedule

_Step = Callable[[Tensor, int], Tensor]  # (x or x0, i) -> the same shape


def _unchanged(x: Tensor, i: int) -> Tensor:
    """The hook that does nothing."""
    return x


def _silent(done: int, total: int) -> None:
    """The progress report that says nothing."""


def assert_finite(x: Tensor, i: int) -> Tensor:
    """x, or FloatingPointError naming the step at which it stopped being numbers."""
    if not torch.isfinite(x).all():
        raise FloatingPointError(f"the sample is not finite after step {i}; use float32, or weaken the guidance")
    return x


def ddpm_step(x0: Tensor, x: Tensor, i: int, schedule: Schedule, *, noise: Callable[[int], Tensor]) -> Tensor:
    """x_{i-1} drawn from the posterior q(x_{i-1} | x_i, x_0) (DDPM, equations 6-7)."""
    mean, variance, _ = schedule.posterior(x0, x, i)
    return mean + variance**0.5 * noise(i).to(x)


def ddim_step(
    x0: Tensor, x: Tensor, i: int, schedule: Schedule, *, noise: Callable[[int], Tensor], eta: float = 0.0
) -> Tensor:
    """x_{i-1} by the implicit rule (DDIM, equations 12 and 16); `noise` is not called where eta = 0."""
    prev, variance = schedule.abar_prev[i].item(), eta**2 * schedule.variance[i].item()
    x = prev**0.5 * x0 + max(1 - prev - variance, 0.0) ** 0.5 * to_eps(x0, x, schedule, i)
    return x + variance**0.5 * noise(i).to(x) if eta > 0 else x


@torch.no_grad()
def sample_ddpm(
    denoise: _Step,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Callable[[int], Tensor],
    refine_x0: _Step = _unchanged,
    guide: _Step = _unchanged,
    on_step: Callable[[int, int], None] = _silent,
) -> Tensor:
    """Ancestral sampling from x at the noisiest step of `schedule` down to x_0 (DDPM, algorithm 2).

    `noise(i)` gives a tensor like x. It is asked for at i = 0 too, where the variance is 0, so that a sequential stream
    is used up as in the release. `guide(x, i)` acts after the noise, at i = 0 too. FloatingPointError names a bad step.
    """
    total = len(schedule)
    for i in reversed(range(total)):
        x0 = refine_x0(denoise(x, i), i)
        x = assert_finite(guide(ddpm_step(x0, x, i, schedule, noise=noise), i), i)
        on_step(total - i, total)
    return x


@torch.no_grad()
def sample_ddim(
    denoise: _Step,
    x: Tensor,
    schedule: Schedule,
    *,
    noise: Callable[[int], Tensor],
    eta: float = 0.0,
    refine_x0: _Step = _unchanged,
    guide: _Step = _unchanged,
    on_step: Callable[[int, int], None] = _silent,
) -> Tensor:
    """Implicit sampling (DDIM, equations 12 and 16): deterministic for eta = 0, ancestral for eta = 1.

    Hooks as in `sample_ddpm`; `noise` is not called where eta = 0. Raises ValueError for eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta {eta}, expected 0 to 1")
    total = len(schedule)
    for i in reversed(range(total)):
        x0 = refine_x0(denoise(x, i), i)
        x = assert_finite(guide(ddim_step(x0, x, i, schedule, noise=noise, eta=eta), i), i)
        on_step(total - i, total)
    return x
