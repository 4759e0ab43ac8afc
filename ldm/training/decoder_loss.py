"""Loss of stage 2: five terms on clips for the sequence decoder, and the loss of the discriminator."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.training.consistency import consistency_loss
from ldm.training.draws import SampleDraws
from ldm.training.losses import GradientDistance, adversarial, check_finite, frame_difference_l1, hinge_discriminator

BUILDABLE = ("DecoderLoss",)  # what a configuration may name as a target

FORMS = ("paper", "released")
PARTS = ("consistency", "normalisation", "adversarial", "perceptual")  # parts that differ between the forms
RELEASED_WEIGHTS = {"l1": 1.0, "perceptual": 0.5, "difference": 0.5, "consistency": 0.5, "adversarial": 0.025}
_LARGEST_RATIO, _SMALLEST_NORM = 1e4, 1e-4  # VQGAN's


class DecoderLoss(nn.Module):
    """Loss of the reconstruction y of clips gt, both (B, T, 3, H, W) in [-1, 1]; weights named as in
    `video_vae_cfw.ckpt`.

        nll   = l1 |y - gt| + perceptual LPIPS(y, gt)
        total = nll + difference |d y - d gt| + consistency swc(y, gt) + adversarial * ratio * -D(y)

    where ratio = |gradient of nll| / |gradient of -D(y)| (VQGAN, Esser et al. 2021), d is the difference between
    neighbouring frames, and the adversarial term is active from step `start`. `form` chooses how a part is computed:

    part            paper                                   released
    consistency     the reconstruction is warped along      the target is warped along flows of the
                    flows of the target                     reconstruction, see `consistency_loss`
    normalisation   means                                   nll is divided by B T and difference by B (T-1) again
    adversarial     gradients with respect to the last      the ratio is 1 where the last layer is frozen, which is
                    layer, or to the reconstruction if      the default; the discriminator also runs before `start`,
                    that layer is frozen                    for its statistics only
    perceptual      LPIPS without dropout                   the dropout of LPIPS is active, drawn for each sample

    Args:
        discriminator: scores frames (n, 3, H, W).
        flow: estimates the flow between frames (n, 3, H, W) in [0, 1]; frozen.
        perceptual: computes distances (n, 1, 1, 1) of frames in [-1, 1]; None uses `GradientDistance`.
        weights: weights of terms that differ from `RELEASED_WEIGHTS`; a term of weight 0 is not computed.
        start: first step of the generator, counted from 0, with the adversarial term.
        form: "paper" or "released".
        exceptions: {part: form} for parts of another form.
        seed: seed of the released dropout.
    Raises:
        ValueError: an unknown term, part or form.
    """

    def __init__(
        self,
        *,
        discriminator: nn.Module,
        flow: nn.Module,
        perceptual: nn.Module | None = None,
        weights: dict[str, float] | None = None,
        start: int = 501,
        form: str = "paper",
        exceptions: dict[str, str] | None = None,
        seed: int = 23,
    ) -> None:
        super().__init__()
        self.weights = RELEASED_WEIGHTS | _known(weights or {}, tuple(RELEASED_WEIGHTS), "term")
        self.parts = dict.fromkeys(PARTS, form) | _known(exceptions or {}, PARTS, "part")
        if unknown := [word for word in self.parts.values() if word not in FORMS]:
            raise ValueError(f"got form {unknown[0]!r}, expected one of {', '.join(FORMS)}")
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=False)  # in the released file (0) but not used
        self.perceptual_loss = (perceptual or GradientDistance()).requires_grad_(False)
        self.flownet = flow.requires_grad_(False)
        self.discriminator = discriminator
        self.start, self.draws = start, SampleDraws(seed)
        self.train()

    def train(self, mode: bool = True) -> "DecoderLoss":
        """Set the mode of the discriminator; frozen networks stay in evaluation mode, but for the released dropout."""
        super().train(mode)
        self.flownet.eval()
        self.perceptual_loss.train(mode and self.parts["perceptual"] == "released")
        return self

    def active(self, step: int) -> bool:
        """Whether the adversarial term is part of the loss at this step of the generator."""
        return step >= self.start and self.weights["adversarial"] != 0

    def judges(self, step: int) -> bool:
        """Whether the discriminator runs at this step."""
        return self.active(step) or (self.parts["adversarial"] == "released" and self.weights["adversarial"] != 0)

    def distances(self, y: Tensor, gt: Tensor, *, step: int, index: Tensor | None = None) -> dict[str, Tensor]:
        """Unweighted terms except the adversarial one, with `nll` and their weighted sum `total`.

        `index` (B,) holds the sample numbers, which seed the released dropout.

        Raises:
            FloatingPointError: a term is not finite; the message names it.
        """
        y, gt, w = y.float(), gt.float(), self.weights
        terms = {"l1": check_finite((y - gt).abs().mean(), "l1", step)}
        if w["perceptual"]:
            terms["perceptual"] = check_finite(self._perceptual(y, gt, index), "perceptual", step)
        if w["difference"]:
            terms["difference"] = check_finite(frame_difference_l1(y, gt), "difference", step)
        if w["consistency"]:
            swc = consistency_loss(y, gt, self.flownet, form=self.parts["consistency"])
            terms["consistency"] = check_finite(swc, "consistency", step)
        weighted = {name: w[name] * term for name, term in terms.items()}
        frames, changes = 1, 1
        if self.parts["normalisation"] == "released":
            frames, changes = y.shape[0] * y.shape[1], max(y.shape[0] * (y.shape[1] - 1), 1)
        terms["nll"] = (weighted["l1"] + weighted.get("perceptual", 0)) / frames
        terms["total"] = terms["nll"] + weighted.get("difference", 0) / changes + weighted.get("consistency", 0)
        return terms

    def _perceptual(self, y: Tensor, gt: Tensor, index: Tensor | None) -> Tensor:
        network = self.perceptual_loss
        if not network.training or index is None:
            return network(y.flatten(0, 1), gt.flatten(0, 1)).mean()
        seeds = self.draws.below(2**31, "perceptual.dropout", index, count=1)
        gpu = {} if y.device.type == "cpu" else {"device_type": y.device.type}
        means = []
        for a, b, seed in zip(y, gt, seeds.tolist(), strict=True):
            with torch.random.fork_rng([y.device] if gpu else [], **gpu):
                torch.manual_seed(seed)
                means.append(network(a, b).mean())
        return torch.stack(means).mean()

    def generator(
        self, y: Tensor, gt: Tensor, *, step: int, last_layer: Tensor, index: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Terms of `distances` and, if the discriminator runs, `adversarial` = -D(y) and its weight `d_weight`.

        `last_layer` is the weight of the last layer of the decoder. Gradients also reach the parameters of the
        discriminator unless these are frozen.
        """
        terms = self.distances(y, gt, step=step, index=index)
        if self.judges(step):
            g = check_finite(adversarial(self.discriminator(y.float().flatten(0, 1))), "adversarial", step)
            weight = self.weights["adversarial"] * self._ratio(terms["nll"], g, y, last_layer)
            terms |= {"adversarial": g, "d_weight": weight}
            terms["total"] = terms["total"] + weight * float(self.active(step)) * g
        check_finite(terms["total"], "total", step)
        return terms

    def _ratio(self, nll: Tensor, g: Tensor, y: Tensor, last_layer: Tensor) -> Tensor:
        """|d nll| / |d g|, with gradients with respect to the weight of the last layer.

        If that is frozen, "paper" uses gradients with respect to the reconstruction, scaled as for a sum over pixels so
        that they do not depend on the picture size.
        """
        if last_layer.requires_grad:
            at, scale = last_layer, 1.0
        elif self.parts["adversarial"] == "paper":
            at, scale = y, y.numel() ** 0.5
        else:
            return torch.ones_like(nll)
        slopes = [torch.autograd.grad(term, at, retain_graph=True)[0].float().norm() * scale for term in (nll, g)]
        return (slopes[0] / (slopes[1] + _SMALLEST_NORM)).clamp(0, _LARGEST_RATIO).detach()

    def critic(self, y: Tensor, gt: Tensor, *, step: int) -> dict[str, Tensor]:
        """Hinge loss of the discriminator, `disc` (0 before `start`), and its mean scores `real` and `fake`."""
        real = self.discriminator(gt.float().flatten(0, 1))
        fake = self.discriminator(y.detach().float().flatten(0, 1))
        loss = check_finite(hinge_discriminator(real, fake), "discriminator", step)
        return {"disc": float(self.active(step)) * loss, "real": real.float().mean(), "fake": fake.float().mean()}


def _known(given: Mapping, names: tuple[str, ...], what: str) -> dict:
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"got {what} {unknown[0]!r}, expected some of {', '.join(names)}")
    return dict(given)
