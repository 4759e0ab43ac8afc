"""What diffusers' scheduler_config.json says: how a network was trained, and the time steps it is sampled at.

The DDPM of diffusers 0.21 (DDPMScheduler); a DDIM file describes the same training and is read likewise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.schedule import Schedule, make_betas

BUILDABLE = ("scheduler_of",)  # by configurations
CLASSES = ("DDPMScheduler", "DDIMScheduler")
BETAS = {"linear": "sqrt_linear", "scaled_linear": "linear", "squaredcos_cap_v2": "cosine"}  # theirs: ours
KINDS = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}
VARIANCES = {"fixed_small": "fixed_small", "fixed_small_log": "fixed_small", "fixed_large": "fixed_large"}
SPACINGS = ("leading", "trailing", "linspace")
ABSENT = {"thresholding": False, "rescale_betas_zero_snr": False}  # what we do not have
DEFAULTS = {  # of DDPMScheduler, for keys that a file leaves out
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
}


def chosen_word(settings: Mapping[str, Any], key: str, known: Mapping[str, str] | Sequence[str]) -> str:
    """The value of a key, one of the known ones. Raises ValueError."""
    value = settings[key]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"scheduler: got {key}={value!r}, expected one of {', '.join(known)}")
    return known[value] if isinstance(known, Mapping) else value


def bounded_number(settings: Mapping[str, Any], key: str, *, low: float, high: float) -> float:
    """The value of a key, a number from low to high. Raises ValueError."""
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"scheduler: got {key}={value!r}, expected a number from {low:g} to {high:g}")
    return value


def training_betas(settings: Mapping[str, Any]) -> Tensor:
    """The betas of all time steps (S,) float64. Raises ValueError."""
    given = settings["trained_betas"]
    if given is not None:
        values = np.asarray(given if isinstance(given, list | tuple) else [], dtype=object)
        if not len(values) or not all(type(value) in (int, float) for value in values):
            raise ValueError("scheduler: got trained_betas that are no list of numbers, expected one per time step")
        return torch.tensor(values.astype(np.float64))
    steps = int(bounded_number(settings, "num_train_timesteps", low=1, high=2**20))
    name = chosen_word(settings, "beta_schedule", BETAS)
    start, end = (bounded_number(settings, key, low=1e-8, high=1) for key in ("beta_start", "beta_end"))
    return make_betas(name, steps, start=start, end=end)


@dataclass(frozen=True, eq=False)
class Scheduler:
    """How a network was trained and is sampled.

    Args:
        training: the schedule of all time steps.
        kind: what the network predicts: "v", "eps" or "x0".
        variance: of the noise added in sampling: "fixed_small" or "fixed_large", see `Schedule.from_signal`.
        spacing: which time steps a number of steps means: "leading", "trailing" or "linspace".
        offset: added to "leading" time steps.
        clip: bound of the clean sample, in latent space; None for none.
    """

    training: Schedule
    kind: str = "v"
    variance: str = "fixed_small"
    spacing: str = "leading"
    offset: int = 0
    clip: float | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Scheduler":
        """From the content of scheduler_config.json. Raises ValueError naming a value that we do not have."""
        name = config.get("_class_name", CLASSES[0])
        if name not in CLASSES:
            raise ValueError(f"scheduler: got {name}, expected {' or '.join(CLASSES)}")
        for key, value in ABSENT.items():
            if config.get(key, value) != value:
                raise ValueError(f"scheduler: got {key}={config[key]!r}, expected {value}")
        settings = DEFAULTS | dict(config)
        training = Schedule.from_betas(training_betas(settings))
        clip = bounded_number(settings, "clip_sample_range", low=1e-6, high=1e6) if settings["clip_sample"] else None
        return cls(
            training=training,
            kind=chosen_word(settings, "prediction_type", KINDS),
            variance=chosen_word(settings, "variance_type", VARIANCES),
            spacing=chosen_word(settings, "timestep_spacing", SPACINGS),
            offset=int(bounded_number(settings, "steps_offset", low=0, high=len(training))),
            clip=clip,
        )

    def timesteps(self, steps: int | Sequence[int]) -> list[int]:
        """Time steps from the noisiest on: `steps` of them by the spacing, or the list itself.

        Raises ValueError for too many steps, or a list that does not fall or leaves the training's range.
        """
        total = len(self.training)
        if not isinstance(steps, int):
            listed = [int(t) for t in steps]
        elif 1 <= steps <= total:
            listed = self._spaced(steps)
        else:
            raise ValueError(f"got {steps} sampling steps, expected 1 to {total}")
        if not listed or any(a <= b for a, b in pairwise(listed)):
            raise ValueError(f"got time steps {listed[:8]}, expected a falling list")
        if listed[0] >= total or listed[-1] < 0:
            raise ValueError(f"got time steps {listed[0]} to {listed[-1]}, expected {total - 1} to 0; take fewer steps")
        return listed

    def _spaced(self, steps: int) -> list[int]:
        """The released lists, with numpy's rounding."""
        total = len(self.training)
        if self.spacing == "linspace":
            return np.linspace(0, total - 1, steps).round()[::-1].astype(int).tolist()
        if self.spacing == "leading":
            return [k * (total // steps) + self.offset for k in reversed(range(steps))]
        return (np.round(np.arange(total, 0, -total / steps)) - 1).astype(int).tolist()

    def previous(self, steps: int | Sequence[int]) -> list[int]:
        """Where each of `timesteps` leads; below 0: the clean sample.

        The time step minus (training steps // steps), as diffusers 0.21 has it: for "trailing" and "linspace" this may
        miss the next of the list by one. In a given list it is the next entry.
        """
        times = self.timesteps(steps)
        if isinstance(steps, int):
            return [t - len(self.training) // steps for t in times]
        return [*times[1:], -1]

    def sampling(self, steps: int | Sequence[int]) -> Schedule:
        """The schedule of these steps; as in every `Schedule`, i = 0 is the cleanest, `timesteps` read backwards."""
        times = torch.tensor(self.timesteps(steps)[::-1])
        before = torch.tensor(self.previous(steps)[::-1])
        abar = self.training.abar
        prev = torch.where(before >= 0, abar[before.clamp_min(0)], 1.0)
        return Schedule.from_signal(abar[times], prev, t=times, variance=self.variance)

    def to_x0(self, prediction: Tensor, x: Tensor, schedule: Schedule, i: int | Tensor) -> Tensor:
        """The clean sample that a prediction means at x = x_i, clipped where the file says so."""
        x0 = to_x0(prediction, x, schedule, i, self.kind)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)


def scheduler_of(config: Mapping[str, Any]) -> Scheduler:
    """`Scheduler.from_config`, for configurations."""
    return Scheduler.from_config(config)
