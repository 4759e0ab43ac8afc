"""Conversion between the prediction of a network (eps, v or x0) and the clean sample x0, which samplers use."""

from torch import Tensor

from ldm.diffusion.schedule import Schedule

_KINDS = ("eps", "v", "x0")


def _check_kind(kind: str) -> None:
    """Raise ValueError for an unknown kind of prediction."""
    if kind not in _KINDS:
        raise ValueError(f"got prediction {kind!r}, expected one of {_KINDS}")


def to_x0(prediction: Tensor, x: Tensor, schedule: Schedule, i: int | Tensor, kind: str = "eps") -> Tensor:
    """Return the clean sample for a prediction at x = x_i; not clipped, as released.

    `kind` is "eps" (DDPM, equation 15), "v" (progressive distillation) or "x0"; ValueError for another.
    """
    _check_kind(kind)
    if kind == "x0":
        return prediction
    if kind == "v":
        signal, noise = schedule.abar.sqrt(), (1 - schedule.abar).sqrt()
        return schedule.at(signal, i, x) * x - schedule.at(noise, i, x) * prediction
    scale, less = (1 / schedule.abar).sqrt(), (1 / schedule.abar - 1).sqrt()
    return schedule.at(scale, i, x) * x - schedule.at(less, i, x) * prediction


def to_eps(x0: Tensor, x: Tensor, schedule: Schedule, i: int | Tensor) -> Tensor:
    """Return the noise that leads from x0 to x = x_i."""
    signal, noise = schedule.abar.sqrt(), (1 - schedule.abar).sqrt()
    return (x - schedule.at(signal, i, x) * x0) / schedule.at(noise, i, x)


def target(kind: str, x0: Tensor, noise: Tensor, schedule: Schedule, i: int | Tensor) -> Tensor:
    """Return the training target of a network that predicts `kind`."""
    _check_kind(kind)
    if kind == "eps":
        return noise
    return x0 if kind == "x0" else schedule.velocity(x0, noise, i)
