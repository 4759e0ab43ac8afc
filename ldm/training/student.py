"""Distillation to one step: the U-Net maps the LR latents themselves to clean ones.

After DOVE (Chen et al. 2025): the LR latents stand in for the noised latents of one fixed time step, so nothing random
is drawn, and x0 follows from the prediction as for any noised latents.
"""

from collections.abc import Mapping

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm.diffusion.denoiser import to_x0
from ldm.diffusion.schedule import Schedule
from ldm.nets.lora import add_low_rank, merge_low_rank
from ldm.ops.resize import resize
from ldm.training.curves import StepMeans
from ldm.training.losses import check_finite, frame_difference_l1
from ldm.training.optimization import Adam

BUILDABLE = ("OneStep", "StudentTraining")  # what a configuration may name as a target

WEIGHTS = {"latent": 1.0, "teacher": 0.5, "pixel": 0.0, "perceptual": 0.0, "difference": 0.0}


class OneStep:
    """The one step: LR latents stand for the noised latents of the time step `level` (399 in DOVE).

    Args:
        prediction: what the U-Net predicts.
        level: of the 1000 time steps of Stable Diffusion.
    Raises:
        ValueError: another time step.
    """

    def __init__(self, *, prediction: str = "v", level: int = 399) -> None:
        self.schedule, self.prediction, self.level = Schedule.linear_sd(), prediction, level
        if not 0 <= level < len(self.schedule):
            raise ValueError(f"got level={level}, expected 0 to {len(self.schedule) - 1}")

    def x0(self, guess: Tensor, z: Tensor) -> Tensor:
        """The clean latents that the U-Net's guess means for LR latents z; both (n, c, h, w) float32."""
        return to_x0(guess, z, self.schedule, self.level, self.prediction)


class StudentTraining(LightningModule):
    """Regression of clean latents in one step. Submodules carry the names of the released stage-1 file.

        loss = latent |x0 - z_gt|^2 + teacher |x0 - z_teacher|^2 + pixel |y - gt| + perceptual d(y, gt)
               + difference |dy - dgt|

    with y the image decoder's frames of x0, and d the change from frame to frame. A term of weight 0 is left out, and
    frames are only decoded where some term needs them.

    Batch: `lq` (B, T, 3, h, w) and `gt` (B, T, 3, H, W) in [0, 1], `latent` (B, T, c, h', w') the teacher's samples,
    scaled; the last only where the weight of `teacher` is not 0.

    Args:
        networks: unet and structure, which start as the teacher's; autoencoder and text, which stay frozen.
        step: which time step the LR latents stand for, and what the U-Net predicts.
        optimizer: makes the optimizer.
        scale_factor: of the latents.
        weights: of the terms, where they are not those of `WEIGHTS`.
        perceptual: distances (n, 1, 1, 1) of frames in [-1, 1].
        rank: of the low-rank changes that the U-Net's attention and convolutions learn, while SPADE and the temporal
            layers learn as they are; 0 trains every weight. They are merged into the weights at the end.
        accumulate: batches per optimizer step (the Trainer accumulates; this is for the curves).
    Raises:
        ValueError: an unknown term, a negative rank, or a perceptual weight without a network.
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
        super().__init__()
        if rank < 0:
            raise ValueError(f"got rank={rank}, expected at least 0")
        if unknown := sorted(set(weights or {}) - set(WEIGHTS)):
            raise ValueError(f"got weight {unknown[0]!r}, expected some of {', '.join(WEIGHTS)}")
        self.weights = WEIGHTS | dict(weights or {})
        if self.weights["perceptual"] and perceptual is None:
            raise ValueError("got a weight for the perceptual term without a network, expected `perceptual`")
        self.model = nn.ModuleDict({"diffusion_model": networks["unet"]})
        self.first_stage_model = networks["autoencoder"].requires_grad_(False)
        self.structcond_stage_model = networks["structure"]
        self.cond_stage_model = nn.ModuleDict({"model": networks["text"].requires_grad_(False)})
        self.perceptual, self.optimizer, self.scale_factor = perceptual, optimizer, scale_factor
        self.step, self.rank = step, rank
        self.accumulate, self.means = accumulate, StepMeans()
        self.needs = ("gt", "lq", "latent") if self.weights["teacher"] else ("gt", "lq")  # of a batch

    def latents(self, frames: Tensor) -> Tensor:
        """The scaled posterior means of frames (B, T, 3, H, W) in [0, 1]: (B*T, c, h, w), without a gradient."""
        with torch.no_grad():
            moments = self.first_stage_model.encode(frames.flatten(0, 1) * 2 - 1)
            return (self.first_stage_model.posterior(moments).mean * self.scale_factor).float()

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        """The clean latents (B*T, c, h, w), scaled, that the U-Net makes of the LQ frames."""
        z = self.latents(resize(batch["lq"], batch["gt"].shape[-2:]).clamp(0, 1))
        t = torch.tensor([self.step.level], device=z.device)
        context = self.cond_stage_model["model"]().to(z)
        maps = self.structcond_stage_model(z, t)
        guess = self.model["diffusion_model"](z, t, context, maps, num_frames=batch["lq"].shape[1])
        return self.step.x0(guess.float(), z)

    def decode(self, x0: Tensor, frames: int) -> Tensor:
        """Frames (B, T, 3, H, W) around [-1, 1] of scaled latents, by the image decoder."""
        return self.first_stage_model.decode(x0 / self.scale_factor).float().unflatten(0, (-1, frames))

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss, unweighted, and their weighted sum `loss`."""
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

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        terms = self.terms(batch)
        check_finite(terms["loss"], "student", self.global_step)
        self.means.log_batch(self, terms, number)
        return terms["loss"]

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, 3, H, W) in [0, 1], in one step, decoded frame by frame."""
        return (self.decode(self.predict(batch), batch["gt"].shape[1]) / 2 + 0.5).clamp(0, 1)

    def configure_model(self) -> None:
        """Add the low-rank changes: behind what fills the weights, before a checkpoint is read."""
        if self.rank and not self._is_low_rank():
            add_low_rank(self.model["diffusion_model"], rank=self.rank, whole=("spade", "temporal"))

    def on_fit_end(self) -> None:
        """Merge the low-rank changes, so that the weights have the released names again."""
        if self._is_low_rank():
            merge_low_rank(self.model["diffusion_model"])

    def _is_low_rank(self) -> bool:
        return any(".parametrizations." in name for name in self.model.state_dict())

    def configure_optimizers(self) -> dict:
        return self.optimizer(self.parameters())
