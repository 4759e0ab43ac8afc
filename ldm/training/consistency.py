"""How steadily a reconstructed clip moves: frames warped onto each other, compared most strictly along edges."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.guidance import motion_loss
from ldm.ops.flow import estimate_motion

_SMALLEST_SQUARE = 1e-6  # under the root: the gradient of a flat region stays finite
_EDGE_WEIGHT = 3.0


def sobel_edges(images: Tensor) -> Tensor:
    """Gradient magnitude of each channel: (..., h, w) -> the same shape, in float32.

    Sobel kernels divided by 8, replicated borders, sqrt(gx^2 + gy^2 + 1e-6): what kornia's normalised `sobel` gives.
    Written as differences of slices, which autocast leaves in float32.
    """
    planes = images.float().reshape(-1, 1, *images.shape[-2:])
    x = F.pad(planes, (1, 1, 1, 1), mode="replicate")
    down = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]  # smoothed along y
    across = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]  # smoothed along x
    gx, gy = (down[..., 2:] - down[..., :-2]) / 8, (across[..., 2:, :] - across[..., :-2, :]) / 8
    return (gx.square() + gy.square() + _SMALLEST_SQUARE).sqrt().reshape(images.shape)


def structure_weights(images: Tensor) -> Tensor:
    """1 + 3 * Sobel edges: how much each pixel counts; no gradient. Images in [-1, 1], as released."""
    return 1 + _EDGE_WEIGHT * sobel_edges(images.detach())


def consistency_loss(reconstruction: Tensor, target: Tensor, flow_net: nn.Module, *, form: str = "paper") -> Tensor:
    """Structure-weighted warping error of a clip (MGLD-VSR's L_swc): clips (B, T, 3, H, W) in [-1, 1] -> a scalar.

    `form="paper"`: neighbours of the reconstruction are warped onto each frame, along flows of the target and with the
    weights of its edges. What is occluded there or leaves the picture does not count. `flow_net` gets [0, 1] and no
    gradient.

    `form="released"`: the two clips are exchanged, so neighbours of the *target* are compared along
    flows and edges of the reconstruction, each with the flow of the pair beyond it, and `flow_net` gets [-1, 1]. The
    only gradient runs through `flow_net` to the reconstruction; for two frames, or a flow without gradient, there is
    none.

    Both sum over the pairs of frames and the two directions. 0 for a single frame. Raises ValueError for another form;
    FloatingPointError where a flow is not finite.
    """
    if form == "released":
        return warping_error(target, reconstruction, flow_net, pairing="released", pixels=reconstruction.float())
    with torch.no_grad():
        pixels = target.float() / 2 + 0.5
    return warping_error(reconstruction, target, flow_net, pairing=form, pixels=pixels)


def warping_error(moved: Tensor, reference: Tensor, flow_net: nn.Module, *, pairing: str, pixels: Tensor) -> Tensor:
    """Warping error of `moved` along the motion and with the edges of `reference`, whose `pixels` the flow net sees."""
    if moved.shape[1] < 2:
        return 0 * moved.float().sum()
    motion = estimate_motion(flow_net, pixels, size=tuple(pixels.shape[-2:]))
    occlusion = "masked" if pairing == "released" else "visible"
    return motion_loss(moved, motion, form=pairing, occlusion=occlusion, emphasis=structure_weights(reference))
