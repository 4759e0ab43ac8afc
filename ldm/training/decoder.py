"""Stage 2: the sequence decoder learns to turn sampled latents and LQ features into a steady, sharp clip."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm.nets.perceptual import LPIPS
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.training.curves import StepMeans
from ldm.training.decoder_loss import DecoderLoss
from ldm.training.diffusion import enlarged
from ldm.training.losses import GradientDistance
from ldm.training.optimization import Adam

BUILDABLE = ("StageTwo",)  # what a configuration may name as a target

logger = logging.getLogger(__name__)

DECODER_PARTS = {  # names of what is trained, by choice: beginnings, and parts of which one must be in the name
    "released": (("decoder.",), ("fusion_layer", "temporal")),
    "decoder": (("decoder.", "post_quant_conv."), ("",)),
    "condition": (("decoder.",), ("condition_", "_3d")),  # of Upscale-A-Video's
}


class StageTwo(LightningModule):
    """Training of the sequence decoder against `DecoderLoss`; encoder and flow and perceptual networks stay frozen.

    Batch: `lq` (B, T, 3, h, w), `gt` (B, T, 3, H, W) in [0, 1], `latent` (B, T, 4, h', w') scaled by `scale_factor`,
    `index` (B,) the numbers of the samples. Entries of the state carry the names of `video_vae_cfw.ckpt`.

    Two optimizers take turns in every batch, the generator's first, and step after `accumulate` batches each. Only the
    steps of the generator's count as steps of the training. Both losses are of one reconstruction; the release makes
    it anew for the discriminator, which differs in the last of the accumulated batches, by one step. With that,
    several processes would not equal one that accumulates as many batches.

    Args:
        decoder: image encoder and sequence decoder.
        loss: the terms; holds the discriminator, which is always trained.
        optimizer: makes both optimizers.
        scale_factor: of the latents.
        trained: "released", the temporal and fusion layers of the decoder; "decoder", all of it.
        accumulate: batches per optimizer step.
        gradient_clip: largest norm of the gradient of each optimizer's parameters; None leaves it as it is.
    Raises:
        ValueError: an unknown `trained`, less than one batch a step, or a factor that is not above 0.
    """

    needs = ("gt", "lq", "latent")  # of a batch

    def __init__(
        self,
        decoder: SequenceAutoencoder,
        loss: DecoderLoss,
        *,
        optimizer: Adam,
        scale_factor: float,
        trained: str = "released",
        accumulate: int = 1,
        gradient_clip: float | None = None,
    ):
        super().__init__()
        if trained not in DECODER_PARTS:
            raise ValueError(f"got trained={trained!r}, expected one of {', '.join(DECODER_PARTS)}")
        if accumulate < 1 or not scale_factor > 0:
            raise ValueError(
                f"got accumulate={accumulate}, scale_factor={scale_factor}, expected at least 1 and above 0"
            )
        self.automatic_optimization = False
        self._decoder = (decoder,)  # a tuple: registered below, under the released names and in their order
        self.encoder, self.decoder, self.loss = decoder.encoder, decoder.decoder, loss
        self.quant_conv, self.post_quant_conv = decoder.quant_conv, decoder.post_quant_conv
        self.optimizer, self.scale_factor = optimizer, scale_factor
        self.accumulate, self.gradient_clip, self.means = accumulate, gradient_clip, StepMeans()
        beginnings, parts = DECODER_PARTS[trained]
        for name, parameter in self.named_parameters():
            chosen = name.startswith(beginnings) and any(part in name for part in parts)
            parameter.requires_grad_(chosen or name.startswith("loss.discriminator."))

    def reconstruct(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, 3, H, W) around [-1, 1] from latents and LQ features, in float32.

        LQ is enlarged and clamped as at inference; the release leaves the bicubic overshoot in here. Raises ValueError
        for latents of another size than these networks give the frames.
        """
        (decoder,) = self._decoder
        (height, width), (h, w), f = batch["gt"].shape[-2:], batch["latent"].shape[-2:], decoder.downsampling
        if (h * f, w * f) != (height, width):
            what = f"got latents of {w}x{h} for frames of {width}x{height}, expected 1/{f} of their sides"
            raise ValueError(f"{what}; make them with the stage-1 model that this decoder is for")
        with torch.no_grad():
            features = decoder.features(enlarged(batch))
        z, frames = batch["latent"].flatten(0, 1) / self.scale_factor, batch["gt"].shape[1]
        return decoder.decode(z, features, num_frames=frames).unflatten(0, (-1, frames)).float()

    def training_step(self, batch: dict[str, Tensor], _number: int) -> None:
        seen = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1  # in all epochs, resumed ones too
        step, stepping = self.global_step, seen % self.accumulate == 0
        generator, critic = (
            self.optimizers()[0],
            self.optimizers(use_pl_optimizer=False)[1],
        )  # the raw one is not counted
        gt, y = batch["gt"] * 2 - 1, self.reconstruct(batch)
        with _frozen(self.loss.discriminator):
            last_layer = self.decoder.conv_out.weight
            terms = self.loss.generator(y, gt, step=step, last_layer=last_layer, index=batch.get("index"))
            self._learn(terms["total"], generator, stepping)
        if self.loss.judges(step):
            judged = self.loss.critic(y, gt, step=step)
            self._learn(judged["disc"], critic, stepping)
            terms |= judged
        self.means.add(terms)
        if stepping:
            self._end_step()

    def _learn(self, loss: Tensor, optimizer: torch.optim.Optimizer, stepping: bool) -> None:
        self.manual_backward(loss / self.accumulate)
        if stepping:
            if self.gradient_clip is not None:
                self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _end_step(self) -> None:
        for rate in self.lr_schedulers() or []:
            rate.step()
        means = {f"train/{name}": value for name, value in self.means.flush().items()}
        self.log_dict({**means, "step": float(self.global_step)}, sync_dist=True, batch_size=1)

    def validation_step(self, batch: dict[str, Tensor], _number: int) -> None:
        y, gt = self.reconstruct(batch), batch["gt"] * 2 - 1
        terms = self.loss.distances(y, gt, step=self.global_step)
        error = (y.clamp(-1, 1) - gt).square().mean() / 4  # of [0, 1]
        means = {"val/l1": terms["l1"], "val/loss": terms["total"], "val/psnr": -10 * error.clamp_min(1e-10).log10()}
        self.log_dict({**means, "step": float(self.global_step)}, sync_dist=True, batch_size=len(gt))

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, 3, H, W) in [0, 1]."""
        return (self.reconstruct(batch) / 2 + 0.5).clamp(0, 1)

    def on_fit_start(self) -> None:
        """Refuse what would go wrong silently, say which perceptual term there is, have curves drawn by steps."""
        if str(self.trainer.precision).startswith("16"):
            # a gradient scaler would not see the discriminator's optimizer
            raise ValueError(f"got precision {self.trainer.precision}, expected 32 or bf16-mixed; stage 2 cannot scale")
        self.trainer.log_every_n_steps *= self.accumulate  # Lightning counts batches where it does not optimize itself
        network = self.loss.perceptual_loss
        if not self.loss.weights["perceptual"]:
            logger.warning("stage 2 trains without a perceptual term: its weight is 0")
        elif isinstance(network, GradientDistance):
            logger.warning("no LPIPS weights are given: the perceptual term of stage 2 is GradientDistance")
        elif isinstance(network, LPIPS) and not network.heads_trained():
            raise ValueError("got LPIPS with random weights, expected trained ones; name their files in `init`")

    def configure_optimizers(self) -> list[dict]:
        critic = list(self.loss.discriminator.parameters())
        own = {id(parameter) for parameter in critic}
        return [self.optimizer(p for p in self.parameters() if id(p) not in own), self.optimizer(critic)]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for a module's parameters; they still pass through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
