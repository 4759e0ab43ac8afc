"""Motion-guided sampling: latents of neighbouring frames are pulled together along the optical flow.

What falls is the L1 distance between each frame and its neighbours warped onto it, in both directions. Two forms of it
exist, one word apart: "paper", what the paper describes, and "released", what the released code computes.
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
    """Raise ValueError unless `value` is one of the `known` words."""
    if value not in known:
        raise ValueError(f"got {what} {value!r}, expected one of {known}")


def _pair_weights(motion: Motion, occlusion: str = "masked") -> tuple[Tensor, Tensor]:
    """What counts of each pair of frames, (B, T-1, 1, h, w) for to_next and for to_prev, each 0 or 1.

    "masked": what the occlusion masks of `motion` leave; "border": what the flow does not take out of the picture;
    "visible": both of these; "none": everything.
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
    """(B, P, C, h, w) latents fetched along (B, P, 2, h, w) flows."""
    return flow_warp(latents.flatten(0, 1), flow.flatten(0, 1)).unflatten(0, latents.shape[:2])


def _paper_residuals(latents: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """Neighbour fetched along the flow, minus the frame itself: for frames 0..T-2 (next) and 1..T-1 (previous)."""
    to_next = _warp_pairs(latents[:, 1:], motion.to_next) - latents[:, :-1]
    return to_next, _warp_pairs(latents[:, :-1], motion.to_prev) - latents[:, 1:]


def _released_residuals(latents: Tensor, motion: Motion) -> tuple[Tensor, Tensor]:
    """The residuals as released (bug B1): each neighbour is fetched with the flow of the pair beyond it.

    Frame i is compared with frame i+1 moved by flow i+1 -> i+2, and with frame i-1 moved by flow i-1 -> i-2; without a
    pair beyond, with zero, which shrinks frames T-2 and 1.
    """
    ahead = _warp_pairs(latents[:, 1:-1], motion.to_next[:, 1:])
    behind = _warp_pairs(latents[:, 1:-1], motion.to_prev[:, :-1])
    nothing = torch.zeros_like(latents[:, :1])
    to_next = torch.cat([ahead, nothing], 1) - latents[:, :-1]
    return to_next, torch.cat([nothing, behind], 1) - latents[:, 1:]


def _check_clip(latents: Tensor, motion: Motion) -> None:
    """Raise ValueError unless `motion` is that of `latents`."""
    b, frames, _, h, w = latents.shape
    for field, channels in zip(motion, (2, 2, 1, 1), strict=True):
        if tuple(field.shape) != (b, frames - 1, channels, h, w):
            raise ValueError(
                f"got motion {tuple(field.shape)} for latents {tuple(latents.shape)}, "
                f"expected {(b, frames - 1, channels, h, w)}; resize or cut the motion to the latents"
            )


def motion_loss(
    latents: Tensor,
    motion: Motion,
    *,
    form: str = "paper",
    occlusion: str = "masked",
    emphasis: Tensor | None = None,
) -> Tensor:
    """How far the latents (B, T, C, h, w) are from moving along `motion`; a scalar in float32, 0 for a single frame.

    Sum over the pairs of frames and both directions of mean |weight * residual|, the mean over clips, channels and all
    pixels. `form="paper"` pairs each frame with its neighbour; `form="released"` is `compute_temporal_condition_v4` of
    the released code (its v3 with `occlusion="border"`). Weights: `_pair_weights`, times `emphasis` (B, T, 1 | C, h, w)
    of the frame itself where that is given.
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
    """x, copied where it comes from inference mode, whose tensors autograd refuses."""
    return x.clone() if x.is_inference() else x


def _slope(latents: Tensor, energy: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient of the scalar `energy(latents)` in float32, whatever the caller's gradient mode."""
    with torch.enable_grad():
        leaf = latents.detach().float().requires_grad_()
        return torch.autograd.grad(energy(leaf), leaf)[0]


def _paper_descent(latents: Tensor, motion: Motion, *, weight: float, occlusion: str = "visible") -> Tensor:
    """One step down E = sum of |w (fetched neighbour - frame)|, of `weight` times the gradient where that is safe.

    A step of fixed length overshoots the kinks of an L1 norm and then raises E. Here the step of each latent element is
    at most the minimum of a quadratic that lies above E and touches it at the present point (majorise-minimise: |r| is
    below r^2 / 2|r0| + |r0| / 2, and a residual touches its own pixel with weight 1 and its neighbour with at most 1 in
    all). Its curvature is 2 sum_k w_k |a_kj| / |r_k| over the residuals k = a_k z that element j takes part in. So E
    falls at every step, whatever the weight.
    """
    keep = _pair_weights(motion, occlusion)

    def energy(z: Tensor) -> Tensor:
        return sum((w * r).abs().sum() for w, r in zip(keep, _paper_residuals(z, motion), strict=True))

    present = _paper_residuals(latents.float(), motion)
    inverse = [w / r.abs().clamp_min(_SMALLEST_RESIDUAL) for w, r in zip(keep, present, strict=True)]

    def touched(z: Tensor) -> Tensor:  # linear, so that its gradient is the sum over k of w_k |a_kj| / |r_k|
        both = zip(inverse, _paper_residuals(z, motion), (z[:, :-1], z[:, 1:]), strict=True)
        return sum((c * (r + 2 * frame)).sum() for c, r, frame in both)  # neighbour + frame

    curvature = 2 * _slope(latents, touched)
    length = (1 / curvature.clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(weight)
    return latents.float() - length * _slope(latents, energy)


class MotionGuidance:
    """The `guide(x, i)` of a sampler: pulls x (B, T, C, h, w) of step i towards `motion`. Clips do not mix.

    "paper": x - scale * variance_i * gradient of the L1 distance (its eta = 10 by default), with steps short enough for
    the distance to fall at every one (`_paper_descent`). The paper's norm is read as a sum, `reduction="sum"`, so that
    the strength does not depend on the size of the latent; "mean" divides by C h w, which leaves next to nothing of it.
    Pixels that are occluded or leave the picture do not count, unless another `occlusion` is named.

    "released": x - scale * log_variance_i * gradient of the released `motion_loss`, a mean (bugs B1, B2): the clipped
    log-variance is negative, hence so is the scale, -10 in the released script for tiles, -1 where latents are made. It
    grows towards the last step, where the paper's vanishes. `reduction` has no effect.

    Raises ValueError for an unknown word; when called, for latents that do not fit `motion`.
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
        def energy(z: Tensor) -> Tensor:  # the mean over clips is undone: one clip's pull is its own
            return len(z) * motion_loss(z, self.motion, form="released", occlusion=self.occlusion)

        return x.float() - self.scale * self.schedule.log_variance[i].item() * _slope(x, energy)
