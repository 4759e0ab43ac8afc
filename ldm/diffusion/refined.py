"""DDIM in two halves with a refinement of the clean sample in between (Upscale-A-Video).

The noise of a step comes from the network's prediction, not from the refined sample: x0 changes, eps does not.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ldm.diffusion.denoiser import to_eps, to_x0
from ldm.diffusion.samplers import assert_finite
from ldm.diffusion.schedule import Schedule


def clean_and_noise(
    prediction: Tensor, x: Tensor, schedule: Schedule, i: int, *, kind: str = "v", clip: bool = False
) -> tuple[Tensor, Tensor]:
    """(x0, eps) that a prediction "v", "eps" or "x0" means at x = x_i; `clip` limits x0, not eps, to [-1, 1].

    For v: x0 = sqrt(a) x - sqrt(1-a) v and eps = sqrt(a) v + sqrt(1-a) x, a = abar_i (Salimans and Ho 2022).
    """
    x0 = to_x0(prediction, x, schedule, i, kind)
    if kind == "v":
        abar = schedule.abar[i].item()
        eps = abar**0.5 * prediction + (1 - abar) ** 0.5 * x
    else:
        eps = prediction if kind == "eps" else to_eps(x0, x, schedule, i)
    return (x0.clamp(-1, 1) if clip else x0), eps


def refined_step(x0: Tensor, eps: Tensor, schedule: Schedule, i: int) -> Tensor:
    """x_{i-1} = sqrt(a') x0 + sqrt(1-a') eps, a' = abar_prev_i (DDIM, equation 12, eta 0)."""
    prev = schedule.abar_prev[i].item()
    return prev**0.5 * x0 + (1 - prev) ** 0.5 * eps


def refined_steps(numbers: Collection[int], total: int) -> set[int]:
    """Steps i of a schedule from numbers counted in sampling order (0 is the noisiest), as users give them.

    Raises ValueError for a number outside 0 to total - 1.
    """
    wrong = sorted(number for number in numbers if not 0 <= number < total)
    if wrong:
        raise ValueError(f"got propagation steps {wrong}, expected numbers from 0 to {total - 1}, the noisiest first")
    return {total - 1 - number for number in numbers}


@torch.no_grad()
def sample_refined(
    predict: Callable[[Tensor, int], Tensor],
    x: Tensor,
    schedule: Schedule,
    *,
    kind: str = "v",
    refine: Callable[[Tensor], Tensor] | None = None,
    refine_at: Collection[int] = (),
    on_step: Callable[[int, dict[str, Tensor]], None] | None = None,
) -> Tensor:
    """Deterministic sampling from x at the noisiest step of `schedule` down to the clean sample.

    Args:
        predict: (x, time step) -> prediction of `kind`.
        x: pure noise of the sample's shape.
        schedule: the steps to visit, see `spacing.spaced`.
        refine: of the clean sample, for example `propagation.propagate`.
        refine_at: steps i at which it acts, see `refined_steps`.
        on_step: called after each step with i and "prediction", "x0", "refined" and "x" by name.

    Raises:
        FloatingPointError: naming the step at which the sample is not finite.
    """
    for i in reversed(range(len(schedule))):
        prediction = predict(x, int(schedule.t[i]))
        x0, eps = clean_and_noise(prediction, x, schedule, i, kind=kind)
        refined = refine(x0) if refine is not None and i in refine_at else x0
        x = assert_finite(refined_step(refined, eps, schedule, i), i)
        if on_step is not None:
            on_step(i, {"prediction": prediction, "x0": x0, "refined": refined, "x": x})
    return x
