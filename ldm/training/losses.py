"""Losses on images and clips, all in float32. Pixels in [-1, 1], shapes (..., 3, H, W)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gradient_l1(a: Tensor, b: Tensor, *, scales: int = 3) -> Tensor:
    """Mean L1 between horizontal and vertical differences at `scales` octaves: a stand-in for a perceptual loss.

    Named in the training log as `gradient`; used where no perceptual network is at hand.
    """
    a, b = a.float().flatten(0, -4), b.float().flatten(0, -4)
    total = a.new_zeros(())
    for octave in range(scales):
        if octave:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        d = a - b
        total = total + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    return total / scales


def frame_difference_l1(a: Tensor, b: Tensor) -> Tensor:
    """mean |(a_i - a_{i+1}) - (b_i - b_{i+1})| over (B, T, 3, H, W); 0 for a single frame (MGLD-VSR's L_diff)."""
    if a.shape[1] < 2:
        return a.new_zeros(())
    d = a.float() - b.float()
    return (d[:, 1:] - d[:, :-1]).abs().mean()


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


def check_finite(loss: Tensor, name: str, step: int) -> Tensor:
    """`loss` itself; FloatingPointError naming the term and the step if it is NaN or infinite."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"got a {name} loss of {loss.item()} at step {step}, expected a number; lower lr")
    return loss
