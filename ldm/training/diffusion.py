"""Stage 1: training of the U-Net and the structure encoder to denoise latents of high-quality clips."""

import torch
from torch import Tensor, nn

from ldm.diffusion.denoiser import target, to_x0
from ldm.diffusion.samplers import ddpm_step
from ldm.diffusion.schedule import Schedule
from ldm.nets.attention import TemporalAttention
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Frame, stack
from ldm.streaming.steps import Steps, WindowPlaces, sample_clip
from ldm.training.denoising import DenoiserTraining
from ldm.training.draws import SampleDraws
from ldm.training.optimization import Adam

BUILDABLE = ("Objective", "StageOne")  # what a configuration may name as a target

PER = ("frame", "clip")
TRAINED = ("released", "repaired", "all")


class Objective:
    """Draws time steps and noise, and computes the denoising loss.

    Args:
        prediction: what the network predicts: "eps", "v" or "x0".
        timestep_per: "frame" draws a time step for every frame, as in the released code; "clip" one for the whole clip,
            as in sampling.
        train_steps: number of time steps, evenly spaced over the 1000 of Stable Diffusion.
        arithmetic: precision of the schedule, see `Schedule.respaced`; the released code respaces in float32.
        seed: seed of time steps and noise.
    Raises:
        ValueError: an unknown `prediction`, `timestep_per` or `arithmetic`.
    """

    def __init__(
        self,
        *,
        prediction: str = "eps",
        timestep_per: str = "frame",
        train_steps: int = 1000,
        arithmetic: str = "released",
        seed: int = 23,
    ) -> None:
        if timestep_per not in PER:
            raise ValueError(f"got timestep_per={timestep_per!r}, expected one of {', '.join(PER)}")
        self.schedule = Schedule.linear_sd().respaced(train_steps, arithmetic=arithmetic)
        self.bound_weights = self.schedule.lvlb_weights(prediction)
        self.prediction, self.timestep_per, self.draws = prediction, timestep_per, SampleDraws(seed)

    def draw(self, purpose: str, index: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Draw schedule steps (B*T,) and noise of the shape of z (B*T, c, h, w) for the samples `index` (B,)."""
        frames = len(z) // len(index)
        count = 1 if self.timestep_per == "clip" else frames
        i = self.draws.below(len(self.schedule), f"{purpose}.t", index, count=count)
        return i.repeat_interleave(frames // count), self.draws.normal(f"{purpose}.noise", index, z)

    def terms(self, prediction: Tensor, z: Tensor, noise: Tensor, i: Tensor) -> dict[str, Tensor]:
        """Losses of a prediction for the noisy latents x_i, with the names that the released code logs.

        `loss` and `loss_simple` are the mean squared error; `loss_vlb` is the error weighted for the variational bound
        (Improved DDPM, Nichol and Dhariwal 2021), without gradient.
        """
        wanted = target(self.prediction, z, noise, self.schedule, i)
        per_frame = (prediction.float() - wanted).square().flatten(1).mean(1)
        simple = per_frame.mean()
        bound = (self.bound_weights.to(i.device)[i] * per_frame).mean()
        return {"loss_simple": simple, "loss_vlb": bound.detach(), "loss": simple}


class StageOne(DenoiserTraining):
    """Train the denoiser on clips; submodules have the names of the released stage-1 file.

    Args:
        networks: "unet" and "structure" (trained), "autoencoder" and "text" (frozen).
        objective: time steps, noise and loss.
        trained: "released", the structure encoder and the U-Net parameters with `spade` or `temporal` in their names;
            "repaired", also the norm of the temporal attention, which the released code leaves frozen (B23); "all",
            both networks.
        optimizer, scale_factor, accumulate, preview_steps: as for `DenoiserTraining`.
    Raises:
        ValueError: an unknown `trained`, or as for `DenoiserTraining`.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        *,
        objective: Objective,
        optimizer: Adam,
        scale_factor: float,
        trained: str = "released",
        accumulate: int = 1,
        preview_steps: int = 10,
    ):
        super().__init__(
            optimizer=optimizer, scale_factor=scale_factor, accumulate=accumulate, preview_steps=preview_steps
        )
        if trained not in TRAINED:
            raise ValueError(f"got trained={trained!r}, expected one of {', '.join(TRAINED)}")
        self.objective = objective
        register_released(self, networks)
        _freeze_rest(networks["unet"], trained)

    def latents(self, batch: dict[str, Tensor], eps: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Scaled posterior samples of the enlarged LQ and of the GT frames, each (B*T, c, h, w).

        `eps` holds the noise of both, in place of drawn noise.
        """
        gt, lq = batch["gt"].flatten(0, 1) * 2 - 1, enlarged(batch)
        sampled = []
        for k, (name, frames) in enumerate((("lq", lq), ("gt", gt))):
            with torch.no_grad():
                posterior = self.first_stage_model.posterior(self.first_stage_model.encode(frames))
            given = self.objective.draws.normal(name, batch["index"], posterior.mean) if eps is None else eps[k]
            sampled.append((posterior.sample(given) * self.scale_factor).float())
        return tuple(sampled)

    def predict(self, x: Tensor, z_lq: Tensor, t: Tensor, *, frames: int) -> Tensor:
        """Network prediction for noisy latents x (B*T, c, h, w) at time steps t, (1,) or (B*T,)."""
        return released_prediction(self, x, z_lq, t, frames=frames)

    def terms(self, z_lq: Tensor, z_gt: Tensor, i: Tensor, noise: Tensor, *, frames: int) -> dict[str, Tensor]:
        """Losses of GT latents with noise added at the schedule steps i (B*T,)."""
        schedule = self.objective.schedule
        x, t = schedule.add_noise(z_gt, noise, i), schedule.t.to(i.device)[i]
        return self.objective.terms(self.predict(x, z_lq, t, frames=frames), z_gt, noise, i)

    def losses(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        """Losses of `Objective.terms` at drawn time steps."""
        z_lq, z_gt = self.latents(batch)
        i, noise = self.objective.draw(purpose, batch["index"], z_gt)
        return self.terms(z_lq, z_gt, i, noise, frames=batch["gt"].shape[1])

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """Sample a preview in a few steps without guidance and decode it by frames: (B, T, 3, H, W) in [0, 1]."""
        frames = batch["gt"].shape[1]
        z_lq, _ = self.latents(batch)
        schedule = self.objective.schedule.respaced(min(self.preview_steps, len(self.objective.schedule)))

        def noise(i: int | str) -> Tensor:
            return self.objective.draws.normal(f"preview.{i}", batch["index"], z_lq)

        def denoise(window: list[Frame], *, i: int) -> Tensor:
            x, t = stack(window, "x").flatten(0, 1), schedule.t[i : i + 1].to(z_lq.device)
            prediction = self.predict(x, z_lq, t, frames=frames).float()
            x0 = to_x0(prediction, x, schedule, i, self.objective.prediction)
            return ddpm_step(x0, x, i, schedule, noise=noise).unflatten(0, (-1, frames))

        start = schedule.add_noise(z_lq, noise("start"), len(schedule) - 1).unflatten(0, (-1, frames))
        z = sample_clip(Steps(denoise, WindowPlaces(frames)), start, len(schedule)).flatten(0, 1)
        decoded = self.first_stage_model.decode(z / self.scale_factor).float()
        return (decoded / 2 + 0.5).clamp(0, 1).unflatten(0, (-1, frames))


def register_released(module: nn.Module, networks: dict[str, nn.Module]) -> None:
    """Add "unet", "structure", "autoencoder" and "text" to a module under the names of the released stage-1 file.

    The last two are frozen.
    """
    module.model = nn.ModuleDict({"diffusion_model": networks["unet"]})
    module.first_stage_model = networks["autoencoder"].requires_grad_(False)
    module.structcond_stage_model = networks["structure"]
    module.cond_stage_model = nn.ModuleDict({"model": networks["text"].requires_grad_(False)})


def released_prediction(module: nn.Module, x: Tensor, z_lq: Tensor, t: Tensor, *, frames: int) -> Tensor:
    """Prediction of the networks of `register_released` for latents x, given those of the LQ; both (B*T, c, h, w).

    Time steps t are (1,) or (B*T,); `frames` is T.
    """
    maps = module.structcond_stage_model(z_lq, t)
    return module.model["diffusion_model"](x, t, module.cond_stage_model["model"]().to(x), maps, num_frames=frames)


def enlarged(batch: dict[str, Tensor]) -> Tensor:
    """LQ frames enlarged to the size of the GT by bicubic interpolation: (B*T, 3, H, W), clamped to [-1, 1]."""
    return resize(batch["lq"], batch["gt"].shape[-2:]).flatten(0, 1).mul(2).sub(1).clamp(-1, 1)


def _freeze_rest(unet: nn.Module, trained: str) -> None:
    """Require gradients only of the U-Net parameters that `trained` selects."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(trained == "all" or "spade" in name or "temporal" in name)
    for module in unet.modules():
        if isinstance(module, TemporalAttention) and trained == "repaired":
            module.norm.requires_grad_(True)
