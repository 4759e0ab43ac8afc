"""Motion guidance (MGLD-VSR): reduce the differences between latents of neighbouring frames along the optical flow.

The energy is the L1 distance between each frame and its warped neighbours, in both directions. It has two forms:
"paper", as in the paper (Yang et al., ECCV 2024), and "released", as in the released code.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.ops.flow import Motion, flow_warp, warp_validity

_FORMS = ("paper", "released")
_OCCLUSION = ("masked", "visible", "border", "none")
_REDUCTIONS = ("sum", "mean")
_SMALLEST_RESIDUAL = 1e-6  # keeps 1/|residual| finite; latents are of unit scale


def _check_word(value: str, known: tuple[str, ...], what: str) -> None:
    """Raise ValueError unless `value` is in `known`."""
    if value not in known:
        raise ValueError(f"got {what} {value!r}, expected one of {known}")


def _pair_weights(motion: Motion, occlusion: str = "masked") -> tuple[Tensor, Tensor]:
    """Return weights 0 or 1 for each pair of frames, (B, T-1, 1, h, w), for to_next and for to_prev.

    "masked" excludes the occluded pixels of `motion`; "border" excludes pixels whose flow leaves the image; "visible"
    excludes both; "none" excludes nothing.
    """
    _check_word(occlusion, _OCCLUSION, "occlusion")
    weights = []
    for flow, occluded in ((motion.to_next, motion.occluded_next), (motion.to_prev, motion.occluded_prev)):
        keep = torch.ones_like(flow[:, :, :1], dtype=torch.float32)
        if occlusion in ("masked", "visible"):
            keep = keep * (1 - occluded.to(keep))
        if occlusion in ("border", "visible"):
            keep = keep * warp_validity(flow.flatten(0, 1)).unflatten(0, flow.shape[:2])
        weights.append(keep)
    return weights[0], weights[1]


def _warp_pairs(latents: Tensor, flow: Tensor) -> Tensor:
    """Warp latents (B, P, C, h, w) along flows (B, P, 2, h, w)."""
    return flow_warp(latents.flatten(0, 1), flow.flatten(0, 1)).unflatten(0, latents.shape[:2])


def _paper_residuals(latents: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """Return warped neighbour minus frame, for frames 0..T-2 (next neighbour) and 1..T-1 (previous)."""
    to_next = _warp_pairs(latents[:, 1:], motion.to_next) - latents[:, :-1]
    return to_next, _warp_pairs(latents[:, :-1], motion.to_prev) - latents[:, 1:]


def _released_residuals(latents: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """Return the residuals as released (bug B1): each neighbour is warped with the flow of the next pair.

    Frame i is compared with frame i+1 warped by flow i+1 -> i+2, and with frame i-1 warped by flow i-1 -> i-2. If there
    is no next pair, it is compared with zero, which shrinks frames T-2 and 1.
    """
    after = _warp_pairs(latents[:, 1:-1], motion.to_next[:, 1:])
    before = _warp_pairs(latents[:, 1:-1], motion.to_prev[:, :-1])
    nothing = torch.zeros_like(latents[:, :1])
    to_next = torch.cat([after, nothing], 1) - latents[:, :-1]
    return to_next, torch.cat([nothing, before], 1) - latents[:, 1:]


def _check_clip(latents: Tensor, motion: Motion) -> None:
    """Raise ValueError unless the shapes of `motion` and `latents` match."""
    b, frames, _, h, w = latents.shape
    for field, channels in zip(motion, (2, 2, 1, 1), strict=True):
        if tuple(field.shape) != (b, frames - 1, channels, h, w):
            raise ValueError(
                f"got motion {tuple(field.shape)} for latents {tuple(latents.shape)}, "
                f"expected {(b, frames - 1, channels, h, w)}; resize or crop the motion to the latents"
            )


def motion_loss(
    latents: Tensor,
    motion: Motion,
    *,
    form: str = "paper",
    occlusion: str = "masked",
    emphasis: Tensor | None = None,
) -> Tensor:
    """Return the distance of latents (B, T, C, h, w) from motion along `motion`: a float32 scalar, 0 for one frame.

    It is the sum over pairs of frames and both directions of mean |weight * residual|, a mean over clips, channels and
    all pixels. `form="paper"` compares each frame with its warped neighbour; `form="released"` is
    `compute_temporal_condition_v4` of the released code (its v3 with `occlusion="border"`). Weights are those of
    `occlusion` ("masked", "visible", "border" or "none"), times `emphasis` (B, T, 1 | C, h, w) of the frame if given.

    Raises ValueError for an unknown word or shapes that do not match.
    """
    _check_word(form, _FORMS, "form")
    _check_clip(latents, motion)
    latents = latents.float()
    if latents.shape[1] < 2:
        return 0 * latents.sum()
    residuals = (_paper_residuals if form == "paper" else _released_residuals)(latents, motion)
    weights = _pair_weights(motion, occlusion)
    if emphasis is not None:
        weights = (weights[0] * emphasis[:, :-1], weights[1] * emphasis[:, 1:])
    weighted = [(w * r).abs() for w, r in zip(weights, residuals, strict=True)]
    return sum(r.mean(dim=(0, 2, 3, 4)).sum() for r in weighted)


@torch.inference_mode(False)
def _ordinary(x: Tensor) -> Tensor:
    """Return x, copied if it was created in inference mode, whose tensors autograd does not accept."""
    return x.clone() if x.is_inference() else x


def _gradient(latents: Tensor, energy: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of the scalar `energy(latents)` in float32, in any gradient mode."""
    with torch.enable_grad():
        leaf = latents.detach().float().requires_grad_()
        return torch.autograd.grad(energy(leaf), leaf)[0]


