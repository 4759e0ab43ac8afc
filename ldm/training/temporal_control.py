"""Training of StableVSR's Temporal Conditioning Module (Rota et al., ECCV 2024).

A training step as plain functions, and a module that draws the random numbers and trains with them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pytorch_lightning import Callback
from torch import Tensor, nn

from ldm.diffusion.bidirectional import GuidedDenoiser, conditioned_prediction, sample_scene, texture_guidance
from ldm.diffusion.denoiser import target, to_x0
from ldm.diffusion.scheduler import Scheduler
from ldm.ops.resize import resize
from ldm.training.denoising import DenoiserTraining
from ldm.training.draws import SampleDraws
from ldm.training.optimization import Adam

BUILDABLE = ("ControlObjective", "TemporalControl")  # what a configuration may name as a target
CURRENT = 1  # of three frames


class ControlNetworks(NamedTuple):
    """The trained control network and the frozen denoiser, autoencoder and flow network.

    `flow(target, source)` maps frames (n, 3, H, W) in [0, 1] to (n, 2, H, W). For `grid` see `ldm.ops.flow.flow_warp`.
    """

    control: nn.Module
    unet: nn.Module
    autoencoder: nn.Module
    flow: Callable[[Tensor, Tensor], Tensor]
    scale_factor: float
    grid: str = "released"


class ControlDraws(NamedTuple):
    """Random numbers of a batch of b samples.

    neighbour (b,): guiding frame, 0 or 2. eps, eps_neighbour: noise of the posterior of the autoencoder; noise,
    noise_neighbour: noise of the diffusion, each with the shape of the latents (b, c, h, w). t (b,): time steps of both
    frames.
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
    """Posterior samples (b, c, h, w) of frames (b, 3, H, W) in [0, 1], multiplied by the scale factor."""
    posterior = autoencoder.posterior(autoencoder.encode(2 * pictures - 1))
    return (posterior.sample(eps) * scale_factor).float()


@torch.no_grad()
def noisy_pair(
    networks: ControlNetworks, scheduler: Scheduler, batch: dict[str, Tensor], draws: ControlDraws
) -> ControlPair:
    """Encode both frames and add noise; `lq` (b, 3, 3, h, w) and `gt` (b, 3, 3, H, W) in [0, 1]."""
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
    """Clean estimate of the neighbour, decoded and warped onto the frame: (b, 3, H, W), not clamped.

    As in the released code, the prediction is taken as velocity, whatever the network predicts.
    """
    prediction = networks.unet(torch.cat([pair.noisy_neighbour, pair.lq_neighbour], dim=1), t, context).float()
    x0 = to_x0(prediction, pair.noisy_neighbour, scheduler.training, t, "v")
    picture = networks.autoencoder.decode(x0 / networks.scale_factor).float()
    size = picture.shape[-2:]
    frame, neighbour = (resize(lq / 2 + 0.5, size) for lq in (pair.lq, pair.lq_neighbour))
    return texture_guidance(picture, networks.flow(frame, neighbour), grid=networks.grid)


def control_loss(
    networks: ControlNetworks, scheduler: Scheduler, batch: dict[str, Tensor], draws: ControlDraws, *, context: Tensor
) -> dict[str, Tensor]:
    """Mean squared error of the guided denoiser, as {"loss", "prediction", "target", "condition"}.

    `batch` holds `lq` and `gt` of clips of three frames in [0, 1]; `context` is (1 | b, tokens, channels). Gradients
    reach the control network through the frozen denoiser.
    """
    pair = noisy_pair(networks, scheduler, batch, draws)
    condition = guidance_condition(networks, scheduler, pair, draws.t, context)
    x = torch.cat([pair.noisy, pair.lq], dim=1)
    residuals = networks.control(x, draws.t, context, condition)
    prediction = networks.unet(x, draws.t, context, residuals).float()
    wanted = target(scheduler.kind, pair.z, draws.noise, scheduler.training, draws.t)
    loss = F.mse_loss(prediction, wanted)
    return {"loss": loss, "prediction": prediction, "target": wanted, "condition": condition}


