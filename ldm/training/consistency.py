"""Temporal consistency of a reconstructed clip: an edge-weighted warping error (MGLD-VSR's L_swc)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.guidance import motion_loss
from ldm.ops.flow import estimate_motion

_SMALLEST_SQUARE = 1e-6  # added under the root, so that the gradient of a flat region stays finite
_EDGE_WEIGHT = 3.0


def sobel_edges(images: Tensor) -> Tensor:
    """Gradient magnitude of each channel: (..., h, w) -> the same shape, in float32.

    sqrt(gx^2 + gy^2 + 1e-6) of Sobel kernels divided by 8, with replicated borders; equals kornia's normalised `sobel`.
    It is computed by differences of slices, which autocast leaves in float32.
    """
    planes = images.float().reshape(-1, 1, *images.shape[-2:])
    x = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    down = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]  # smoothed along y
    across = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]  # smoothed along x
    gx, gy = (down[..., 2:] - down[..., :-2]) / 8, (across[..., 2:, :] - across[..., :-2, :]) / 8
    return (gx.square() + gy.square() + _SMALLEST_SQUARE).sqrt().reshape(images.shape)


def structure_weights(images: Tensor) -> Tensor:
    """Weight of each pixel, 1 + 3 * `sobel_edges`, without gradient; images in [-1, 1], as in the released code."""
    return 1 + _EDGE_WEIGHT * sobel_edges(images.detach())


def consistency_loss(reconstruction: Tensor, target: Tensor, flow_net: nn.Module, *, form: str = "paper") -> Tensor:
    """Structure-weighted warping error of a clip (MGLD-VSR's L_swc): clips (B, T, 3, H, W) in [-1, 1] -> scalar.

    `form="paper"`: neighbouring frames of the reconstruction are warped onto each frame along flows of the target and
    weighted by edges of the target. Pixels that are occluded or warped from outside the picture do not count.
    `flow_net` receives pixels in [0, 1] and no gradient.

    `form="released"`: as in the released code the two clips are exchanged. Neighbouring frames of the *target* are
    compared along flows and with edges of the reconstruction, each with the flow of the next pair (B1), and `flow_net`
    receives pixels in [-1, 1] (B12). The only gradient passes through `flow_net` to the reconstruction; there is none
    for two frames or for a flow without gradient.

    Both sum over pairs of frames and over the two directions, and are 0 for a single frame.

    Raises:
        ValueError: an unknown form.
        FloatingPointError: a flow is not finite.
    """
    if form == "released":
        return warping_error(target, reconstruction, flow_net, pairing="released", pixels=reconstruction.float())
    with torch.no_grad():
        pixels = target.float() / 2 + 0.5
    return warping_error(reconstruction, target, flow_net, pairing=form, pixels=pixels)


def warping_error(moved: Tensor, reference: Tensor, flow_net: nn.Module, *, pairing: str, pixels: Tensor) -> Tensor:
    """Warping error of the clip `moved` along the flow and weighted by the edges of the clip `reference`.

    `pixels` is `reference` in the range that `flow_net` expects; `pairing` is "paper" or "released".
    """
    if moved.shape[1] < 2:
        return 0 * moved.float().sum()
    motion = estimate_motion(flow_net, pixels, size=tuple(pixels.shape[-2:]))
    occlusion = "masked" if pairing == "released" else "visible"
    return motion_loss(moved, motion, form=pairing, occlusion=occlusion, emphasis=structure_weights(reference))
