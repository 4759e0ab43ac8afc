"""Losses on images and clips, all in float32. Pixels in [-1, 1], shapes (..., 3, H, W)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BUILDABLE = ("GradientDistance",)  # what a configuration may name as a target


def gradient_distances(a: Tensor, b: Tensor, *, scales: int = 3) -> Tensor:
    """Mean L1 between horizontal and vertical differences at `scales` octaves: (n, 3, h, w) -> (n,), one per image."""
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
    """Mean of `gradient_distances` over all images of (..., 3, H, W)."""
    return gradient_distances(a.flatten(0, -4), b.flatten(0, -4), scales=scales).mean()


class GradientDistance(nn.Module):
    """Image distance without weights, in place of a perceptual network: compares gradients at several octaves."""

    def __init__(self, *, scales: int = 3) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a, b (n, 3, h, w) in [-1, 1] -> distances (n, 1, 1, 1) in float32, like LPIPS."""
        return gradient_distances(a, b, scales=self.scales).view(-1, 1, 1, 1)


def frame_changes(clip: Tensor) -> Tensor:
    """Differences of neighbouring frames, x_i - x_{i+1}: (B, T, ...) -> (B, T-1, ...)."""
    return clip[:, :-1] - clip[:, 1:]


def frame_difference_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 of frame differences, mean |(a_i - a_{i+1}) - (b_i - b_{i+1})| (MGLD-VSR's L_diff); 0 for a single frame.

    Clips are (B, T, 3, H, W).
    """
    if a.shape[1] < 2:
        return 0 * a.float().sum()
    return (frame_changes(a.float()) - frame_changes(b.float())).abs().mean()


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(logvar)) from N(0, 1), averaged over all elements."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, 0.5 * (mean relu(1 - D(real)) + mean relu(1 + D(fake)))."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adversarial(fake: Tensor) -> Tensor:
    """Adversarial loss of the generator, -mean D(fake)."""
    return -fake.float().mean()


def check_gradients(module: nn.Module, step: int) -> None:
    """Check that all gradients of a module are finite.

    Raises:
        FloatingPointError: a gradient is NaN or infinite; the message names the parameter and the step.
    """
    slopes = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    if not slopes or torch.stack([slope.isfinite().all() for slope in slopes.values()]).all():
        return
    name = next(name for name, slope in slopes.items() if not slope.isfinite().all())
    raise FloatingPointError(f"got a gradient of {name} at step {step} that is not finite; lower lr")


def check_finite(loss: Tensor, name: str, step: int) -> Tensor:
    """Check that a loss is finite and return it.

    Raises:
        FloatingPointError: it is NaN or infinite; the message names the term and the step.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(f"got a {name} loss of {loss.item()} at step {step}, expected a number; lower lr")
    return loss
