import pytest
import torch

from ldm.diffusion.guidance import MotionGuidance, motion_loss
from ldm.diffusion.schedule import Schedule
from ldm.ops.flow import Motion, flow_warp

SCHEDULE = Schedule.linear_sd().respaced(10)
B, T, C, H, W = 2, 4, 3, 9, 11


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_motion(seed: int = 1, size: float = 3.0) -> Motion:
    generator = seeded(seed)
    flows = [size * torch.randn(B, T - 1, 2, H, W, generator=generator) for _ in range(2)]
    masks = [(torch.rand(B, T - 1, 1, H, W, generator=generator) < 0.2).float() for _ in range(2)]
    return Motion(*flows, *masks)


def moving_clip(dx: int = 2, dy: int = 1) -> tuple[torch.Tensor, Motion]:
    """An image that moves by integer pixels; pixels outside the frame are marked as occluded."""
    big = torch.randn(1, C, 40, 40, generator=seeded(2))
    frames = torch.stack([big[..., 10 - dy * k : 10 - dy * k + H, 10 - dx * k : 10 - dx * k + W] for k in range(T)], 1)
    flow = torch.tensor([dx, dy], dtype=torch.float32).view(1, 1, 2, 1, 1).expand(1, T - 1, 2, H, W)
    gone, come = torch.ones(2, 1, T - 1, 1, H, W)
    gone[..., : H - dy, : W - dx] = 0
    come[..., dy:, dx:] = 0
    return frames, Motion(flow, -flow, gone, come)


def latents(seed: int = 3) -> torch.Tensor:
    return torch.randn(B, T, C, H, W, generator=seeded(seed))


def test_a_clip_that_follows_its_flow_is_unchanged():
    clip, motion = moving_clip()
    assert motion_loss(clip, motion) < 1e-5
    assert motion_loss(clip, motion, form="released") > 0.5  # the release warps with the wrong flow
    assert (MotionGuidance(motion, SCHEDULE)(clip, 9) - clip).abs().max() < 1e-5


def test_the_loss_is_the_sum_over_pairs_and_directions_of_masked_means():
    z, motion = latents(), random_motion()
    expected = 0.0
    for i in range(T - 1):
        ahead = flow_warp(z[:, i + 1], motion.to_next[:, i]) - z[:, i]
        behind = flow_warp(z[:, i], motion.to_prev[:, i]) - z[:, i + 1]
        expected += ((1 - motion.occluded_next[:, i]) * ahead).abs().mean()
        expected += ((1 - motion.occluded_prev[:, i]) * behind).abs().mean()
    torch.testing.assert_close(motion_loss(z, motion), expected)


def test_the_released_loss_uses_the_flow_of_the_next_pair():
    z, motion = latents(), random_motion()
    o, p = 1 - motion.occluded_next, 1 - motion.occluded_prev
    expected = (o[:, T - 2] * z[:, T - 2]).abs().mean() + (p[:, 0] * z[:, 1]).abs().mean()
    for i in range(T - 2):
        expected += (o[:, i] * (flow_warp(z[:, i + 1], motion.to_next[:, i + 1]) - z[:, i])).abs().mean()
    for i in range(2, T):
        expected += (p[:, i - 1] * (flow_warp(z[:, i - 1], motion.to_prev[:, i - 2]) - z[:, i])).abs().mean()
    torch.testing.assert_close(motion_loss(z, motion, form="released"), expected)


def test_released_with_two_frames_only_shrinks_them():
    z, motion = latents()[:, :2], random_motion().frames(0, 2)
    free = motion_loss(z, motion, form="released", occlusion="none")
    torch.testing.assert_close(free, z[:, 0].abs().mean() + z[:, 1].abs().mean())


@pytest.mark.parametrize("form", ["paper", "released"])
def test_the_step_is_the_weighted_gradient_by_finite_differences(form):
    z, motion, i = latents(), random_motion(), 4
    guide = MotionGuidance(motion, SCHEDULE, form=form, scale=1e-4 if form == "paper" else -1e-4, occlusion="masked")
    if form == "paper":  # a sum; weight eta sigma^2
        factor = 1e-4 * SCHEDULE.variance[i].item() * B * C * H * W
    else:  # a mean over one clip; weight scale * log-variance
        factor = -1e-4 * SCHEDULE.log_variance[i].item() * B
    gradient = (z - guide(z, i)).double() / factor
    # along a direction, since single elements lie near kinks; float32 limits how small the difference may be
    direction = torch.randn(z.shape, generator=seeded(5))
    up, down = (motion_loss(z + h * direction, motion, form=form).double() for h in (1e-3, -1e-3))
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / 2e-3).item(), rel=0.02)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("occlusion", ["masked", "visible", "none"])
def test_the_step_of_the_paper_never_increases_the_loss(scale, occlusion):
    z, motion = latents(), random_motion()
    guide = MotionGuidance(motion, SCHEDULE, scale=scale, occlusion=occlusion)
    losses = [motion_loss(z, motion, occlusion=occlusion).item()]
    for _ in range(12):
        z = guide(z, 9)
        losses.append(motion_loss(z, motion, occlusion=occlusion).item())
    assert all(after < before for before, after in zip(losses, losses[1:], strict=False))
    if scale >= 1:
        assert losses[-1] < 0.7 * losses[0]


