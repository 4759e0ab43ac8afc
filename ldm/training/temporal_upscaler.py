"""Stage 1 of Upscale-A-Video: training of temporal layers that are added to a frozen x4 upscaler.

The release contains no training code; this follows the paper (Zhou et al. 2024, sections 3.2 and 4.1).
"""

import torch
from torch import Tensor, nn

from ldm.diffusion.refined import sample_refined
from ldm.diffusion.schedule import upscaler_schedule
from ldm.diffusion.spacing import spaced, timesteps_from_end
from ldm.training.denoising import DenoiserTraining
from ldm.training.draws import SampleDraws, clip_latents
from ldm.training.optimization import Adam

BUILDABLE = ("TemporalUpscaling", "UpscalingObjective")

PREVIEW_LEVEL = 20  # noise level of the low-resolution frames in pictures, the pipeline's default
_PARTS = 10_000  # resolution of drawn probabilities


def is_temporal(name: str) -> bool:
    """Whether a weight of `UNetVideoModel` is not in the x4 upscaler.

    Selecting by "temporal" alone, as in the released code, misses the spatial blocks and `shift_conv` of the temporal
    modules (U10).
    """
    return "temporal" in name or "temp_block" in name


TRAINED_PARTS = {"temporal": is_temporal, "image": lambda name: not is_temporal(name), "all": lambda name: True}


def single_frames(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with each frame as a clip of its own: values (B, T, ...) -> (B T, 1, ...), `index` n -> n T + t."""
    frames = batch["gt"].shape[1]
    clips = {name: batch[name].flatten(0, 1)[:, None] for name in ("gt", "lq")}
    numbers = batch["index"][:, None] * frames + torch.arange(frames, device=batch["index"].device)
    rows = {name: value.repeat_interleave(frames, 0) for name, value in batch.items() if name not in (*clips, "index")}
    return rows | clips | {"index": numbers.flatten()}


class UpscalingObjective:
    """Draws for each clip a time step, the noise of its latents and the noise level of its low-resolution frames.

    Args:
        highest_noise: largest noise level; a level from 0 is drawn for each clip and given to the network.
        caption_dropout: probability of replacing a caption by the empty one, as needed for guidance.
        seed: seed of all draws.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, *, highest_noise: int = 350, caption_dropout: float = 0.1, seed: int = 23) -> None:
        if not 0 <= highest_noise < 1000 or not 0 <= caption_dropout <= 1:
            raise ValueError(
                f"got highest_noise={highest_noise} and caption_dropout={caption_dropout}, expected 0 to 999 and 0 to 1"
            )
        self.schedule = upscaler_schedule()
        self.highest_noise, self.caption_dropout, self.draws = highest_noise, caption_dropout, SampleDraws(seed)

    def normal(self, purpose: str, index: Tensor, like: Tensor) -> Tensor:
        """Standard normal numbers with the shape of clips `like` (B, T, ...)."""
        return self.draws.normal(purpose, index, like.flatten(0, 1)).view_as(like)

    def steps(self, purpose: str, index: Tensor) -> Tensor:
        """Draw time steps (B,)."""
        return self.draws.below(len(self.schedule), f"{purpose}.t", index, count=1)

    def levels(self, purpose: str, index: Tensor) -> Tensor:
        """Draw noise levels (B,)."""
        return self.draws.below(self.highest_noise + 1, f"{purpose}.level", index, count=1)

    def dropped(self, purpose: str, index: Tensor) -> Tensor:
        """Draw which captions are dropped, (B,) bool."""
        limit = round(self.caption_dropout * _PARTS)
        return self.draws.below(_PARTS, f"{purpose}.caption", index, count=1) < limit

    def noised_frames(self, lq: Tensor, level: Tensor, purpose: str, index: Tensor) -> Tensor:
        """Add noise of the levels (B,) to low-resolution frames (B, T, 3, h, w), from [0, 1] to [-1, 1]."""
        frames = lq * 2 - 1
        return self.schedule.add_noise(frames, self.normal(f"{purpose}.lq", index, frames), level)


