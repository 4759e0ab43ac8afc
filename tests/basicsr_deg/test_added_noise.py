"""Noise: its standard deviation, its colour and its dependence on brightness."""

import numpy as np
import pytest

from basicsr_deg.noise import Noise, poisson_noise


def make(kind="gaussian", *, gray=0.0, sigma=(8, 8), scale=(1, 1), step=0.0):
    gray_prob = {"gaussian": gray, "poisson": gray}
    walks = ({"range": [*sigma], "step": step}, {"range": [*scale], "step": step})
    return Noise({kind: 1.0}, *walks, gray_prob)


def added(noise, level=100.0, count=1, seed=0):
    clip = np.full((count, 96, 96, 3), level, np.float32)
    return np.stack(list(noise(clip, np.random.default_rng(seed)))) - clip


def test_gaussian_noise_has_its_deviation_and_mean_zero():
    out = added(make())
    assert abs(out.std() - 8) < 0.2 and abs(out.mean()) < 0.2 and out.dtype == np.float32
    assert np.abs(np.corrcoef(out.reshape(-1, 3).T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_gray_noise_is_the_same_in_all_channels(kind):
    out = added(make(kind, gray=1.0))
    assert np.ptp(out, axis=-1).max() < 1e-4 and out.std() > 0.5
    assert np.ptp(added(make(kind)), axis=-1).max() > 0.5


def test_gray_is_drawn_once_per_clip_with_its_probability():
    found = []
    for seed in range(300):
        notes = {}
        list(make(gray=0.4)(np.zeros((2, 1, 1, 3)), np.random.default_rng(seed), notes=notes))
        found.append(notes["gray"])
    assert abs(np.mean(found) - 0.4) < 0.08


def test_poisson_deviation_is_the_root_of_brightness_over_levels():
    rng = np.random.default_rng(0)
    levels = np.repeat(np.arange(200, 216), 600).reshape(96, 100, 1)  # 16 grey levels
    out = poisson_noise(levels, rng)
    assert abs(out.std() - np.sqrt(207.5 / 16)) < 0.1 and abs(out.mean()) < 0.15
    seventeen = levels.copy()
    seventeen[0, 0] = 0  # a 17th level rounds up to 32
    assert abs(poisson_noise(seventeen, rng).std() - np.sqrt(207.5 / 32)) < 0.1


def test_poisson_noise_of_black_is_zero_and_scale_is_a_factor():
    assert not added(make("poisson"), level=0.0).any()
    one, three = added(make("poisson")), added(make("poisson", scale=(3, 3)))
    np.testing.assert_allclose(three, 3 * one, atol=1e-3)


def test_strength_walks_from_frame_to_frame():
    notes = {}
    list(make(sigma=(2, 20), step=0.5)(np.zeros((9, 2, 2, 3)), np.random.default_rng(0), notes=notes))
    steps = np.abs(np.diff(notes["sigma"]))
    assert len(notes["sigma"]) == 9 and 0 < steps.min() and steps.max() <= 0.5


def test_gray_noise_follows_the_luma_of_rgb():
    class Counting:
        """Returns the lowest value of every draw, so that noise is grey, and records the rates of Poisson draws."""

        rates = ()

        def uniform(self, low=0.0, high=1.0):
            return low

        def poisson(self, lam):
            self.rates = (*self.rates, lam.max())
            return lam

    rng = Counting()
    colours = np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3) * 255
    list(make("poisson", gray=1.0).poisson(colours, rng))
    assert rng.rates == tuple(round(255 * weight) for weight in (0.299, 0.587, 0.114))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"types": {"speckle": 1}}, "types: got 'speckle'"),
        ({"sigma": {"range": [-1, 1]}}, "below 0"),
        ({"gray_prob": {"gaussian": 0.4}}, "gray_prob: got"),
        ({"gray_prob": {"gaussian": 0.4, "poisson": 4}}, "gray_prob.poisson: got 4"),
    ],
)
def test_wrong_settings_are_refused(change, why):
    settings = {"types": {"gaussian": 1}, "sigma": {"range": [0, 1]}, "scale": {"range": [0, 1]}}
    with pytest.raises(ValueError, match=why):
        Noise(**(settings | {"gray_prob": {"gaussian": 0, "poisson": 0}} | change))