class ControlObjective:
    """Random draws and target of the training of a control network.

    Args:
        scheduler: time steps and the type of prediction.
        grid: sampling grid of the warp, see `ldm.ops.flow.flow_warp`.
        seed: seed of neighbours, time steps and noise.
    """

    def __init__(self, scheduler: Scheduler, *, grid: str = "released", seed: int = 42) -> None:
        self.scheduler, self.grid, self.draws = scheduler, grid, SampleDraws(seed)

    def draw(self, purpose: str, index: Tensor, like: Tensor) -> ControlDraws:
        """Draw the random numbers of the samples `index` (b,), for latents shaped like `like` (b, c, h, w)."""
        names = ("eps", "eps_neighbour", "noise", "noise_neighbour")
        normal = {name: self.draws.normal(f"{purpose}.{name}", index, like) for name in names}
        neighbour = 2 * self.draws.below(2, f"{purpose}.neighbour", index, count=1)
        t = self.draws.below(len(self.scheduler.training), f"{purpose}.t", index, count=1)
        return ControlDraws(neighbour=neighbour, t=t, **normal)


class TemporalControl(DenoiserTraining):
    """Train a control network through a frozen denoiser; submodules have the names of the folders of a pipeline.

    Clips have three frames.

    Args:
        networks: "control" (trained), "unet", "autoencoder", "text" and "flow" (frozen).
        objective: time steps, noise and loss.
        export: callback that writes the control network, such as `ldm.training.control_folder.ControlFolder`.
        optimizer, scale_factor, accumulate, preview_steps: as for `DenoiserTraining`.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        *,
        objective: ControlObjective,
        optimizer: Adam,
        scale_factor: float = 0.08333,
        accumulate: int = 1,
        preview_steps: int = 4,
        export: Callback | None = None,
    ):
        super().__init__(
            optimizer=optimizer, scale_factor=scale_factor, accumulate=accumulate, preview_steps=preview_steps
        )
        self.controlnet = networks["control"]
        self.unet = networks["unet"].requires_grad_(False)
        self.vae = networks["autoencoder"].requires_grad_(False)
        self.text_encoder = networks["text"].requires_grad_(False)
        self.flow = networks["flow"].requires_grad_(False)
        self.objective, self.export = objective, export
        self._context: Tensor | None = None

    def configure_callbacks(self) -> list[Callback]:
        return [] if self.export is None else [self.export]

    @property
    def networks(self) -> ControlNetworks:
        grid = self.objective.grid
        return ControlNetworks(self.controlnet, self.unet, self.vae, self.flow, self.scale_factor, grid)

    def context(self, like: Tensor) -> Tensor:
        """Text embedding of the empty prompt (1, tokens, channels), computed once."""
        if self._context is None:
            with torch.no_grad():
                self._context = self.text_encoder()
        return self._context.to(like)

    def batch_terms(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        """`control_loss` of a batch; `purpose` ("train" or "validation") selects the random numbers."""
        lq = batch["lq"]
        if lq.shape[1] != 3:
            raise ValueError(f"got clips of {lq.shape[1]} frames, expected 3: a frame between its neighbours")
        like = lq.new_empty(len(lq), self.unet.conv_out.out_channels, *lq.shape[-2:])
        draws = self.objective.draw(purpose, batch["index"], like)
        return control_loss(self.networks, self.objective.scheduler, batch, draws, context=self.context(like))

    def losses(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        """The loss of `batch_terms`."""
        return {"loss": self.batch_terms(batch, purpose)["loss"]}

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """Sample a clip (1, T, ...) in a few steps, forwards and backwards: (1, T, 3, H, W) in [0, 1]."""
        lr = list((2 * batch["lq"][0] - 1).split(1))
        size = tuple(self.vae.downsampling * side for side in lr[0].shape[-2:])
        like = lr[0].new_empty(1, self.unet.conv_out.out_channels, *lr[0].shape[-2:])

        def flow(target: int, source: int) -> Tensor:
            return self.flow(*(resize(lr[k] / 2 + 0.5, size) for k in (target, source)))

        def noise(step: int | str, frame: int) -> Tensor:
            return self.objective.draws.normal(f"preview.{step}.{frame}", batch["index"], like)

        def decode(x0: Tensor) -> Tensor:
            return self.vae.decode(x0 / self.scale_factor).float()

        predict = conditioned_prediction(self.unet, self.controlnet, self.context(like))
        model = GuidedDenoiser(predict, decode, flow, self.objective.grid)
        scheduler = self.objective.scheduler
        steps = min(self.preview_steps, max(len(scheduler.training) // 2, 1))
        done = sample_scene(lr, model=model, scheduler=scheduler, steps=steps, noise=noise)
        return (torch.cat(done.pictures) / 2 + 0.5).clamp(0, 1)[None]