def test_a_fixed_step_would_overshoot():
    """The reason for limited steps: an unlimited step with eta = 10 increases the loss."""
    z, motion = latents(), random_motion()
    leaf = z.clone().requires_grad_()
    gradient = torch.autograd.grad(motion_loss(leaf, motion) * B * C * H * W, leaf)[0]
    plain = z - 10 * SCHEDULE.variance[9].item() * gradient
    guided = MotionGuidance(motion, SCHEDULE)(z, 9)
    assert motion_loss(plain, motion) > motion_loss(z, motion) > motion_loss(guided, motion)


def test_weights_of_the_steps():
    z, motion = latents(), random_motion()
    assert torch.equal(MotionGuidance(motion, SCHEDULE)(z, 0), z)  # the variance is 0 there
    last = (MotionGuidance(motion, SCHEDULE, form="released")(z, 0) - z).abs().max()
    first = (MotionGuidance(motion, SCHEDULE, form="released")(z, 9) - z).abs().max()
    ratio = (SCHEDULE.log_variance[0] / SCHEDULE.log_variance[9]).item()
    assert (last / first).item() == pytest.approx(ratio, rel=1e-3)
    total, mean = (MotionGuidance(motion, SCHEDULE, scale=1e-3, reduction=r)(z, 5) - z for r in ("sum", "mean"))
    torch.testing.assert_close(total / (C * H * W), mean, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_clips_and_distant_pixels_are_independent(form):
    z, motion = latents(), random_motion()
    both = MotionGuidance(motion, SCHEDULE, form=form)(z, 5)
    for b in range(B):
        alone = MotionGuidance(Motion(*(m[b : b + 1] for m in motion)), SCHEDULE, form=form)(z[b : b + 1], 5)
        torch.testing.assert_close(both[b : b + 1], alone)


def test_occluded_pixels_do_not_count():
    z, motion = latents(), random_motion()
    hidden = motion._replace(occluded_next=torch.ones_like(motion.occluded_next))
    hidden = hidden._replace(occluded_prev=torch.ones_like(motion.occluded_prev))
    assert motion_loss(z, hidden) == 0 and motion_loss(z, hidden, occlusion="none") > 0
    assert torch.equal(MotionGuidance(hidden, SCHEDULE)(z, 9), z)


def test_pixels_that_leave_the_picture_do_not_count_unless_asked_for():
    z, out = latents(), torch.full((B, T - 1, 2, H, W), 100.0)
    nothing = torch.zeros(B, T - 1, 1, H, W)
    motion = Motion(out, out, nothing, nothing)
    assert motion_loss(z, motion, occlusion="visible") == motion_loss(z, motion, occlusion="border") == 0
    assert motion_loss(z, motion) > 0.5 and torch.equal(MotionGuidance(motion, SCHEDULE)(z, 9), z)


def test_a_single_frame_is_unchanged_and_keeps_its_dtype():
    one = latents()[:, :1]
    still = random_motion().frames(0, 1)
    assert motion_loss(one, still) == 0
    for form in ("paper", "released"):
        assert torch.equal(MotionGuidance(still, SCHEDULE, form=form)(one, 3), one)
        half = MotionGuidance(random_motion(), SCHEDULE, form=form)(latents().half(), 3)
        assert half.dtype == torch.float16 and torch.isfinite(half).all()


@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(form, mode):
    expected = MotionGuidance(random_motion(), SCHEDULE, form=form)(latents(), 5)
    with mode():
        found = MotionGuidance(random_motion(), SCHEDULE, form=form)(latents(), 5)
    assert torch.equal(found, expected) and not expected.requires_grad


def test_what_does_not_fit_is_refused():
    z, motion = latents(), random_motion()
    with pytest.raises(ValueError, match="resize or crop"):
        motion_loss(z[..., :-1], motion)
    with pytest.raises(ValueError, match="form 'v4'"):
        motion_loss(z, motion, form="v4")
    with pytest.raises(ValueError, match="occlusion 'all'"):
        MotionGuidance(motion, SCHEDULE, occlusion="all")
    with pytest.raises(ValueError, match="0 or more"):
        MotionGuidance(motion, SCHEDULE, scale=-10)
