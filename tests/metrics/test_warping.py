"""The warping error and tOF: what is known of motions that are known, and values recorded with other code."""

import cv2
import numpy as np
import pytest
import torch

from ldm.metrics.temporal import Backward, e_warp, farneback_flow, flow_distance, motion_back
from ldm.ops.dis import DISFlow
from tests.metrics.pictures import original

STEP = 3


def moving(frames=2, h=48, w=64, step=STEP, seed=0):
    """(h, w, 3) uint8 each: a soft picture that moves `step` pixels to the left."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(rng.integers(0, 256, (h // 8, (w + 32) // 8, 3), dtype=np.uint8), (w + 32, h))
    return [np.ascontiguousarray(wide[:, step * i : step * i + w]) for i in range(frames)]


def known_flow(step=STEP):
    """An estimator that knows which of two frames comes first by their first pixel."""

    def flow(one, other):
        value = step if flow.old is not None and torch.equal(other, flow.old) else -step
        return torch.stack([torch.full(one.shape[-2:], float(value)), torch.zeros(one.shape[-2:])])[None]

    flow.old = None
    return flow


def test_a_whole_pixel_motion_has_no_warping_error():
    before, frame = moving()
    flow = known_flow()
    flow.old = torch.from_numpy(before).permute(2, 0, 1)[None].float() / 255
    motion = motion_back(before, frame, flow)
    assert motion.visible[:, :-STEP].all() and not motion.visible[:, -STEP:].any()
    assert e_warp(before, frame, motion) == pytest.approx(0, abs=1e-9)


def test_a_flicker_is_its_own_square():
    """Brightness that jumps by 10 levels costs (10 / 255)^2, wherever the motion goes."""
    before, frame = (np.full((32, 40, 3), value, np.uint8) for value in (100, 110))
    motion = Backward(torch.full((1, 2, 32, 40), 0.4), torch.ones(32, 40, dtype=torch.bool))
    motion.visible[-1] = motion.visible[:, -1] = False
    assert e_warp(before, frame, motion) == pytest.approx((10 / 255) ** 2, rel=1e-5)


def test_only_visible_pixels_count():
    before, frame = np.zeros((2, 32, 32, 3), np.uint8)
    frame[:, 16:] = 255
    visible = torch.zeros(32, 32, dtype=torch.bool)
    motion = Backward(torch.zeros(1, 2, 32, 32), visible)
    assert np.isnan(e_warp(before, frame, motion))
    visible[:, :16] = True
    assert e_warp(before, frame, motion) == 0
    visible[:] = True
    assert e_warp(before, frame, motion) == 0.5


def test_flows_that_do_not_come_back_are_hidden():
    """|F + B| = 2 against 0.01 (|F|^2 + |B|^2) + 0.5: hidden for short motions, borne with for long ones."""
    before, frame = np.zeros((2, 64, 64, 3), np.uint8)
    for length, visible in ((1.0, False), (20.0, True)):
        values = iter([length, 2 - length])
        motion = motion_back(before, frame, lambda a, b, v=values: torch.full((1, 2, 64, 64), next(v) / 2**0.5))
        assert motion.visible[:40, :40].all() == visible


def test_the_motion_is_found():
    before, frame = moving()
    flow = farneback_flow(before, frame)
    assert flow[12:-12, 12:-12].mean(axis=(0, 1)) == pytest.approx([-STEP, 0], abs=0.3)
    assert flow_distance(flow, flow) == 0
    assert flow_distance(flow + np.float32([3, 4]), flow) == pytest.approx(5)
    back = motion_back(before, frame, DISFlow()).flow[0, :, 12:-12, 12:-12].mean(dim=(1, 2))
    assert back.tolist() == pytest.approx([STEP, 0], abs=0.3)


def test_a_still_output_differs_in_tof():
    clip = moving(3)
    still = flow_distance(farneback_flow(clip[0], clip[0]), farneback_flow(clip[0], clip[1]))
    assert still == pytest.approx(STEP, abs=0.5)


def test_a_photograph_that_is_panned_and_flickers():
    """The flow is found in the truth: its own error is small, a flicker by 10 levels adds its square, blur adds tOF."""
    picture, (dx, dy) = original("chelsea"), (5, 3)
    truth = [picture[40 + dy * k : 200 + dy * k, 60 + dx * k : 300 + dx * k] for k in range(3)]
    motions = [motion_back(truth[k - 1], truth[k], DISFlow("medium")) for k in (1, 2)]
    dark = [np.clip(frame, 0, 245) for frame in truth]
    flicker = [frame + np.uint8(10 * (k % 2)) for k, frame in enumerate(dark)]
    steady, unsteady = (
        np.mean([e_warp(clip[k - 1], clip[k], motions[k - 1]) for k in (1, 2)]) for clip in (dark, flicker)
    )
    assert steady < 1e-4 and unsteady == pytest.approx((10 / 255) ** 2, rel=0.1)
    flow = farneback_flow(truth[0], truth[1])
    assert np.median(flow.reshape(-1, 2), axis=0) == pytest.approx([-dx, -dy], abs=0.1)
    blurred = [[cv2.GaussianBlur(frame, (0, 0), sigma) for frame in truth[:2]] for sigma in (1, 3)]
    little, much = (flow_distance(farneback_flow(*pair), flow) for pair in blurred)
    assert flow_distance(flow, flow) == 0 < little < much < np.hypot(dx, dy)


def test_sizes_that_differ_are_named():
    small, large = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 48, 3), np.uint8)
    motion = Backward(torch.zeros(1, 2, 32, 32), torch.ones(32, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="32x32 and 48x32"):
        motion_back(small, large, DISFlow())
    with pytest.raises(ValueError, match="motion of 32x32"):
        e_warp(large, large, motion)
    with pytest.raises(ValueError, match="expected one size"):
        farneback_flow(small, large)
    with pytest.raises(ValueError, match="expected one size"):
        flow_distance(np.zeros((4, 4, 2)), np.zeros((4, 5, 2)))
    with pytest.raises(FloatingPointError, match="not finite"):
        motion_back(small, small, lambda a, b: torch.full((1, 2, 32, 32), float("nan")))
