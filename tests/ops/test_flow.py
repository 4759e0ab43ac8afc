import pytest
import torch
import torch.nn.functional as F

from ldm.ops.flow import (
    Motion,
    estimate_motion,
    flow_warp,
    forward_backward_occlusion,
    resize_flow,
    warp_validity,
)


def constant_flow(dx, dy, n=1, h=12, w=16):
    return torch.tensor([dx, dy], dtype=torch.float32).view(1, 2, 1, 1).expand(n, 2, h, w).contiguous()


def smooth(n, c, h, w, seed=0):
    coarse = torch.randn(n, c, 4, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=False)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (-4, 5)])
def test_a_warp_by_integer_pixels_is_a_roll(mode, dx, dy):
    x, flow = torch.rand(2, 3, 12, 16), constant_flow(dx, dy, n=2)
    out, inside = flow_warp(x, flow, mode=mode), warp_validity(flow)
    rolled = torch.roll(x, (-dy, -dx), (-2, -1))
    torch.testing.assert_close(out * inside, rolled * inside, atol=1e-5, rtol=0)
    assert inside.sum() == 2 * (12 - abs(dy)) * (16 - abs(dx))
    assert (out * (1 - inside)).abs().max() < 1e-4  # zeros from outside


def test_zero_flow_changes_nothing_even_on_one_pixel():
    for h, w in [(1, 1), (1, 7), (5, 1), (6, 6)]:
        x = torch.rand(2, 3, h, w)
        torch.testing.assert_close(flow_warp(x, torch.zeros(2, 2, h, w)), x, atol=1e-6, rtol=0)


def test_a_warp_by_half_a_pixel_is_the_mean_of_two():
    x = torch.rand(1, 2, 5, 8)
    out = flow_warp(x, constant_flow(0.5, 0, h=5, w=8))
    torch.testing.assert_close(out[..., :-1], (x[..., :-1] + x[..., 1:]) / 2, atol=1e-6, rtol=0)


def test_border_padding_repeats_the_edge():
    x = torch.rand(1, 1, 6, 9)
    out = flow_warp(x, constant_flow(100, 0, h=6, w=9), padding="border")
    torch.testing.assert_close(out, x[..., -1:].expand_as(x))


def test_half_precision_images_are_sampled_in_float32():
    x, flow = torch.rand(1, 3, 6, 300), constant_flow(0.25, 0, h=6, w=300)
    half = flow_warp(x.half(), flow)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), flow_warp(x.half().float(), flow), atol=1e-3, rtol=0)


