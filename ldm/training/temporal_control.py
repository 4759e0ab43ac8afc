"""Training of StableVSR's Temporal Conditioning Module (Rota et al., ECCV 2024): one step as plain functions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.bidirectional import texture_guidance
from ldm.diffusion.denoiser import target, to_x0
from ldm.diffusion.scheduler import Scheduler
from ldm.ops.resize import resize

CURRENT = 1  # of three frames


class ControlNetworks(NamedTuple):
    """The trained control network and what stays as it is: the denoiser, the autoencoder and the flow.

    flow(target, source), (n, 3, H, W) in [0, 1] each -> (n, 2, H, W). `grid` of the warp, see `flow_warp`.
    """

    control: nn.Module
    unet: nn.Module
    autoencoder: nn.Module
    flow: Callable[[Tensor, Tensor], Tensor]
    scale_factor: float
    grid: str = "released"


class ControlDraws(NamedTuple):
    """The random numbers of a batch of b samples.

    neighbour (b,): 0 or 2, the frame that guides. eps, eps_neighbour: of the autoencoder's posterior. noise,
    noise_neighbour: of the diffusion, each like the latents (b, c, h, w). t (b,): time steps, shared by both frames.
    """

    neighbour: Tensor
    eps: Tensor
    eps_neighbour: Tensor
    noise: Tensor
    noise_neighbour: Tensor
    t: Tensor


class ControlPair(NamedTuple):
    """A frame and its neighbour: low-resolution pictures (b, 3, h, w) in [-1, 1], noisy latents, and the clean latents
    of the frame."""

    lq: Tensor
    lq_neighbour: Tensor
    z: Tensor
    noisy: Tensor
    noisy_neighbour: Tensor


def sampled_latents(autoencoder: nn.Module, pictures: Tensor, eps: Tensor, *, scale_factor: float) -> Tensor:
    """Posterior samples of pictures (b, 3, H, W) in [0, 1], times the scale factor: (b, c, h, w)."""
    posterior = autoencoder.posterior(autoencoder.encode(2 * pictures - 1))
    return (posterior.sample(eps) * scale_factor).float()


@torch.no_grad()
def noisy_pair(
    networks: ControlNetworks, scheduler: Scheduler, batch: dict[str, Tensor], draws: ControlDraws
) -> ControlPair:
    """Both frames encoded and noised; `lq` (b, 3, 3, h, w) and `gt` (b, 3, 3, H, W) of the batch in [0, 1]."""
    rows = torch.arange(len(draws.t), device=draws.neighbour.device)
    gt, lq = batch["gt"], 2 * batch["lq"] - 1
    pictures = [(gt[:, CURRENT], draws.eps), (gt[rows, draws.neighbour], draws.eps_neighbour)]
    z, z_neighbour = (
        sampled_latents(networks.autoencoder, picture, eps, scale_factor=networks.scale_factor)
        for picture, eps in pictures
    )
    noisy = scheduler.training.add_noise(z, draws.noise, draws.t)
    noisy_neighbour = scheduler.training.add_noise(z_neighbour, draws.noise_neighbour, draws.t)
    return ControlPair(lq[:, CURRENT], lq[rows, draws.neighbour], z, noisy, noisy_neighbour)


@torch.no_grad()
def guidance_condition(
    networks: ControlNetworks, scheduler: Scheduler, pair: ControlPair, t: Tensor, context: Tensor
) -> Tensor:
    """The neighbour's clean estimate, decoded and moved onto the frame: (b, 3, H, W), not clamped.

    As released the estimate reads the prediction as velocity, whatever the network predicts.
    """
    prediction = networks.unet(torch.cat([pair.noisy_neighbour, pair.lq_neighbour], dim=1), t, context).float()
    x0 = to_x0(prediction, pair.noisy_neighbour, scheduler.training, t, "v")
    picture = networks.autoencoder.decode(x0 / networks.scale_factor).float()
    size = picture.shape[-2:]
    frame, neighbour = (resize(lq / 2 + 0.5, size) for lq in (pair.lq, pair.lq_neighbour))
    return texture_guidance(picture, networks.flow(frame, neighbour), grid=networks.grid)


def control_loss(
    networks: ControlNetworks,
    scheduler: Scheduler,
    batch: dict[str, Tensor],
    draws: ControlDraws,
    *,
    context: Tensor,
) -> dict[str, Tensor]:
    """{"loss", "prediction", "target", "condition"}: mean squared error of what the guided denoiser predicts.

    batch: `lq` and `gt` of clips of three frames, in [0, 1]; context (1 | b, tokens, channels). Gradients reach the
    control network through the frozen denoiser.
    """
    pair = noisy_pair(networks, scheduler, batch, draws)
    condition = guidance_condition(networks, scheduler, pair, draws.t, context)
    x = torch.cat([pair.noisy, pair.lq], dim=1)
    residuals = networks.control(x, draws.t, context, condition)
    prediction = networks.unet(x, draws.t, context, residuals).float()
    wanted = target(scheduler.kind, pair.z, draws.noise, scheduler.training, draws.t)
    loss = F.mse_loss(prediction, wanted)
    return {"loss": loss, "prediction": prediction, "target": wanted, "condition": condition}
