"""One pass over a clip gives the means of the measures, and the truth's own warping error beside the output's."""

import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from ldm.metrics.fidelity import psnr, ssim
from ldm.metrics.judge import Judge
from ldm.metrics.sharpness import edge_sharpness
from ldm.metrics.temporal import e_warp, farneback_flow, flow_distance, motion_back
from ldm.ops.dis import DISFlow


def clips(frames=4, h=40, w=56):
    """A truth that moves and a softer, flickering output of it, (h, w, 3) uint8 each."""
    wide = cv2.resize(np.random.default_rng(0).integers(0, 256, (h // 8, w // 4, 3), dtype=np.uint8), (2 * w, h))
    truth = [np.ascontiguousarray(wide[:, 2 * k : 2 * k + w]) for k in range(frames)]
    soft = [cv2.GaussianBlur(frame, (0, 0), 1) // 2 + np.uint8(50 + 9 * (k % 2)) for k, frame in enumerate(truth)]
    return soft, truth


def judged(frames, truth):
    judge = Judge(DISFlow())
    for pair in zip(frames, truth, strict=True):
        judge.push(*pair)
    return judge.figures()


def test_the_figures_are_the_means_of_the_measures():
    output, truth = clips()
    pairs = list(zip(pairwise(output), pairwise(truth), strict=True))
    back = [motion_back(*old, DISFlow()) for _, old in pairs]
    expected = {
        "psnr": np.mean([psnr(*pair) for pair in zip(output, truth, strict=True)]),
        "ssim": np.mean([ssim(*pair) for pair in zip(output, truth, strict=True)]),
        "sharpness": np.mean([edge_sharpness(*pair) for pair in zip(output, truth, strict=True)]),
        "e_warp": np.mean([e_warp(*new, motion) for (new, _), motion in zip(pairs, back, strict=True)]),
        "e_warp_truth": np.mean([e_warp(*old, motion) for (_, old), motion in zip(pairs, back, strict=True)]),
        "tof": np.mean([flow_distance(farneback_flow(*new), farneback_flow(*old)) for new, old in pairs]),
    }
    assert judged(output, truth) == pytest.approx(expected)


def test_the_truth_judged_by_itself():
    _, truth = clips()
    figures = judged([torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in truth], truth)
    assert figures["psnr"] == math.inf
    assert [figures["ssim"], figures["sharpness"]] == pytest.approx([1, 1])
    assert figures["e_warp"] == figures["e_warp_truth"] > 0 and figures["tof"] == 0


def test_one_frame_says_nothing_about_time():
    output, truth = clips(1)
    figures = judged(output, truth)
    assert math.isnan(figures["e_warp"]) and math.isnan(figures["tof"]) and math.isfinite(figures["psnr"])


def test_it_holds_no_more_than_the_last_frames():
    judge = Judge(DISFlow())
    for pair in zip(*clips(), strict=True):
        judge.push(*pair)
    held = [value for value in vars(judge).values() if isinstance(value, (tuple, list))]
    assert sum(len(value) for value in held) == 2


def test_a_size_that_changes_is_named():
    judge = Judge(DISFlow())
    judge.push(*(np.zeros((32, 32, 3), np.uint8),) * 2)
    with pytest.raises(ValueError, match="32x32 and 40x32"):
        judge.push(*(np.zeros((32, 40, 3), np.uint8),) * 2)
