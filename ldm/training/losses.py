"""Losses on images and clips, all in float32. Pixels in [-1, 1], shapes (..., 3, H, W)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUILDABLE = ("GradientDistance",)  # what a configuration may name as a target


def gradient_distances(a: Tensor, b: Tensor, *, scales: int = 3) -> Tensor:
    """Mean L1 between horizontal and vertical differences at `scales` octaves: (n, 3, h, w) -> (n,), one an image."""
    a, b = a.float(), b.float()
    total = a.new_zeros(len(a))
    for octave in range(scales):
        if octave:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        d = a - b
        total = total + (d[..., 1:] - d[..., :-1]).abs().mean(dim=(1, 2, 3))
        total = total + (d[..., 1:, :] - d[..., :-1, :]).abs().mean(dim=(1, 2, 3))
    return total / scales


def gradient_l1(a: Tensor, b: Tensor, *, scales: int = 3) -> Tensor:
    """The mean of `gradient_distances` over all images of (..., 3, H, W)."""
    return gradient_distances(a.flatten(0, -4), b.flatten(0, -4), scales=scales).mean()


class GradientDistance(nn.Module):
    """Stands in for a perceptual network where there are no weights of one: compares edges at several octaves."""

    def __init__(self, *, scales: int = 3) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a, b (n, 3, h, w) in [-1, 1] -> distances (n, 1, 1, 1) in float32, as LPIPS gives them."""
        return gradient_distances(a, b, scales=self.scales).view(-1, 1, 1, 1)


def frame_changes(clip: Tensor) -> Tensor:
    """x_i - x_{i+1}: (B, T, ...) -> (B, T-1, ...)."""
    return clip[:, :-1] - clip[:, 1:]


def frame_difference_l1(a: Tensor, b: Tensor) -> Tensor:
    """mean |(a_i - a_{i+1}) - (b_i - b_{i+1})| over (B, T, 3, H, W); 0 for a single frame (MGLD-VSR's L_diff)."""
    if a.shape[1] < 2:
        return 0 * a.float().sum()
    return (frame_changes(a.float()) - frame_changes(b.float())).abs().mean()


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), mean over all elements."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 * (mean relu(1 - D(real)) + mean relu(1 + D(fake)))."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adversarial(fake: Tensor) -> Tensor:
    """-mean D(fake), the generator's side of the hinge loss."""
    return -fake.float().mean()


def check_gradients(module: nn.Module, step: int) -> None:
    """FloatingPointError naming the step and a parameter of `module` whose gradient is NaN or infinite."""
    slopes = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    if not slopes or torch.stack([slope.isfinite().all() for slope in slopes.values()]).all():
        return
    name = next(name for name, slope in slopes.items() if not slope.isfinite().all())
    raise FloatingPointError(f"got a gradient of {name} at step {step} that is no number, expected one; lower lr")


def check_finite(loss: Tensor, name: str, step: int) -> Tensor:
    """`loss` itself; FloatingPointError naming the term and the step if it is NaN or infinite."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"got a {name} loss of {loss.item()} at step {step}, expected a number; lower lr")
    return loss
