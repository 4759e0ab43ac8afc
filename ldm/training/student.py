"""Distillation to one step: the U-Net maps latents of the LR frames to clean latents.

As in DOVE (Chen et al. 2025), the LR latents take the place of the noisy latents of one fixed time step. No random
numbers are drawn, and x0 follows from the prediction as for other noisy latents.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.schedule import Schedule
from ldm.nets.lora import add_low_rank, merge_low_rank
from ldm.ops.resize import resize
from ldm.training.denoising import DenoiserTraining
from ldm.training.diffusion import register_released, released_prediction
from ldm.training.losses import frame_difference_l1
from ldm.training.optimization import Adam

BUILDABLE = ("OneStep", "StudentTraining")  # what a configuration may name as a target

WEIGHTS = {"latent": 1.0, "teacher": 0.5, "pixel": 0.0, "perceptual": 0.0, "difference": 0.0}


class OneStep:
    """Converts predictions at one time step, of which LR latents are taken as the noisy latents.

    Args:
        prediction: what the U-Net predicts: "eps", "v" or "x0".
        level: time step of Stable Diffusion, 0 to 999; 399 in DOVE.
    Raises:
        ValueError: `level` out of range.
    """

    def __init__(self, *, prediction: str = "v", level: int = 399) -> None:
        self.schedule, self.prediction, self.level = Schedule.linear_sd(), prediction, level
        if not 0 <= level < len(self.schedule):
            raise ValueError(f"got level={level}, expected 0 to {len(self.schedule) - 1}")

    def x0(self, prediction: Tensor, z: Tensor) -> Tensor:
        """Clean latents for the U-Net's prediction from LR latents z; all (n, c, h, w) float32."""
        return to_x0(prediction, z, self.schedule, self.level, self.prediction)


class StudentTraining(DenoiserTraining):
    """Regression of clean latents in one step; submodules have the names of the released stage-1 file.

        loss = latent |x0 - z_gt|^2 + teacher |x0 - z_teacher|^2 + pixel |y - gt| + perceptual d(y, gt)
               + difference |dy - dgt|

    where y are the frames that the image decoder decodes from x0, and d is the difference between neighbouring frames.
    A term of weight 0 is not computed.

    A batch also holds `latent` (B, T, c, h', w'), scaled samples of the teacher, if the weight of `teacher` is not 0.

    Args:
        networks: "unet" and "structure" (trained, starting from the teacher's weights), "autoencoder" and "text"
            (frozen).
        step: time step that the LR latents stand for, and the type of prediction.
        weights: weights of terms that differ from `WEIGHTS`.
        perceptual: computes distances (n, 1, 1, 1) of frames in [-1, 1].
        rank: rank of the low-rank changes of the U-Net's attention and convolutions, which are merged into the weights
            after training; SPADE and temporal layers are trained directly. 0 trains every weight directly.
        optimizer, scale_factor, accumulate: as for `DenoiserTraining`.
    Raises:
        ValueError: an unknown term, a negative rank, a perceptual weight without a network, or as for
            `DenoiserTraining`.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        *,
        step: OneStep,
        optimizer: Adam,
        scale_factor: float,
        weights: Mapping[str, float] | None = None,
        perceptual: nn.Module | None = None,
        rank: int = 0,
        accumulate: int = 1,
    ):
        super().__init__(optimizer=optimizer, scale_factor=scale_factor, accumulate=accumulate, preview_steps=1)
        if rank < 0:
            raise ValueError(f"got rank={rank}, expected at least 0")
        if unknown := sorted(set(weights or {}) - set(WEIGHTS)):
            raise ValueError(f"got weight {unknown[0]!r}, expected some of {', '.join(WEIGHTS)}")
        self.weights = WEIGHTS | dict(weights or {})
        if self.weights["perceptual"] and perceptual is None:
            raise ValueError("got a weight for the perceptual term without a network, expected `perceptual`")
        register_released(self, networks)
        self.perceptual, self.step, self.rank = perceptual, step, rank
        self.needs = (*self.needs, "latent") if self.weights["teacher"] else self.needs

    def latents(self, frames: Tensor) -> Tensor:
        """Scaled posterior means of frames (B, T, 3, H, W) in [0, 1]: (B*T, c, h, w), without gradient."""
        with torch.no_grad():
            moments = self.first_stage_model.encode(frames.flatten(0, 1) * 2 - 1)
            return (self.first_stage_model.posterior(moments).mean * self.scale_factor).float()

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """Scaled clean latents (B*T, c, h, w) predicted from the LQ frames."""
        z = self.latents(resize(batch["lq"], batch["gt"].shape[-2:]).clamp(0, 1))
        t = torch.tensor([self.step.level], device=z.device)
        prediction = released_prediction(self, z, z, t, frames=batch["lq"].shape[1])
        return self.step.x0(prediction.float(), z)

    def decode(self, x0: Tensor, frames: int) -> Tensor:
        """Decode scaled latents (B*T, c, h, w) by the image decoder: (B, T, 3, H, W), about [-1, 1]."""
        return self.first_stage_model.decode(x0 / self.scale_factor).float().unflatten(0, (-1, frames))

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unweighted terms of a batch and their weighted sum `loss`."""
        x0, w = self.predict(batch), self.weights
        terms = {"latent": (x0 - self.latents(batch["gt"])).square().mean()}
        if w["teacher"]:
            terms["teacher"] = (x0 - batch["latent"].flatten(0, 1).to(x0)).square().mean()
        if w["pixel"] or w["perceptual"] or w["difference"]:
            terms |= self._picture_terms(x0, batch["gt"] * 2 - 1)
        return {**terms, "loss": sum(w[name] * term for name, term in terms.items())}

    def _picture_terms(self, x0: Tensor, gt: Tensor) -> dict[str, Tensor]:
        y = self.decode(x0, gt.shape[1])
        terms = {"pixel": (y - gt).abs().mean(), "difference": frame_difference_l1(y, gt)}
        if self.weights["perceptual"]:
            terms["perceptual"] = self.perceptual(y.flatten(0, 1), gt.flatten(0, 1)).mean()
        return terms

    def losses(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        """`terms`; there are no random numbers."""
        return self.terms(batch)

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """Restore a batch in one step and decode it by frames: (B, T, 3, H, W) in [0, 1]."""
        return (self.decode(self.predict(batch), batch["gt"].shape[1]) / 2 + 0.5).clamp(0, 1)

    def configure_model(self) -> None:
        """Add the low-rank changes, after weights are loaded and before a checkpoint is read."""
        if self.rank and not self._is_low_rank():
            add_low_rank(self.model["diffusion_model"], rank=self.rank, whole=("spade", "temporal"))

    def on_fit_end(self) -> None:
        """Merge the low-rank changes into the weights, which then have the released names."""
        if self._is_low_rank():
            merge_low_rank(self.model["diffusion_model"])

    def _is_low_rank(self) -> bool:
        return any(".parametrizations." in name for name in self.model.state_dict())