class TemporalUpscaling(DenoiserTraining):
    """Train a video denoiser to predict the velocity of latents, given noisy low-resolution frames and a caption.

    A batch holds `gt` (B, T, 3, f h, f w) and `lq` (B, T, 3, h, w) in [0, 1], where f is the factor of the autoencoder,
    `index` (B,), the sample numbers, and optionally `tokens` (B, length), the token ids of the captions.

    Args:
        networks: "unet" (trained), "autoencoder" and "text" (frozen).
        objective: draws time steps, noise and noise levels.
        trained: "temporal", the weights selected by `is_temporal`; "image", all others, on single frames; "all", the
            whole U-Net.
        optimizer, scale_factor, accumulate, preview_steps: as for `DenoiserTraining`.
    Raises:
        ValueError: an unknown `trained`, noise levels that the network does not support, or as for `DenoiserTraining`.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        *,
        objective: UpscalingObjective,
        optimizer: Adam,
        scale_factor: float = 0.08333,
        trained: str = "temporal",
        accumulate: int = 1,
        preview_steps: int = 10,
    ) -> None:
        super().__init__(
            optimizer=optimizer, scale_factor=scale_factor, accumulate=accumulate, preview_steps=preview_steps
        )
        if trained not in TRAINED_PARTS:
            raise ValueError(f"got trained={trained!r}, expected one of {', '.join(TRAINED_PARTS)}")
        self.unet = networks["unet"]
        self.vae = networks["autoencoder"].requires_grad_(False)
        self.text_encoder = networks["text"].requires_grad_(False)
        if objective.highest_noise > self.unet.max_noise_level:
            raise ValueError(
                f"got highest_noise={objective.highest_noise}, expected at most {self.unet.max_noise_level}"
            )
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(TRAINED_PARTS[trained](name))
        self.objective, self.split = objective, trained == "image"

    def latents(self, batch: dict[str, Tensor]) -> Tensor:
        """Scaled posterior samples of the GT frames, (B, T, c, h, w) float32."""
        return clip_latents(self.vae, batch, self.objective.draws).float() * self.scale_factor

    @torch.no_grad()
    def context(self, batch: dict[str, Tensor], purpose: str) -> Tensor:
        """Text embeddings (1 | B, length, channels) of the captions, or of the empty text if dropped or missing."""
        if "tokens" not in batch:
            return self.text_encoder()
        tokens = batch["tokens"]
        dropped = self.objective.dropped(purpose, batch["index"]).to(tokens.device)
        return self.text_encoder(torch.where(dropped[:, None], self.text_encoder.empty_prompt().to(tokens), tokens))

    def losses(self, batch: dict[str, Tensor], purpose: str) -> dict[str, Tensor]:
        """Mean squared error of the velocity at a time step and a noise level drawn for each clip."""
        batch = single_frames(batch) if self.split else batch
        objective, index, z = self.objective, batch["index"], self.latents(batch)
        i, level = objective.steps(purpose, index), objective.levels(purpose, index)
        noise = objective.normal(f"{purpose}.noise", index, z)
        low_res = objective.noised_frames(batch["lq"], level, purpose, index)
        context = self.context(batch, purpose).to(z.device)
        prediction = self.unet(objective.schedule.add_noise(z, noise, i), low_res, i, context, level)
        return {"loss": (prediction.float() - objective.schedule.velocity(z, noise, i)).square().mean()}

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """Sample in a few steps without guidance or caption and decode as one chunk: (B, T, 3, f h, f w) in [0, 1]."""
        objective, index = self.objective, batch["index"]
        level = torch.full_like(index, min(PREVIEW_LEVEL, objective.highest_noise))
        low_res = objective.noised_frames(batch["lq"], level, "preview", index)
        context = self.text_encoder().to(low_res.device)
        b, frames, _, h, w = low_res.shape
        start = objective.normal("preview.start", index, low_res.new_empty(b, frames, self.unet.out_channels, h, w))
        steps = spaced(objective.schedule, timesteps_from_end(self.preview_steps, len(objective.schedule)))

        def predict(x: Tensor, t: int) -> Tensor:
            return self.unet(x, low_res, torch.tensor([t], device=x.device), context, level).float()

        z = sample_refined(predict, start, steps)
        decoded = self.vae.decode(z / self.scale_factor, batch["lq"] * 2 - 1).float()
        return (decoded / 2 + 0.5).clamp(0, 1)
