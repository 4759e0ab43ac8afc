"""Measures by name: their settings, the work they share, and figures that are those of the functions."""

import gc
from itertools import pairwise

import cv2
import numpy as np
import pytest

from ldm.metrics.fidelity import psnr, ssim
from ldm.metrics.own_warping import own_warping_error
from ldm.metrics.protocol import METRICS, Options, measures
from ldm.metrics.scored_frame import ScoredFrame
from ldm.metrics.sharpness import edge_sharpness
from ldm.metrics.temporal import e_warp, farneback_flow, flow_change, flow_distance, motion_back
from ldm.ops.dis import DISFlow


def clips(frames=4, h=40, w=56):
    """A truth that moves and a softer, flickering output of it, (h, w, 3) uint8 each."""
    wide = cv2.resize(np.random.default_rng(0).integers(0, 256, (h // 8, w // 4, 3), dtype=np.uint8), (2 * w, h))
    truth = [np.ascontiguousarray(wide[:, 2 * k : 2 * k + w]) for k in range(frames)]
    soft = [cv2.GaussianBlur(frame, (0, 0), 1) // 2 + np.uint8(50 + 9 * (k % 2)) for k, frame in enumerate(truth)]
    return soft, truth


def taken(names, output, truth=None, **options):
    made = measures(names, options=Options(**options), count=len(output))
    for number, frame in enumerate(output):
        for measure in made:
            measure.push(frame, None if truth is None else truth[number])
    return made


def figures(made):
    return {name: value for measure in made for name, value in measure.figures().items()}


def test_the_forms_of_stablevsr():
    output, truth = clips()
    estimator = {"raft_large": ("a stand-in", DISFlow("fast"))}
    names = ["ssim:windows=torchmetrics", "tof_stablevsr"]
    made = taken(names, output, truth, flows=estimator)
    windows = [ssim(*pair, windows="torchmetrics") for pair in zip(output, truth, strict=True)]
    changes = [flow_change(*pairs, DISFlow("fast")) for pairs in zip(pairwise(output), pairwise(truth), strict=True)]
    assert figures(made) == {names[0]: pytest.approx(np.mean(windows)), names[1]: pytest.approx(10 * np.mean(changes))}
    assert "torchmetrics" in made[0].protocol and "a stand-in" in made[1].protocol


def test_the_figures_are_means_of_the_functions():
    output, truth = clips()
    got = figures(taken(["psnr", "ssim:channels=y,crop=2", "sharpness", "e_warp", "tof"], output, truth))
    both, pairs = list(zip(output, truth, strict=True)), list(zip(pairwise(output), pairwise(truth), strict=True))
    back = [motion_back(*old, DISFlow()) for _, old in pairs]
    flows = [[farneback_flow(*pair) for pair in both_pairs] for both_pairs in pairs]
    wanted = {
        "psnr": [psnr(*pair) for pair in both],
        "ssim:channels=y,crop=2": [ssim(*pair, channels="y", crop=2) for pair in both],
        "sharpness": [edge_sharpness(*pair) for pair in both],
        "e_warp": [e_warp(*new, motion) for (new, _), motion in zip(pairs, back, strict=True)],
        "e_warp_truth": [e_warp(*old, motion) for (_, old), motion in zip(pairs, back, strict=True)],
        "tof": [flow_distance(*pair) for pair in flows],
    }
    assert got == {name: pytest.approx(np.mean(values), rel=1e-9) for name, values in wanted.items()}


def test_two_moments_are_held():
    output, truth = clips(6)
    gc.collect()
    before = sum(type(thing) is ScoredFrame for thing in gc.get_objects())
    made = taken(["psnr", "e_warp", "tof"], output, truth)
    gc.collect()
    assert sum(type(thing) is ScoredFrame for thing in gc.get_objects()) - before == 2, made


def test_the_published_warping_error_needs_no_truth_but_shows_its_own():
    output, truth = clips()
    names = ["e_warp_quantvsr:flow=dis", "e_warp_quantvsr:flow=dis,input=corrected"]
    got = figures(taken(names, output, truth))
    for name, released in zip(names, (True, False), strict=True):
        for ending, clip in (("", output), ("_truth", truth)):
            wanted = np.mean([own_warping_error(*pair, DISFlow(), released=released) for pair in pairwise(clip)])
            assert got[f"{name}{ending}"] == pytest.approx(wanted, rel=1e-6)
    (alone,) = taken(names[:1], output)
    assert alone.missing is None and alone.figures()[names[0]] == got[names[0]]
    assert np.isnan(alone.figures()[f"{names[0]}_truth"])


def test_the_truths_motion_is_found_once():
    output, truth = clips()
    calls = []

    def flow(one, other):
        calls.append(1)
        return DISFlow()(one, other)

    made = taken(
        ["e_warp:flow=own", "e_warp:flow=own,frames=first3", "psnr"], output, truth, flows={"own": ("own", flow)}
    )
    assert len(calls) == 2 * 3  # forth and back, for three pairs
    assert made[0].figures()["e_warp:flow=own"] == taken(["e_warp"], output, truth)[0].figures()["e_warp"]
    assert "(own)" in made[0].protocol


@pytest.mark.parametrize(
    ("frames", "numbers", "said"),
    [
        ("all", [0, 1, 2, 3], "all frames"),
        ("centre", [2], "centre frame"),
        ("first2", [0, 1], "first 2 frames"),
        ("0+3+99", [0, 3], "frames 0, 3, 99 as far as a clip has them"),
    ],
)
def test_frames_are_chosen(frames, numbers, said):
    output, truth = clips()
    (measure,) = taken([f"psnr:frames={frames}"], output, truth)
    wanted = np.mean([psnr(output[k], truth[k]) for k in numbers])
    assert measure.figures() == {f"psnr:frames={frames}": pytest.approx(wanted)}
    assert measure.protocol == f"dB, RGB, 8 bit, crop 0, {said}"


def test_what_cannot_be_had_has_a_reason_and_the_rest_goes_on():
    output, truth = clips()
    names = ["psnr", "e_warp:flow=raft", "e_warp_quantvsr", "dover", "niqe"]
    made = taken(names, output)
    reasons = [measure.missing for measure in made]
    assert reasons[:3] == [
        "there is no truth to compare with",
        "needs raft-things.pth: --raft FILE, or in the folder of --weights",
        "needs raft-things.pth: --raft FILE, or in the folder of --weights",
    ]
    assert "checkout" in reasons[3] and "niqe_pris_params.npz" in reasons[4]
    assert np.isfinite(figures(taken(["dover", "psnr"], output, truth))["psnr"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("psnr_y", r"got metric 'psnr_y', .*did you mean psnr\?"),
        ("", "got metric ''"),
        ("psnr:chanels=y", "got setting 'chanels' in .*, expected one of frames, channels, crop"),
        ("psnr:channels=luma", "channels= one of rgb, y, y8, gray, gray8"),
        ("psnr:crop=-1", "crop= a whole number"),
        ("ssim:frames=last", "frames= all, centre, first25, or numbers"),
        ("ssim:frames=0+", "frames= all, centre"),
        ("lpips:net=resnet", "net= one of alex, vgg, squeeze"),
        ("vmaf:model=4k", "model= one of default, neg"),
    ],
)
def test_words_that_are_not_known(name, expected):
    with pytest.raises(ValueError, match=expected):
        measures([name], count=3)


def test_the_centre_needs_a_length():
    with pytest.raises(ValueError, match="clip of unknown length"):
        measures(["psnr:frames=centre"])


def test_the_table_says_what_each_measure_says():
    for measure, (name, metric) in zip(measures(list(METRICS)), METRICS.items(), strict=True):
        assert (measure.name, measure.better, measure.reference) == (name, metric.better, metric.reference)
        assert measure.missing or measure.protocol.endswith(", all frames")
