"""Blur: walking kernels, exponents in both forms, and the dtype of frames."""

from itertools import islice

import numpy as np
import pytest

from basicsr_deg.blur import FAMILIES, PARAMETERS, Blur

WALKS = {
    "sigma_x": {"range": [0.5, 3.0], "step": 0.02},
    "sigma_y": {"range": [0.5, 3.0], "step": 0.02},
    "angle": {"range": [-3.1416, 3.1416], "step": 0.3},
    "beta_gaussian": {"range": [0.5, 4.0], "step": 0.05},
    "beta_plateau": {"range": [1.0, 2.0], "step": 0.1},
    "omega": {"range": [1.0, 1.5], "step": 0.01},
    "omega_large": {"range": [2.0, 3.0], "step": 0.01},
}


def make(family="iso", sizes=(9,), walks=WALKS, **options):
    return Blur({family: 1.0}, list(sizes), walks, **options)


def drawn(blur, seed=0, count=40):
    notes = {}
    made = list(islice(blur.kernels(np.random.default_rng(seed), notes=notes), count))
    return notes, made


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_walk_within_their_range_and_kernels_follow(family):
    notes, made = drawn(make(family))
    used = [name for name in PARAMETERS if name in notes]
    assert used and notes["family"] == family and {kernel.shape for kernel in made} == {(9, 9)}
    for name in used:
        values, (low, high) = np.array(notes[name]), WALKS[name]["range"]
        assert low <= values.min() and values.max() <= high
        assert 0 < np.abs(np.diff(values)).max() <= WALKS[name]["step"]
    assert np.abs(np.diff(made, axis=0)).max(axis=(1, 2)).min() > 0


def test_released_exponents_are_redrawn_between_one_and_the_walking_value():
    fixed = WALKS | {"beta_gaussian": {"range": [3.9, 3.9], "step": 0.0}}
    values = np.array(drawn(make("generalized_iso", walks=fixed, beta="released"), count=300)[0]["beta_gaussian"])
    assert values.min() < 1.1 and values.max() > 3.8 and np.abs(np.diff(values)).mean() > 0.5
    values = drawn(make("generalized_iso", walks=fixed))[0]["beta_gaussian"]
    assert set(values) == {3.9}


def test_large_kernels_use_omega_large():
    assert max(drawn(make("sinc", sizes=[11]))[0]["omega"]) <= 1.5
    assert min(drawn(make("sinc", sizes=[13]))[0]["omega"]) >= 2.0
    assert max(drawn(make("sinc", sizes=[13], large=15))[0]["omega"]) <= 1.5
    without = {name: walk for name, walk in WALKS.items() if name != "omega_large"}
    assert max(drawn(make("sinc", sizes=[13], walks=without))[0]["omega"]) <= 1.5


def test_draws_do_not_depend_on_clip_length():
    clip = np.random.default_rng(0).integers(0, 256, (5, 12, 15, 3), dtype=np.uint8)
    short, long = (list(make("aniso")(clip[:n], np.random.default_rng(3))) for n in (2, 5))
    np.testing.assert_array_equal(short, long[:2])


def test_uint8_is_rounded_and_float_is_not():
    frame = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    (rounded,), (exact,) = (list(make()([x], np.random.default_rng(0))) for x in (frame, frame.astype(np.float64)))
    assert rounded.dtype == np.uint8 and exact.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() <= 0.51


def test_flat_frames_are_unchanged_and_sharp_ones_are_smoothed():
    flat = np.full((14, 14, 3), 77, np.uint8)
    np.testing.assert_array_equal(next(make("plateau_aniso")([flat], np.random.default_rng(0))), flat)
    checks = np.indices((30, 30)).sum(axis=0)[..., None] % 2 * np.full(3, 200.0)
    assert next(make()([checks], np.random.default_rng(1))).std() < checks.std() / 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kernel_types": {"round": 1}}, "kernel_types: got 'round'"),
        ({"kernel_sizes": [8]}, "kernel_sizes: got"),
        ({"kernel_sizes": []}, "kernel_sizes: got"),
        ({"beta": "redrawn"}, "beta: got 'redrawn', expected walk or released"),
        ({"walks": {}}, "'angle' is missing or unknown"),
        ({"walks": WALKS | {"gamma": WALKS["angle"]}}, "'gamma' is missing or unknown"),
        ({"walks": WALKS | {"sigma_x": {"range": [0, 1]}}}, "a sigma of 0"),
        ({"walks": WALKS | {"sigma_x": {"range": [-1, 1]}}}, "below 0"),
        ({"kernel_types": {"sinc": 1}, "walks": WALKS | {"omega": {"range": [0, 1]}}}, "an omega of 0"),
        ({"prob": 2}, "prob: got 2"),
    ],
)
def test_wrong_settings_are_refused(change, why):
    with pytest.raises(ValueError, match=why):
        Blur(**({"kernel_types": {"iso": 1}, "kernel_sizes": [9], "walks": WALKS} | change))
