"""The consistency loss of clips with known motion, in both forms, and its gradients."""

import pytest
import torch
from torch import nn

from ldm.diffusion.guidance import motion_loss
from ldm.ops.flow import Motion, flow_warp
from ldm.training.consistency import consistency_loss, sobel_edges, structure_weights


def picture(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


def panned(frames=4, size=24, by=(2, 1)):
    """One clip (1, T, 3, size, size) in [-1, 1]: a window that moves by `by` pixels (x, y) per frame."""
    x, y = by
    scene = picture(3, size + y * frames, size + x * frames)
    return torch.stack([scene[:, y * t : y * t + size, x * t : x * t + size] for t in range(frames)])[None]


class Pan(nn.Module):
    """Flow of `panned`: the speed is given, the direction is the better of two. Records the range of its input."""

    def __init__(self, by=(2, 1)):
        super().__init__()
        self.by, self.range = torch.tensor(by, dtype=torch.float32).view(1, 2, 1, 1), None

    def forward(self, a, b):
        self.range = (a.min().item(), a.max().item())
        flows = [sign * self.by.expand(len(a), -1, *a.shape[-2:]) for sign in (-1, 1)]
        misses = [(flow_warp(b, flow) - a).abs().mean().item() for flow in flows]
        return flows[misses.index(min(misses))].clone()


class Slope(nn.Module):
    """A flow that is a smooth function of the pixels."""

    def forward(self, a, b):
        return 0.3 * torch.tanh(a[:, :2] - b[:, 1:])


# ---- edges


def test_sobel_edges_of_a_ramp_equal_its_slope():
    ramp = 0.5 * torch.arange(8.0).expand(2, 3, 6, 8)
    for image in (ramp, ramp.mT):
        edges = sobel_edges(image)
        assert edges.shape == image.shape
        torch.testing.assert_close(
            edges[..., 1:-1, 1:-1], torch.full_like(edges[..., 1:-1, 1:-1], 0.5), rtol=1e-5, atol=0
        )


def test_edges_do_not_leak_into_other_channels_or_images():
    image = torch.zeros(2, 3, 5, 5)
    image[1, 2, 2:] = 1
    edges = sobel_edges(image)
    assert (edges[0] == 1e-3).all() and (edges[1, :2] == 1e-3).all() and edges[1, 2].max() > 0.4
    assert (sobel_edges(torch.ones(1, 3, 4, 4)) == 1e-3).all()  # a border is no edge


def test_structure_weights_have_no_gradient():
    image = picture(1, 3, 8, 8).requires_grad_()
    weights = structure_weights(image)
    torch.testing.assert_close(weights, 1 + 3 * sobel_edges(image).detach())
    assert not weights.requires_grad and structure_weights(image.bfloat16()).dtype == torch.float32


def test_the_motion_loss_is_weighted_by_the_reference_frame():
    clip = picture(1, 3, 2, 4, 4)
    none = torch.zeros(1, 2, 2, 4, 4)
    motion = Motion(none, none, none[:, :, :1], none[:, :, :1])
    emphasis = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4)
    d01, d12 = ((clip[:, k] - clip[:, k + 1]).abs().mean().item() for k in range(2))
    weighted = motion_loss(clip, motion, emphasis=emphasis).item()
    assert weighted == pytest.approx((1 + 10) * d01 + (10 + 100) * d12, rel=1e-5)


# ---- the paper's form


@pytest.mark.parametrize("frames", [2, 5])
def test_a_clip_that_follows_its_flow_has_zero_loss(frames):
    clip = panned(frames)
    assert consistency_loss(clip, clip, Pan()).item() == pytest.approx(0, abs=1e-5)
    assert consistency_loss(clip * 0.3 + 0.2, clip, Pan()).item() == pytest.approx(0, abs=1e-5)  # wrong, but steady
    assert consistency_loss(clip, clip, Pan(by=(0, 1))).item() > 0.1
    flicker = torch.tensor([0.0, 0.2] * 3)[:frames].view(1, -1, 1, 1, 1)
    assert consistency_loss(clip + flicker, clip, Pan()).item() > 0.1


def test_flicker_is_weighted_by_edges_of_the_target():
    clip = torch.zeros(1, 2, 3, 16, 16)
    clip[..., 8:] = 1
    flicker = clip + torch.tensor([0.0, 0.25]).view(1, 2, 1, 1, 1)
    still = Pan(by=(0, 0))
    expected = 2 * 0.25 * structure_weights(clip).mean().item()  # a pair, both directions
    assert consistency_loss(flicker, clip, still).item() == pytest.approx(expected, rel=1e-5)


def test_only_the_reconstruction_receives_a_gradient():
    clip = panned(3)
    y = (clip + 0.1 * picture(*clip.shape)).requires_grad_()
    (grad,) = torch.autograd.grad(consistency_loss(y, clip, Pan()), y)
    assert (grad.abs() > 0).float().mean() > 0.5
    assert not consistency_loss(y.detach(), clip.clone().requires_grad_(), Slope()).requires_grad


def test_clips_of_a_batch_are_independent_and_one_frame_has_zero_loss():
    clip = panned(3)
    targets = torch.cat([clip, clip.flip(1)])
    both = targets + 0.1 * picture(2, 3, 3, 24, 24)
    alone = [consistency_loss(both[k : k + 1], targets[k : k + 1], Pan()).item() for k in range(2)]

    def one_by_one(a, b):
        return torch.cat([Pan()(x[None], y[None]) for x, y in zip(a, b, strict=True)])

    assert consistency_loss(both, targets, one_by_one).item() == pytest.approx(sum(alone) / 2, rel=1e-5)
    for form in ("paper", "released"):
        assert consistency_loss(both[:, :1], targets[:, :1], Pan(), form=form) == 0


@pytest.mark.parametrize(("form", "low"), [("paper", 0.0), ("released", -1.0)])
def test_the_input_range_of_the_flow_network(form, low):
    clip, flow = panned(3).clone(), Pan()
    clip[..., 0, 0], clip[..., -1, -1] = -1, 1
    consistency_loss(clip, clip, flow, form=form)
    assert flow.range == (low, 1.0)


# ---- the released form


def test_the_released_form_is_not_zero_for_exact_motion():
    clip = panned(4)
    assert consistency_loss(clip, clip, Pan(), form="released").item() > 0.5


def test_the_released_gradient_passes_only_through_the_flow():
    clip = panned(4)
    y = (clip + 0.1).requires_grad_()
    assert not consistency_loss(y, clip, Pan(), form="released").requires_grad
    (grad,) = torch.autograd.grad(consistency_loss(y, clip, Slope(), form="released"), y)
    assert grad.abs().max() > 0
    pair = (clip[:, :2] + 0.1).requires_grad_()
    (grad,) = torch.autograd.grad(consistency_loss(pair, clip[:, :2], Slope(), form="released") + 0 * pair.sum(), pair)
    assert grad.abs().max() == 0  # two frames are compared with nothing but zero


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'best'"):
        consistency_loss(panned(2), panned(2), Pan(), form="best")
