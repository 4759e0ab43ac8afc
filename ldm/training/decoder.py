"""Stage 2: training of the sequence decoder, which decodes sampled latents with features of the LQ frames."""

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

DRAWN = 2**20  # resolution of a drawn probability
DECODER_PARTS = {  # trained parameters of each choice: prefixes, and substrings of which the name must contain one
    "released": (("decoder.",), ("fusion_layer", "temporal")),
    "decoder": (("decoder.", "post_quant_conv."), ("",)),
    "condition": (("decoder.",), ("condition_", "_3d")),  # of Upscale-A-Video's
    "features": (("decoder.", "post_quant_conv.", "encoder."), ("",)),
}


class StageTwo(LightningModule):
    """Train the sequence decoder on `DecoderLoss`; the encoder, the flow and the perceptual network are frozen.

    A batch holds `lq` (B, T, 3, h, w) and `gt` (B, T, 3, H, W) in [0, 1], `latent` (B, T, 4, h', w') scaled by
    `scale_factor`, and `index` (B,), the sample numbers. Weights have the names of `video_vae_cfw.ckpt`.

    The optimizers of the generator and of the discriminator alternate in every batch, in this order, and each steps
    after `accumulate` batches; only steps of the generator count as training steps. Both losses use the same
    reconstruction. The released code computes it again for the discriminator, which differs in the last accumulated
    batch, after the generator's step; several processes would then not equal one that accumulates as many batches.

    Args:
        decoder: image encoder and sequence decoder.
        loss: loss terms; contains the discriminator, which is always trained.
        optimizer: builds both optimizers.
        scale_factor: factor of the latents.
        trained: "released", the temporal and fusion layers of the decoder; "decoder", the whole decoder;
            "features", also the encoder of the LQ features, if a linear path computes the latents.
        accumulate: batches per optimizer step.
        gradient_clip: maximum gradient norm of the parameters of each optimizer; None does not clip.
        drop_features: fraction of the batches decoded without LQ features, so that latents have to carry detail.
    Raises:
        ValueError: an unknown `trained`, `accumulate` below 1, `scale_factor` not above 0, or
            `drop_features` outside [0, 1].
    """

    needs = ("gt", "lq", "latent")  # keys of a batch

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
        drop_features: float = 0.0,
    ):
        super().__init__()
        if not 0 <= drop_features <= 1:
            raise ValueError(f"got drop_features={drop_features}, expected a probability from 0 to 1")
        self.drop_features = drop_features
        if trained not in DECODER_PARTS:
            raise ValueError(f"got trained={trained!r}, expected one of {', '.join(DECODER_PARTS)}")
        if accumulate < 1 or not scale_factor > 0:
            got = f"accumulate={accumulate}, scale_factor={scale_factor}"
            raise ValueError(f"got {got}, expected at least 1 and above 0")
        self.automatic_optimization = False
        self._decoder = (decoder,)  # a tuple, since its parts are registered below under the released names
        self.encoder, self.decoder, self.loss = decoder.encoder, decoder.decoder, loss
        self.quant_conv, self.post_quant_conv = decoder.quant_conv, decoder.post_quant_conv
        self.linear = getattr(decoder, "linear", None)
        self.optimizer, self.scale_factor = optimizer, scale_factor
        self.accumulate, self.gradient_clip, self.means = accumulate, gradient_clip, StepMeans()
        beginnings, parts = DECODER_PARTS[trained]
        for name, parameter in self.named_parameters():
            chosen = name.startswith(beginnings) and any(part in name for part in parts)
            parameter.requires_grad_(chosen or name.startswith("loss.discriminator."))

    def reconstruct(self, batch: dict[str, Tensor], *, fusion_w: float = 1.0) -> Tensor:
        """Decode the latents with LQ features: (B, T, 3, H, W) float32, about [-1, 1].

        If `fusion_w` is 0, the features are not computed. LQ frames are enlarged and clamped as at inference; the
        released code does not clamp the bicubic overshoot here.

        Raises:
            ValueError: the latents do not have the size that the encoder gives these frames.
        """
        (decoder,) = self._decoder
        (height, width), (h, w), f = batch["gt"].shape[-2:], batch["latent"].shape[-2:], decoder.downsampling
        if (h * f, w * f) != (height, width):
            what = f"got latents of {w}x{h} for frames of {width}x{height}, expected 1/{f} of their sides"
            raise ValueError(f"{what}; sample them with the stage-1 model of this decoder")
        features = decoder.features(enlarged(batch)) if fusion_w else None
        z, frames = batch["latent"].flatten(0, 1) / self.scale_factor, batch["gt"].shape[1]
        return decoder.decode(z, features, num_frames=frames, fusion_w=fusion_w).unflatten(0, (-1, frames)).float()

    def fusion_weight(self, index: Tensor) -> float:
        """The weight of the LQ features in the batch of these samples: 1, or 0 where they are dropped."""
        if not self.drop_features:
            return 1.0
        drawn = self.loss.draws.below(DRAWN, "features", index[:1], count=1).item()
        return float(drawn >= self.drop_features * DRAWN)

    def training_step(self, batch: dict[str, Tensor], _number: int) -> None:
        seen = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1  # in all epochs, those before a resume included
        step, stepping = self.global_step, seen % self.accumulate == 0
        generator = self.optimizers()[0]
        critic = self.optimizers(use_pl_optimizer=False)[1]  # steps of the raw optimizer are not counted
        gt, y = batch["gt"] * 2 - 1, self.reconstruct(batch, fusion_w=self.fusion_weight(batch["index"]))
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
            for rate in self.lr_schedulers() or []:
                rate.step()
            self.log_dict({**self.means.flush(), "step": float(self.global_step)}, sync_dist=True, batch_size=1)

    def _learn(self, loss: Tensor, optimizer: torch.optim.Optimizer, stepping: bool) -> None:
        self.manual_backward(loss / self.accumulate)
        if stepping:
            if self.gradient_clip is not None:
                self.clip_gradients(optimizer, gradient_clip_val=self.gradient_clip, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def validation_step(self, batch: dict[str, Tensor], _number: int) -> None:
        y, gt = self.reconstruct(batch), batch["gt"] * 2 - 1
        terms = self.loss.distances(y, gt, step=self.global_step)
        error = (y.clamp(-1, 1) - gt).square().mean() / 4  # of [0, 1]
        means = {"val/l1": terms["l1"], "val/loss": terms["total"], "val/psnr": -10 * error.clamp_min(1e-10).log10()}
        self.log_dict({**means, "step": float(self.global_step)}, sync_dist=True, batch_size=len(gt))

    @torch.no_grad()
    def restore(self, batch: dict[str, Tensor]) -> Tensor:
        """`reconstruct` as pixels: (B, T, 3, H, W) in [0, 1]."""
        return (self.reconstruct(batch) / 2 + 0.5).clamp(0, 1)

    def on_fit_start(self) -> None:
        """Check the precision and the perceptual network, and make Lightning log by optimizer steps.

        Raises:
            ValueError: precision 16-mixed, or LPIPS without trained weights.
        """
        if str(self.trainer.precision).startswith("16"):
            # a gradient scaler would not see the discriminator's optimizer
            raise ValueError(f"got precision {self.trainer.precision}, expected 32 or bf16-mixed; stage 2 cannot scale")
        self.trainer.log_every_n_steps *= self.accumulate  # with manual optimization Lightning counts batches
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
    """Compute no gradients for the parameters of a module; gradients still pass through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
