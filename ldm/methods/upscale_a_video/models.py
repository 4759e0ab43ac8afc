"""The two networks of Upscale-A-Video for one clip: velocities that are guided by words, and frames from latents."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ldm.diffusion.classifier_free import guided
from ldm.methods.upscale_a_video.settings import ClipSampling, Words


class PromptedDenoiser:
    """The U-Net with the words of a clip, whose two halves share a call.

    Args:
        unet: `ldm.nets.video_unet.UNetVideoModel`.
        text: the text tower; called without tokens where `words` have no tokenizer.
        sampling: guidance scale and noise levels.
        words: tokenizer and negative prompt.
        prompts: of the scenes of the clip, at least one.
        dtype: of autocast for the network; None disables it.
    """

    def __init__(
        self,
        unet: nn.Module,
        text: nn.Module,
        *,
        sampling: ClipSampling,
        words: Words,
        prompts: Sequence[str],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.unet, self.text, self.sampling, self.words = unet, text, sampling, words
        self.prompts, self.dtype = list(prompts), dtype
        self._known: dict[str, Tensor] = {}

    def velocity(self, x: Tensor, noised: Tensor, *, t: int, scene: int = 0, label: int | None = None) -> Tensor:
        """Guided prediction (B, T, c, h, w) at time step t; `label` None: the noise level of the settings."""
        scale, scene = self.sampling.guidance_scale, min(scene, len(self.prompts) - 1)
        positive = self.context(self.prompts[scene], x.device)
        negative = self.context(self.words.negative_prompt or "", x.device) if scale > 1 else None
        call = partial(self._call, t=t, label=self.sampling.label if label is None else label)
        return guided(call, positive=positive, negative=negative, scale=scale)(x, noised)

    def _call(self, x: Tensor, noised: Tensor, *, context: Tensor, t: int, label: int) -> Tensor:
        step, level = (torch.full((1,), value, device=x.device) for value in (t, label))
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            return self.unet(x, noised, step, context, level).float()

    def context(self, prompt: str, device: torch.device) -> Tensor:
        """The embedding (1, tokens, channels) of a prompt, encoded once for all windows and steps."""
        if prompt not in self._known:
            tokenizer = self.words.tokenizer
            made = self.text() if tokenizer is None else self.text(tokenizer([prompt]).to(device))
            self._known[prompt] = made.to(device)
        return self._known[prompt]


class LatentDecoder:
    """The decoder of either autoencoder.

    Args:
        autoencoder: `ldm.nets.video_vae.AutoencoderKLVideo`.
        scale_factor: latents are this times what the decoder takes.
        condition: weight of the low-resolution frames.
        dtype: of autocast; None disables it.
    """

    def __init__(
        self, autoencoder: nn.Module, *, scale_factor: float, condition: float, dtype: torch.dtype | None = None
    ) -> None:
        self.autoencoder, self.scale_factor = autoencoder, scale_factor
        self.condition, self.dtype = condition, dtype

    def decode(self, z: Tensor, low: Tensor) -> Tensor:
        """Latents (B, T, c, h, w) and clean low-resolution frames in [0, 1] -> (B, T, 3, f h, f w) in [-1, 1]."""
        with torch.autocast(z.device.type, self.dtype, enabled=self.dtype is not None):
            out = self.autoencoder.decode(z / self.scale_factor, low * 2 - 1, weight=self.condition)
        return out.float().clamp(-1, 1)