def test_warp_gradients_are_those_of_finite_differences():
    x = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    flow = (torch.rand(1, 2, 5, 6, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: flow_warp(a, b), (x, flow), atol=1e-4)


@pytest.mark.parametrize(
    ("image", "flow"), [((1, 3, 8, 8), (1, 3, 8, 8)), ((1, 3, 8, 8), (1, 2, 8, 9)), ((2, 3, 8, 8), (1, 2, 8, 8))]
)
def test_shapes_that_do_not_fit_are_refused(image, flow):
    with pytest.raises(ValueError, match="expected"):
        flow_warp(torch.rand(image), torch.rand(flow))


def test_resizing_counts_pixels_of_the_new_grid():
    flow = constant_flow(8.0, -6.0, n=2, h=20, w=28)
    out = resize_flow(flow, size=(10, 7))
    torch.testing.assert_close(out, constant_flow(2.0, -3.0, n=2, h=10, w=7))
    assert resize_flow(flow, size=(20, 28)).equal(flow)
    uneven = resize_flow(constant_flow(8.0, 8.0, h=20, w=28), size=(2, 3))
    torch.testing.assert_close(uneven[0, :, 0, 0], torch.tensor([8 * 3 / 28, 0.8]))
    with pytest.raises(ValueError, match="at least one pixel"):
        resize_flow(flow, size=(0, 3))


def test_a_resized_flow_still_warps_a_resized_image():
    x, shift = smooth(1, 1, 64, 80), 8
    y = torch.roll(x, shift, -1)
    small = [F.avg_pool2d(v, 4) for v in (x, y)]
    flow = resize_flow(constant_flow(float(shift), 0.0, h=64, w=80), size=(16, 20))
    torch.testing.assert_close(flow_warp(small[1], flow)[..., :-2], small[0][..., :-2], atol=1e-5, rtol=0)


def test_consistent_flows_are_not_occluded_and_inconsistent_ones_are():
    flow = constant_flow(2.0, 1.0)
    there, back = forward_backward_occlusion(flow, -flow)
    assert there[..., :-1, :-2].sum() == 0 and back[..., 1:, 2:].sum() == 0
    assert there[..., -1:, :].min() == 1 and there[..., -2:].min() == 1  # these leave the image
    contradicting, _ = forward_backward_occlusion(flow, flow)
    assert contradicting.min() == 1
    assert there.shape == (1, 1, 12, 16) and there.unique().tolist() == [0.0, 1.0]


def test_thresholds_are_alpha_times_motion_plus_beta():
    flow = constant_flow(1.0, 0.0, h=8, w=30)
    back = constant_flow(-1.8, 0.0, h=8, w=30)  # misses by 0.8; limit alpha * 2.8 + beta
    inner = (..., slice(None), slice(2, -2))
    assert forward_backward_occlusion(flow, back)[0][inner].min() == 1
    assert forward_backward_occlusion(flow, back, alpha=0.1, beta=0.5)[0][inner].min() == 1  # limit 0.78
    assert forward_backward_occlusion(flow, back, alpha=0.11, beta=0.5)[0][inner].max() == 0  # limit 0.808
    assert forward_backward_occlusion(flow, back, alpha=0.0, beta=0.81)[0][inner].max() == 0


def moving_square(step=4, size=8, top=6, left=6, h=20, w=32):
    """Both exact flows of a square that moves right by `step` on a static background."""
    to_next, to_prev = torch.zeros(1, 2, h, w), torch.zeros(1, 2, h, w)
    to_next[:, 0, top : top + size, left : left + size] = step
    to_prev[:, 0, top : top + size, left + step : left + step + size] = -step
    return to_next, to_prev


def test_a_moving_square_occludes_in_front_and_uncovers_behind():
    occluded_next, occluded_prev = forward_backward_occlusion(*moving_square())
    in_front, behind = torch.zeros(20, 32), torch.zeros(20, 32)
    in_front[6:14, 14:18] = 1  # ground of the first frame that the square will cover
    behind[6:14, 6:10] = 1  # ground of the second frame that the square has left
    assert occluded_next[0, 0].equal(in_front)
    assert occluded_prev[0, 0].equal(behind)


def shift_estimator(calls=None):
    """An exact flow network: the mean of a frame is its number, and the motion is 3 px right and 1 px down."""

    def net(a, b):
        if calls is not None:
            calls.append(len(a))
        steps = (b.mean((1, 2, 3)) - a.mean((1, 2, 3))).round().view(-1, 1, 1, 1)
        return steps * constant_flow(3.0, 1.0, n=len(a), h=a.shape[-2], w=a.shape[-1])

    return net


def numbered_frames(clips, frames, h=24, w=32):
    return torch.arange(frames).float().view(1, -1, 1, 1, 1).expand(clips, frames, 3, h, w)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_every_pair_is_estimated_once_in_each_direction_in_small_batches(batch):
    calls = []
    motion = estimate_motion(shift_estimator(calls), numbered_frames(2, 4), size=(24, 32), batch=batch)
    assert sum(calls) == 2 * 2 * 3 and max(calls) <= batch
    assert motion.to_next.shape == (2, 3, 2, 24, 32) and motion.occluded_prev.shape == (2, 3, 1, 24, 32)
    torch.testing.assert_close(motion.to_next, -motion.to_prev)
    assert motion.to_next[:, :, 0].unique().tolist() == [3.0]


def test_motion_is_ordered_by_clip_then_frame():
    def net(a, b):  # the flow is the number of the frame that it starts from
        return a[:, :2].clone()

    frames = torch.arange(8).float().view(2, 4, 1, 1, 1).expand(2, 4, 3, 5, 6)
    motion = estimate_motion(net, frames, size=(5, 6), batch=2)
    assert motion.to_next[:, :, 0, 0, 0].tolist() == [[0, 1, 2], [4, 5, 6]]
    assert motion.to_prev[:, :, 0, 0, 0].tolist() == [[1, 2, 3], [5, 6, 7]]


def test_flows_are_resized_before_occlusion_is_found():
    motion = estimate_motion(shift_estimator(), numbered_frames(1, 3), size=(12, 8))
    torch.testing.assert_close(motion.to_next[0, 0, :, 0, 0], torch.tensor([0.75, 0.5]))
    expected = forward_backward_occlusion(motion.to_next[:, 0], motion.to_prev[:, 0])
    assert motion.occluded_next[:, 0].equal(expected[0]) and motion.occluded_prev[:, 0].equal(expected[1])


def test_perfect_motion_leaves_no_residual():
    picture = smooth(1, 3, 40, 60)
    frames = torch.stack([torch.roll(picture[0], (t, 3 * t), (-2, -1)) for t in range(3)])[None]

    def net(a, b):  # exact, told apart by which of the two frames comes later
        sign = [1.0 if torch.equal(torch.roll(x, (1, 3), (-2, -1)), y) else -1.0 for x, y in zip(a, b, strict=True)]
        return torch.tensor(sign).view(-1, 1, 1, 1) * constant_flow(3.0, 1.0, n=len(a), h=40, w=60)

    motion = estimate_motion(net, frames, size=(40, 60))
    for i in range(2):
        forth = flow_warp(frames[:, i + 1], motion.to_next[:, i]) - frames[:, i]
        back = flow_warp(frames[:, i], motion.to_prev[:, i]) - frames[:, i + 1]
        assert (forth * (1 - motion.occluded_next[:, i])).abs().max() < 1e-4
        assert (back * (1 - motion.occluded_prev[:, i])).abs().max() < 1e-4
        assert motion.occluded_next[:, i].mean() < 0.1


def test_one_frame_has_an_empty_motion():
    motion = estimate_motion(shift_estimator(), torch.rand(2, 1, 3, 16, 16), size=(4, 6))
    assert [tuple(x.shape) for x in motion] == [(2, 0, c, 4, 6) for c in (2, 2, 1, 1)]
    assert motion.resized((8, 8)).crop(1, 1, 3, 4).frames(0, 1).to_next.shape == (2, 0, 2, 3, 4)


def random_motion(clips=2, pairs=4, h=16, w=20):
    flows = [smooth(clips * pairs, 2, h, w, seed).unflatten(0, (clips, pairs)) for seed in (1, 2)]
    masks = forward_backward_occlusion(*(x.flatten(0, 1) for x in flows))
    return Motion(*flows, *(x.unflatten(0, (clips, pairs)) for x in masks))


def test_motion_can_be_cropped_and_restricted_to_frames():
    motion = random_motion()
    part = motion.crop(3, 5, 8, 10).frames(1, 4)
    for a, b in zip(part, motion, strict=True):
        assert a.equal(b[:, 1:3, :, 3:11, 5:15])
    assert motion.frames(2, 3).to_next.shape[1] == 0
    with pytest.raises(ValueError, match="inside"):
        motion.crop(10, 0, 8, 4)
    with pytest.raises(ValueError, match="stop <= 5"):
        motion.frames(0, 6)


def test_resized_motion_recomputes_occlusion_from_resized_flows():
    motion = random_motion()
    small = motion.resized((8, 5), alpha=0.02, beta=0.1)
    assert small.to_next[1, 2].equal(resize_flow(motion.to_next[1, 2][None], size=(8, 5))[0])
    expected = forward_backward_occlusion(small.to_next[:, 1], small.to_prev[:, 1], alpha=0.02, beta=0.1)
    assert small.occluded_next[:, 1].equal(expected[0]) and small.occluded_prev[:, 1].equal(expected[1])


def test_invalid_frames_and_flows_are_reported():
    with pytest.raises(ValueError, match="expected \\(B, T, 3, H, W\\)"):
        estimate_motion(shift_estimator(), torch.rand(3, 3, 8, 8), size=(8, 8))
    with pytest.raises(FloatingPointError, match="pairs 0 to 1"):
        estimate_motion(lambda a, b: a[:, :2] / 0, numbered_frames(1, 3), size=(8, 8))
