"""Samplers that use the clean samples of earlier steps, for the probability-flow ODE: DPM-Solver++(2M) and UniPC.

With lambda = log(sqrt(abar) / sqrt(1 - abar)), a step of size h from lambda_s to lambda_t is exactly

    x_t = (sigma_t / sigma_s) x_s + alpha_t h * integral over u from 0 to 1 of exp(h (u - 1)) x0(lambda_s + u h)

(Lu et al. 2022, DPM-Solver++, proposition 4.1). A solver replaces x0(lambda) by a polynomial through known values.

A sampler maps values "x" (x_i), "x0" (the prediction at x_i) and what it returned for the step before to "x" (x_{i-1})
and the values that the next step needs, all of the same shape. Nothing random is drawn. A step to a clean sample
(abar_prev = 1) returns x0.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from ldm.diffusion.schedule import Schedule

HISTORY = ("x0_before", "x0_earlier")  # clean samples of the step before, and of the step before that


def dpmpp_2m(values: Mapping[str, Tensor], i: int, schedule: Schedule) -> dict[str, Tensor]:
    """DPM-Solver++(2M): x0 is linear through the last two values (Lu et al. 2022, algorithm 2); the first step is DDIM.

    Of second order in the step size.
    """
    x = _predicted(values["x"], values["x0"], values.get("x0_before"), i, schedule)
    return {"x": x} if i == 0 else {"x": x, "x0_before": values["x0"]}


def unipc(values: Mapping[str, Tensor], i: int, schedule: Schedule) -> dict[str, Tensor]:
    """UniPC of order 2 with B(h) = exp(h) - 1 (Zhao et al. 2023): the prediction of `dpmpp_2m` and a correction.

    x_i is corrected as soon as x0 is known there: by the difference between the integrals of a parabola through three
    values and of the line that predicted x_i (after the first step: of a mean of two values and of a constant). Being
    a difference, it keeps what was added to x_i meanwhile, such as guidance. Of third order in the step size.
    """
    x, x0, before = values["x"], values["x0"], values.get("x0_before")
    if before is not None:
        x = x + _correction(x0, before, values.get("x0_earlier"), i, schedule)
    history = {"x0_before": x0} if before is None else {"x0_before": x0, "x0_earlier": before}
    return {"x": _predicted(x, x0, before, i, schedule)} | ({} if i == 0 else history)


def _predicted(x: Tensor, x0: Tensor, before: Tensor | None, i: int, schedule: Schedule) -> Tensor:
    """Return x_{i-1} from x_i, with x0 constant, or linear through the value of the step before."""
    abar, prev = schedule.abar[i].item(), schedule.abar_prev[i].item()
    if prev == 1:
        return x0
    h = log_snr(prev) - log_snr(abar)
    if before is not None:
        x0 = x0 + (x0 - before) * (h / (2 * _size_before(i, schedule)))
    return ((1 - prev) / (1 - abar)) ** 0.5 * x - prev**0.5 * math.expm1(-h) * x0


def _correction(x0: Tensor, before: Tensor, earlier: Tensor | None, i: int, schedule: Schedule) -> Tensor:
    """Return the change of x_i that x0 there implies, with the values of the steps i+1 and i+2."""
    h, alpha = _size_before(i, schedule), schedule.abar[i].item() ** 0.5
    constant = -math.expm1(-h)  # integrals of h exp(h (u - 1)) u^k, k = 0, 1, 2
    if earlier is None:
        return alpha * constant / 2 * (x0 - before)
    linear = 1 - constant / h
    square = 1 - 2 / h * linear
    r = _size_before(i + 1, schedule) / h
    slope = (before - earlier) / r  # of the line that predicted x_i, over u
    curvature = (x0 - before - slope) / (1 + r)
    return alpha * (linear * (x0 - before - curvature) + square * curvature - constant / 2 * slope)


def _size_before(i: int, schedule: Schedule) -> float:
    """Return the change of lambda from step i+1 to step i."""
    return log_snr(schedule.abar[i].item()) - log_snr(schedule.abar[i + 1].item())


def log_snr(abar: float) -> float:
    """Return half the logarithm of the signal-to-noise ratio, lambda."""
    return 0.5 * math.log(abar / (1 - abar))
