"""Stage 1: training of the U-Net and the structure encoder to denoise latents of high-quality clips."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm.diffusion.denoiser import target, to_x0
from ldm.diffusion.samplers import ddpm_step
from ldm.diffusion.schedule import Schedule
from ldm.nets.attention import TemporalAttention
from ldm.ops.resize import resize
from ldm.streaming.pipeline import Frame, stack
from ldm.streaming.steps import Steps, WindowPlaces, sample_clip
from ldm.training.curves import StepMeans
from ldm.training.draws import SampleDraws
from ldm.training.losses import check_finite
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


class StageOne(LightningModule):
    """Train the denoiser on clips; submodules have the names of the released stage-1 file.

    A batch holds `lq` (B, T, 3, h, w) and `gt` (B, T, 3, H, W) in [0, 1], and `index` (B,), the sample numbers.

    Args:
        networks: "unet" and "structure" (trained), "autoencoder" and "text" (frozen).
        objective: time steps, noise and loss.
        optimizer: builds the optimizer.
        scale_factor: factor of the latents.
        trained: "released", the structure encoder and the U-Net parameters with `spade` or `temporal` in their names;
            "repaired", also the norm of the temporal attention, which the released code leaves frozen (B23); "all",
            both networks.
        accumulate: batches per optimizer step, for averaging the logged losses; the Trainer does the accumulation.
        preview_steps: sampling steps of the preview pictures.
    Raises:
        ValueError: an unknown `trained`, or `scale_factor` or `preview_steps` not above 0.
    """

    needs = ("gt", "lq")  # keys of a batch

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
        super().__init__()
        if trained not in TRAINED:
            raise ValueError(f"got trained={trained!r}, expected one of {', '.join(TRAINED)}")
        if not scale_factor > 0 or preview_steps < 1:
            raise ValueError(f"got scale_factor={scale_factor}, preview_steps={preview_steps}, expected more than 0")
        self.model = nn.ModuleDict({"diffusion_model": networks["unet"]})
        self.first_stage_model = networks["autoencoder"].requires_grad_(False)
        self.structcond_stage_model = networks["structure"]
        self.cond_stage_model = nn.ModuleDict({"model": networks["text"].requires_grad_(False)})
        self.objective, self.optimizer, self.scale_factor = objective, optimizer, scale_factor
        self.accumulate, self.preview_steps, self.means = accumulate, preview_steps, StepMeans()
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
        maps = self.structcond_stage_model(z_lq, t)
        context = self.cond_stage_model["model"]().to(x)
        return self.model["diffusion_model"](x, t, context, maps, num_frames=frames)

    def terms(self, z_lq: Tensor, z_gt: Tensor, i: Tensor, noise: Tensor, *, frames: int) -> dict[str, Tensor]:
        """Losses of GT latents with noise added at the schedule steps i (B*T,)."""
        schedule = self.objective.schedule
        x, t = schedule.add_noise(z_gt, noise, i), schedule.t.to(i.device)[i]
        return self.objective.terms(self.predict(x, z_lq, t, frames=frames), z_gt, noise, i)

    def _batch_terms(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        z_lq, z_gt = self.latents(batch)
        i, noise = self.objective.draw(purpose, batch["index"], z_gt)
        return self.terms(z_lq, z_gt, i, noise, frames=batch["gt"].shape[1])

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        terms = self._batch_terms(batch, "train")
        check_finite(terms["loss"], "denoising", self.global_step)
        self.means.log_batch(self, terms, number)
        return terms["loss"]

    def validation_step(self, batch: dict[str, Tensor], _number: int) -> None:
        terms = self._batch_terms(batch, "validation")
        means = {f"val/{name}": value for name, value in terms.items()}
        self.log_dict(means, sync_dist=True, batch_size=len(batch["gt"]))

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

    def configure_optimizers(self) -> dict:
        return self.optimizer(self.parameters())


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
