"""Frame-wise bidirectional sampling with temporal texture guidance (StableVSR, Rota et al., ECCV 2024).

Every denoising step visits the frames of a scene one by one, forwards in even steps and backwards in odd ones. A frame
is guided by the clean estimate of the frame visited before it: decoded and warped along the flow. The first frame of a
pass has no guidance. All functions take networks as arguments.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.samplers import assert_finite, ddpm_step
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.scheduler import Scheduler
from ldm.ops.flow import flow_warp

CLEAN = 1e-20  # variance of a last step that returns the clean estimate


class Unit(NamedTuple):
    """One frame in one denoising step: the smallest piece of work of a scene.

    `step` counts from the noisiest, `position` in the pass; `previous` is the frame visited before, None for the first.
    """

    step: int
    position: int
    frame: int
    previous: int | None


class Visit(NamedTuple):
    """What a unit computes, (1, c, h, w) each: the prediction, the clean estimate and the new latent."""

    prediction: Tensor
    x0: Tensor
    latent: Tensor


class Sampled(NamedTuple):
    """A sampled scene: latents (1, c, h, w) and pictures (1, 3, H, W) around [-1, 1], frame by frame."""

    latents: list[Tensor]
    pictures: list[Tensor]


def unit_at(number: int, frames: int, *, alternating: bool = True) -> Unit:
    """Unit `number` of a scene in the released order: forwards in even steps, backwards in odd ones.

    Without `alternating`, all steps are forwards.
    """
    step, position = divmod(number, frames)
    backwards = alternating and step % 2 == 1
    frame = frames - 1 - position if backwards else position
    previous = None if position == 0 else frame + (1 if backwards else -1)
    return Unit(step, position, frame, previous)


def sampling_order(frames: int, steps: int) -> Iterator[Unit]:
    """The units of a scene in the released order."""
    return (unit_at(number, frames) for number in range(frames * steps))


def control_scales(steps: int, scale: float = 1.0, *, start: float = 0.0, end: float = 1.0) -> list[float]:
    """The control network's factor in each step: `scale` between the shares `start` and `end` of the steps, else 0.

    As diffusers counts: a step counts where it lies wholly inside.
    """
    return [0.0 if k / steps < start or (k + 1) / steps > end else scale for k in range(steps)]


def texture_guidance(picture: Tensor, flow: Tensor, *, grid: str = "released") -> Tensor:
    """The decoded estimate of the frame before, (n, 3, H, W), moved onto a frame along its flow to it (n, 2, H, W).

    Not clamped. `grid` as for `flow_warp`; the released weights were trained with "released".
    """
    return flow_warp(picture, flow, grid=grid)


def ends_clean(schedule: Schedule) -> bool:
    """Whether the last step leaves its clean estimate as the result, so that its guidance pictures are the results."""
    drawn = schedule.t[0].item() > 0 and schedule.variance[0].item() > CLEAN
    return schedule.abar_prev[0].item() == 1 and not drawn


def conditioned_prediction(
    unet: Callable, control: Callable, context: Tensor
) -> Callable[[Tensor, Tensor, int, Tensor | None, float], Tensor]:
    """predict(z, lr, t, condition, scale) of a denoiser and its control network; without a condition the first alone.

    z (n, c, h, w), lr (n, 3, h, w) in [-1, 1], condition (n, 3, H, W) around [-1, 1], context (1, tokens, channels).
    """

    def predict(z: Tensor, lr: Tensor, t: int, condition: Tensor | None, scale: float) -> Tensor:
        x, time = torch.cat([z, lr.to(z)], dim=1), torch.full((1,), t, device=z.device)
        if condition is None or scale == 0:
            return unet(x, time, context).float()
        return unet(x, time, context, control(x, time, context, condition, scale=scale)).float()

    return predict


def visit_frame(
    z: Tensor,
    predict: Callable[[Tensor, int], Tensor],
    *,
    scheduler: Scheduler,
    schedule: Schedule,
    i: int,
    noise: Callable[[], Tensor],
) -> Visit:
    """One denoising step of one frame at step i of `schedule`; `predict(z, t)`; noise is drawn only where t > 0."""
    t = int(schedule.t[i])
    prediction = predict(z, t)
    x0 = scheduler.to_x0(prediction, z, schedule, i)
    drawn = noise() if t > 0 else torch.zeros_like(z)
    latent = ddpm_step(x0, z, i, schedule, noise=lambda _: drawn)
    return Visit(prediction, x0, assert_finite(latent, i))


class GuidedDenoiser(NamedTuple):
    """What a scene is sampled with.

    predict: see `conditioned_prediction`. decode: clean latents (1, c, h, w) -> picture (1, 3, H, W) around [-1, 1].
    flow: flow(target, source) (1, 2, H, W) between two frames by number; not called where no step has a control
    network. grid: of the warp, see `flow_warp`.
    """

    predict: Callable[[Tensor, Tensor, int, Tensor | None, float], Tensor]
    decode: Callable[[Tensor], Tensor]
    flow: Callable[[int, int], Tensor] | None = None
    grid: str = "released"


@torch.no_grad()
def sample_scene(
    lr: Sequence[Tensor],
    *,
    model: GuidedDenoiser,
    scheduler: Scheduler,
    steps: int | Sequence[int],
    noise: Callable[[int | str, int], Tensor],
    scales: Sequence[float] | None = None,
    on_visit: Callable[[Unit, Visit, Tensor | None], None] = lambda *_: None,
) -> Sampled:
    """All frames of one scene, held together.

    Args:
        lr: low-resolution frames (1, 3, h, w) in [-1, 1].
        model: networks as functions.
        scheduler, steps: how many time steps, or which.
        noise: noise("start" | step, frame) (1, c, h, w); asked for in the released order of drawing.
        scales: factor of the control network in each step; all 1 by default.
        on_visit: is given each unit, what it computed, and its condition.

    The N - 1 guidance pictures of the last step are the results where that step ends clean. FloatingPointError names a
    bad step.
    """
    schedule = scheduler.sampling(steps)
    count, total = len(lr), len(schedule)
    scales = [1.0] * total if scales is None else scales
    latents = [noise("start", frame) for frame in range(count)]
    pictures: dict[int, Tensor] = {}
    x0 = None
    for unit in sampling_order(count, total):
        i, frame, condition = total - 1 - unit.step, unit.frame, None
        final = i == 0 and ends_clean(schedule)
        if unit.previous is not None and (scales[unit.step] != 0 or final):
            picture = model.decode(x0)
            if scales[unit.step] != 0:
                condition = texture_guidance(picture, model.flow(frame, unit.previous), grid=model.grid)
            if final:
                pictures[unit.previous] = picture
        predict = partial(_predict_frame, model, lr[frame], condition, scales[unit.step])
        drawn = partial(noise, unit.step, frame)
        visit = visit_frame(latents[frame], predict, scheduler=scheduler, schedule=schedule, i=i, noise=drawn)
        latents[frame], x0 = visit.latent, visit.x0
        on_visit(unit, visit, condition)
    return Sampled(latents, [pictures[k] if k in pictures else model.decode(latents[k]) for k in range(count)])


def _predict_frame(
    model: GuidedDenoiser, lr: Tensor, condition: Tensor | None, scale: float, z: Tensor, t: int
) -> Tensor:
    return model.predict(z, lr, t, condition, scale)
