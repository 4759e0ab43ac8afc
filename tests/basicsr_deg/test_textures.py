"""Procedural pictures: size, contrast, variety and reproducibility."""

import numpy as np
import pytest

from basicsr_deg.textures import as_size, procedural_picture, stripes


def pictures(count):
    rng = np.random.default_rng(0)
    return [procedural_picture(rng, (160, 200)) for _ in range(count)]


@pytest.mark.parametrize("size", [(96, 130), 64, (5, 7), (1, 1), (33, 300)])
def test_a_picture_has_the_requested_size(size):
    picture = procedural_picture(np.random.default_rng(1), size)
    assert picture.shape == ((size, size, 3) if np.isscalar(size) else (*size, 3))
    assert picture.dtype == np.uint8


def test_pictures_have_contrast_and_differ():
    drawn = pictures(8)
    assert sum(picture.std() > 12 for picture in drawn) >= 6
    for number, picture in enumerate(drawn[1:]):
        assert np.abs(picture.astype(int) - drawn[number]).mean() > 5


def test_the_same_seed_gives_the_same_pictures():
    np.testing.assert_array_equal(pictures(3), pictures(3))


@pytest.mark.parametrize("duty", [0.2, 0.5, 0.8])
def test_stripes_cover_their_duty_cycle(duty):
    covered = stripes(np.linspace(0, 1000, 100_001)[:-1], 20.0, duty)
    assert covered.mean() == pytest.approx(duty, abs=1e-3)
    assert (covered.min(), covered.max()) == (0, 1)


def test_a_size_below_one_pixel_is_refused():
    assert as_size(7) == (7, 7)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        as_size((4, 0))
