"""Stage 2: the sequence decoder learns to turn sampled latents and LQ features into a steady, sharp clip."""

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm.nets.discriminator import PatchGAN
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.ops.resize import resize
from ldm.training.autoencoder import cosine_adam
from ldm.training.losses import adversarial, check_finite, frame_difference_l1, gradient_l1, hinge_discriminator


class StageTwo(LightningModule):
    """L1 + gradient L1 + frame difference + adversarial loss from `adversarial_start` on. The encoder stays frozen.

    Batch: `lq` (B, T, 3, h, w), `gt` (B, T, 3, H, W) in [0, 1] and `latent` (B, T, 4, h, w), scaled by `scale_factor`.
    `weights` names the terms: gradient, difference, adversarial. The file written holds the decoder under its released
    names (`encoder.`, `decoder.`, `quant_conv.`, `post_quant_conv.`) and the discriminator under `loss.discriminator.`.
    It stops by itself after `steps` batches: Lightning's `max_steps` counts the steps of both optimizers.
    """

    def __init__(
        self,
        decoder: SequenceAutoencoder,
        discriminator: PatchGAN,
        *,
        scale_factor: float,
        weights: dict[str, float],
        adversarial_start: int,
        lr: float,
        steps: int,
    ):
        super().__init__()
        self.automatic_optimization = False
        self._networks = (decoder, discriminator)  # a tuple: registered below, under the released names only
        self.encoder = decoder.encoder.requires_grad_(False)
        self.quant_conv = decoder.quant_conv.requires_grad_(False)
        self.decoder, self.post_quant_conv = decoder.decoder, decoder.post_quant_conv
        self.loss = nn.ModuleDict({"discriminator": discriminator})
        self.scale_factor, self.weights, self.adversarial_start = scale_factor, weights, adversarial_start
        self.lr, self.steps = lr, steps

    def reconstruct(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, 3, H, W) in [-1, 1] from latents and LQ features."""
        decoder = self._networks[0]
        lq = resize(batch["lq"], batch["gt"].shape[-2:]).clamp(0, 1).flatten(0, 1) * 2 - 1
        with torch.no_grad():
            _, features = decoder.encode(lq)
        z = batch["latent"].flatten(0, 1) / self.scale_factor
        frames = batch["gt"].shape[1]
        return decoder.decode(z, features, num_frames=frames).unflatten(0, (-1, frames)).float()

    def training_step(self, batch: dict[str, Tensor], _index: int) -> None:
        generator, critic = self.optimizers()
        discriminator = self.loss["discriminator"]
        y, gt = self.reconstruct(batch), batch["gt"] * 2 - 1
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        terms = {
            "l1": (y - gt).abs().mean(),
            "gradient": gradient_l1(y, gt),
            "difference": frame_difference_l1(y, gt),
        }
        active = step >= self.adversarial_start
        if active:
            discriminator.requires_grad_(False)
            terms["adversarial"] = adversarial(discriminator(y.flatten(0, 1)))
            discriminator.requires_grad_(True)
        for name, term in terms.items():
            check_finite(term, name, step)
        self._update(generator, sum(self.weights.get(name, 1.0) * term for name, term in terms.items()))
        if active:
            real, fake = discriminator(gt.flatten(0, 1)), discriminator(y.detach().flatten(0, 1))
            terms["discriminator"] = check_finite(hinge_discriminator(real, fake), "discriminator", step)
            self._update(critic, terms["discriminator"])
        for schedule in self.lr_schedulers():
            schedule.step()
        self.log_dict({k: v.detach() for k, v in terms.items()}, prog_bar=True)
        if step + 1 >= self.steps:
            self.trainer.should_stop = True

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()

    def configure_optimizers(self) -> list[dict]:
        generator = [p for p in self._networks[0].parameters() if p.requires_grad]
        return [
            cosine_adam(generator, self.lr, self.steps),
            cosine_adam(list(self.loss.parameters()), self.lr, self.steps, betas=(0.5, 0.9)),
        ]
