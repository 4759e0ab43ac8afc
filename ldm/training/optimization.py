"""Optimizers and learning rate schedules."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

BUILDABLE = ("Adam",)  # what a configuration may name as a target

SCHEDULES = ("none", "cosine")


class Adam:
    """Builds Adam with decoupled weight decay (Loshchilov and Hutter 2019) for given parameters.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments.
        weight_decay: decoupled weight decay; 0 is plain Adam.
        eps: added to the root of the second moment.
        schedule: "none" for a constant rate; "cosine" for a short warm-up and cosine decay to zero over `steps`.
        steps: optimizer steps of the whole training; only used by "cosine".
    Raises:
        ValueError: an unknown schedule, "cosine" without steps, or `lr` or `eps` not above 0.
    """

    def __init__(
        self,
        *,
        lr: float,
        betas: Sequence[float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        schedule: str = "none",
        steps: int = 0,
    ) -> None:
        if schedule not in SCHEDULES or (schedule == "cosine" and steps < 1):
            raise ValueError(f"got schedule {schedule!r} and {steps} steps, expected none, or cosine with steps")
        if not lr > 0 or not eps > 0:
            raise ValueError(f"got lr {lr} and eps {eps}, expected more than 0")
        self.lr, self.betas, self.weight_decay, self.eps = lr, tuple(betas), weight_decay, eps
        self.schedule, self.steps = schedule, steps

    def __call__(self, parameters: Iterable[nn.Parameter]) -> dict:
        """Build the optimizer of the parameters that require gradients, as `configure_optimizers` returns it."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        if self.schedule == "none":
            return {"optimizer": optimizer}
        rise = max(0.05, 2 / (self.steps + 1))  # OneCycleLR divides by zero for a warm-up of less than one step
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.lr, total_steps=self.steps + 1, pct_start=rise, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def apply_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the saved settings of a restored optimizer by these; its schedule continues, scaled to `lr`."""
        for group in optimizer.param_groups:
            group |= {"betas": self.betas, "weight_decay": self.weight_decay}
            if self.schedule == "none":
                group["lr"] = self.lr
                continue
            change = self.lr / group["max_lr"]
            for name in ("lr", "max_lr", "initial_lr", "min_lr"):  # the values that OneCycleLR reads
                group[name] *= change
