"""Discrete noise schedules: x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ARITHMETIC = ("float64", "released")
_VARIANCES = ("fixed_small", "fixed_large")
_SMALLEST_VARIANCE = 1e-20  # replaces the variance 0 of the last step in its logarithm


def make_betas(name: str, steps: int, *, start: float = 0.00085, end: float = 0.012, shift: float = 0.008) -> Tensor:
    """Return noise variances (steps,) float64; "linear" is linear in the square root, as in Stable Diffusion.

    "sqrt_linear" is linear in beta, "sqrt" its square root, "cosine" that of Improved DDPM (offset `shift`, at most
    0.999). The names are those of the latent-diffusion code. Raises ValueError for another name or no step.
    """
    if steps < 1:
        raise ValueError(f"got {steps} steps, expected at least 1")
    exact = {"dtype": torch.float64, "device": "cpu"}  # real values even within a meta-device context
    if name == "linear":
        return torch.linspace(start**0.5, end**0.5, steps, **exact) ** 2
    if name == "sqrt_linear":
        return torch.linspace(start, end, steps, **exact)
    if name == "sqrt":
        return torch.linspace(start, end, steps, **exact) ** 0.5
    if name == "cosine":
        angle = (torch.arange(steps + 1, **exact) / steps + shift) / (1 + shift) * (torch.pi / 2)
        signal = torch.cos(angle) ** 2
        return (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)
    raise ValueError(f"got beta schedule {name!r}, expected linear, sqrt_linear, sqrt or cosine")


def space_timesteps(total: int, sections: int | str | Sequence[int]) -> list[int]:
    """Select time steps out of `total`: a number per section, evenly spaced within equal sections.

    `sections` is a count, a list of counts, the same as text ("10,20"), or "ddimN": N steps with the smallest integer
    stride that gives exactly N. From Improved DDPM. Raises ValueError if a section is too short or no stride fits.
    """
    if isinstance(sections, str) and sections.startswith("ddim"):
        wanted = int(sections.removeprefix("ddim"))
        for stride in range(1, total):
            if len(range(0, total, stride)) == wanted:
                return list(range(0, total, stride))
        raise ValueError(f"got {sections}, but no integer stride over {total} time steps keeps exactly {wanted}")
    if isinstance(sections, str):
        sections = [int(count) for count in sections.split(",")]
    counts = [sections] if isinstance(sections, int) else list(sections)
    base, longer = divmod(total, len(counts))
    kept, first = [], 0
    for number, count in enumerate(counts):
        size = base + (number < longer)
        if not 1 <= count <= size:
            raise ValueError(f"got {count} steps for a section of {size} time steps, expected 1 to {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(first + round(position))  # rounds half to even; accumulated, to reproduce the released lists
            position += stride
        first += size
    return kept


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule over steps i; i = 0 is the least noisy. Arrays are (S,) float64 on the CPU; `t` is int64.

    `abar` is the signal power (product of 1 - betas), `abar_prev` that of step i-1 (1 at i = 0); `variance`,
    `log_variance` (clipped), `coef1`, `coef2` belong to the posterior (DDPM, equations 6-7); `t` is the time step given
    to the network. Methods accept i as an int or as an index tensor with the leading shape of x, such as (B, T).
    """

    betas: Tensor
    abar: Tensor
    abar_prev: Tensor
    variance: Tensor
    log_variance: Tensor
    coef1: Tensor
    coef2: Tensor
    t: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor, *, t: Tensor | None = None, arithmetic: str = "float64") -> "Schedule":
        """Compute all arrays from betas (S,); `arithmetic="released"` has the mixed precision of the released code.

        There, betas, their complements and the product are float32, abar_prev and the arrays derived from it float64,
        and the results are stored as float32. Raises ValueError for an unknown arithmetic or betas outside (0, 1].
        """
        if arithmetic not in _ARITHMETIC:
            raise ValueError(f"got arithmetic {arithmetic!r}, expected one of {_ARITHMETIC}")
        single = arithmetic == "released"
        beta = betas.double().cpu().numpy().astype(np.float32 if single else np.float64)
        if beta.ndim != 1 or not len(beta) or not ((beta > 0) & (beta <= 1)).all():
            raise ValueError(f"got betas of shape {tuple(betas.shape)}, expected one row of values in (0, 1]")
        abar = np.cumprod(1 - beta)
        prev = np.append(1.0, abar[:-1])  # float64 in either arithmetic
        variance = beta * (1 - prev) / (1 - abar)
        arrays = {
            "betas": beta,
            "abar": abar,
            "abar_prev": prev,
            "variance": variance,
            "log_variance": np.log(np.maximum(variance, _SMALLEST_VARIANCE)),
            "coef1": beta * np.sqrt(prev) / (1 - abar),
            "coef2": (1 - prev) * np.sqrt(1 - beta) / (1 - abar),
        }
        if single:
            arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        tensors = {name: torch.from_numpy(array.astype(np.float64)) for name, array in arrays.items()}
        steps = torch.arange(len(beta), device="cpu") if t is None else t.long().cpu()
        return cls(**tensors, t=steps)

    @classmethod
    def from_signal(cls, abar: Tensor, abar_prev: Tensor, *, t: Tensor, variance: str = "fixed_small") -> "Schedule":
        """Create a schedule from signal powers (S,) before and after each step, which need not be consecutive.

        `variance` of the added noise: "fixed_small", that of the posterior, at least 1e-20, or "fixed_large", beta
        (the names of diffusers). Raises ValueError for an unknown word, or powers that do not decrease.
        """
        if variance not in _VARIANCES:
            raise ValueError(f"got variance {variance!r}, expected one of {', '.join(_VARIANCES)}")
        abar, prev = abar.double().cpu(), abar_prev.double().cpu()
        if not ((abar > 0) & (abar < prev) & (prev <= 1)).all():
            raise ValueError("got signal powers that do not fall from step to step, expected 0 < abar < abar_prev <= 1")
        betas = 1 - abar / prev
        posterior = ((1 - prev) / (1 - abar) * betas).clamp_min(_SMALLEST_VARIANCE)
        return cls(
            betas=betas,
            abar=abar,
            abar_prev=prev,
            variance=posterior if variance == "fixed_small" else betas,
            log_variance=posterior.log(),
            coef1=betas * prev.sqrt() / (1 - abar),
            coef2=(1 - prev) * (1 - betas).sqrt() / (1 - abar),
            t=t.long().cpu(),
        )

    @classmethod
    def linear_sd(cls, steps: int = 1000, *, start: float = 0.00085, end: float = 0.012) -> "Schedule":
        """Return the training schedule of Stable Diffusion."""
        return cls.from_betas(make_betas("linear", steps, start=start, end=end))

    def __len__(self) -> int:
        return len(self.t)

    def respaced(self, steps: int | str | Sequence[int], *, arithmetic: str = "float64") -> "Schedule":
        """Return a schedule with some of the steps (see `space_timesteps`); `t` keeps the original time steps.

        A single step is the noisiest one, where sampling starts (the released code fails there, and its rule would
        choose the least noisy). `arithmetic="released"` computes the ratios of abar in float32, with errors of betas up
        to 1e-7, as in the released sampling and, with steps=1000, training.
        """
        if arithmetic not in _ARITHMETIC:
            raise ValueError(f"got arithmetic {arithmetic!r}, expected one of {_ARITHMETIC}")
        keep = space_timesteps(len(self), steps)
        if len(keep) == 1:
            keep = [len(self) - 1]
        kind = np.float32 if arithmetic == "released" else np.float64
        abar = self.abar[keep].numpy().astype(kind)
        betas = 1 - abar / np.append(kind(1), abar[:-1])
        return Schedule.from_betas(torch.from_numpy(betas), t=self.t[keep], arithmetic=arithmetic)

    def at(self, values: Tensor, i: int | Tensor, x: Tensor) -> float | Tensor:
        """Return values[i] as a number for an int, or as a tensor that broadcasts against the leading axes of `x`."""
        if isinstance(i, int):
            return values[i].item()
        if tuple(i.shape) != tuple(x.shape[: i.ndim]):
            raise ValueError(f"got steps of shape {tuple(i.shape)}, expected the leading shape of {tuple(x.shape)}")
        return values[i.cpu()].to(x).reshape(*i.shape, *[1] * (x.ndim - i.ndim))

    def add_noise(self, x0: Tensor, noise: Tensor, i: int | Tensor) -> Tensor:
        """Return x_i = sqrt(abar_i) x_0 + sqrt(1 - abar_i) noise (DDPM, equation 4)."""
        return self.at(self.abar.sqrt(), i, x0) * x0 + self.at((1 - self.abar).sqrt(), i, x0) * noise

    def velocity(self, x0: Tensor, noise: Tensor, i: int | Tensor) -> Tensor:
        """Return v_i = sqrt(abar_i) noise - sqrt(1 - abar_i) x_0 (progressive distillation)."""
        return self.at(self.abar.sqrt(), i, x0) * noise - self.at((1 - self.abar).sqrt(), i, x0) * x0

    def posterior(self, x0: Tensor, x: Tensor, i: int | Tensor) -> tuple[Tensor, float | Tensor, float | Tensor]:
        """Return mean, variance and clipped log-variance of q(x_{i-1} | x_i, x_0) (DDPM, equations 6-7)."""
        mean = self.at(self.coef1, i, x) * x0 + self.at(self.coef2, i, x) * x
        return mean, self.at(self.variance, i, x), self.at(self.log_variance, i, x)

    def lvlb_weights(self, kind: str = "eps") -> Tensor:
        """Return weights (S,) float32 of the variational bound for a network that predicts eps, x0 or v.

        Computed from float32 arrays, as in training. Entry 0 is infinite and is replaced by entry 1 (0 for one step).
        """
        if kind == "v":
            return torch.ones(len(self))
        beta, variance, abar = self.betas.float(), self.variance.float(), self.abar.float()
        if kind == "eps":
            weights = beta**2 / (2 * variance * (1 - self.betas).float() * (1 - abar))
        elif kind == "x0":
            weights = 0.5 * abar.sqrt() / (2 - abar)
        else:
            raise ValueError(f"got prediction {kind!r}, expected eps, x0 or v")
        weights[0] = weights[1] if len(self) > 1 else 0.0
        return weights


def upscaler_schedule() -> Schedule:
    """The schedule of the SD x4 upscaler, for latents and for low-resolution frames: 1000 steps, 1e-4 to 2e-2."""
    return Schedule.from_betas(make_betas("linear", 1000, start=1e-4, end=2e-2))