def _paper_descent(latents: Tensor, motion: Motion, *, weight: float, occlusion: str = "visible") -> Tensor:
    """Take one descent step on E = sum |w (warped neighbour - frame)|, at most `weight` times the gradient.

    A step of fixed length overshoots the kinks of the L1 norm and increases E. Here the step of each latent element is
    limited to the minimum of a quadratic upper bound of E that is tight at the current point (majorise-minimise: |r|
    <= r^2 / 2|r0| + |r0| / 2; a residual depends on its own pixel with weight 1 and on its neighbour with weights that
    sum to at most 1). The curvature of the bound for element j is 2 sum_k w_k |a_kj| / |r_k| over the residuals
    r_k = a_k z. So E decreases at every step, for any weight.
    """
    keep = _pair_weights(motion, occlusion)

    def energy(z: Tensor) -> Tensor:
        return sum((w * r).abs().sum() for w, r in zip(keep, _paper_residuals(z, motion), strict=True))

    current = _paper_residuals(latents.float(), motion)
    inverse = [w / r.abs().clamp_min(_SMALLEST_RESIDUAL) for w, r in zip(keep, current, strict=True)]

    def linear(z: Tensor) -> Tensor:  # its gradient is the sum over k of w_k |a_kj| / |r_k|
        both = zip(inverse, _paper_residuals(z, motion), (z[:, :-1], z[:, 1:]), strict=True)
        return sum((c * (r + 2 * frame)).sum() for c, r, frame in both)  # neighbour + frame

    curvature = 2 * _gradient(latents, linear)
    length = (1 / curvature.clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(weight)
    return latents.float() - length * _gradient(latents, energy)


class MotionGuidance:
    """Guide samples x (B, T, C, h, w) of step i along `motion`; called as guide(x, i). Clips are independent.

    "paper": x - scale * variance_i * gradient of the L1 distance (the paper's eta = 10 by default), with steps limited
    so that the distance always decreases. The norm is a sum (`reduction="sum"`), so that the strength does not depend
    on the size of the latent; "mean" divides by C h w, which almost disables guidance. Pixels that are occluded or
    leave the image are excluded unless another `occlusion` is given.

    "released": x - scale * log_variance_i * gradient of the released `motion_loss`, a mean (bugs B1, B2). The clipped
    log-variance is negative, hence also the scale: -10 in the released script for tiles, -1 in that for latents. The
    strength grows towards the last step, where that of the paper vanishes. `reduction` has no effect.

    Raises ValueError for an unknown word; when called, for latents that do not match `motion`.
    """

    def __init__(
        self,
        motion: Motion,
        schedule: Schedule,
        *,
        form: str = "paper",
        scale: float | None = None,
        reduction: str = "sum",
        occlusion: str | None = None,
    ) -> None:
        _check_word(form, _FORMS, "form")
        _check_word(reduction, _REDUCTIONS, "reduction")
        paper = form == "paper"
        self.motion, self.schedule, self.form, self.reduction = (
            Motion(*map(_ordinary, motion)),
            schedule,
            form,
            reduction,
        )
        self.scale = scale if scale is not None else (10.0 if paper else -10.0)
        self.occlusion = occlusion or ("visible" if paper else "masked")
        _check_word(self.occlusion, _OCCLUSION, "occlusion")
        if paper and self.scale < 0:
            raise ValueError(f"got scale {scale} for the paper's form, expected 0 or more (released ones are negative)")

    def __call__(self, x: Tensor, i: int) -> Tensor:
        _check_clip(x, self.motion)
        if x.shape[1] < 2 or self.scale == 0:
            return x
        step = self._paper_step if self.form == "paper" else self._released_step
        with torch.inference_mode(False), torch.no_grad():
            return step(_ordinary(x), i).to(x.dtype)

    def _paper_step(self, x: Tensor, i: int) -> Tensor:
        weight = self.scale * self.schedule.variance[i].item()
        if self.reduction == "mean":
            weight /= x[0, 0].numel()
        return _paper_descent(x, self.motion, weight=weight, occlusion=self.occlusion)

    def _released_step(self, x: Tensor, i: int) -> Tensor:
        def energy(z: Tensor) -> Tensor:  # undoes the mean over clips, so that clips are independent
            return len(z) * motion_loss(z, self.motion, form="released", occlusion=self.occlusion)

        return x.float() - self.scale * self.schedule.log_variance[i].item() * _gradient(x, energy)
