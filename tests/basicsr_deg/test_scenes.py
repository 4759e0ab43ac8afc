"""The random clips: shapes, determinism, and motion that is really motion."""

import numpy as np
import pytest

from basicsr_deg.scenes import moving_layers
from basicsr_deg.textures import procedural_picture


def pictures(count=3, size=(160, 200), seed=0):
    rng = np.random.default_rng(seed)
    return [procedural_picture(rng, size) for _ in range(count)]


def test_the_same_seed_gives_the_same_clip():
    first, second = (moving_layers(np.random.default_rng(5), pictures(), frames=4, size=(48, 64)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = moving_layers(np.random.default_rng(6), pictures(), frames=4, size=(48, 64))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("source", [(20, 20), (64, 64), (500, 700)])
@pytest.mark.parametrize("size", [(64, 64), (31, 57)])
def test_clips_have_the_requested_size_for_pictures_of_any_size(source, size):
    clip = moving_layers(np.random.default_rng(2), pictures(2, source), frames=3, size=size)
    assert clip.shape == (3, *size, 3)
    assert clip.dtype == np.uint8


def test_most_clips_move_smoothly():
    """Neighbouring frames differ, but less than frames further apart, as in a motion."""
    rng, images = np.random.default_rng(3), pictures(4)
    moving = 0
    for _ in range(20):
        clip = moving_layers(rng, images, frames=5, size=(64, 64)).astype(float)
        near, far = np.abs(clip[1:] - clip[:-1]).mean(), np.abs(clip[4] - clip[0]).mean()
        assert near <= far + 2
        moving += near > 0.5
    assert moving >= 14


def test_flat_pictures_stay_flat():
    """Warping, averaging and compositing grey over grey gives grey up to rounding."""
    flat = [np.full((150, 150, 3), 90, np.uint8)]
    rng = np.random.default_rng(4)
    close = [np.abs(moving_layers(rng, flat, frames=2, size=32).astype(int) - 90) <= 3 for _ in range(10)]
    assert sum(clip.all() for clip in close) >= 5  # the others show a textured cut-out


@pytest.mark.parametrize(
    ("images", "frames"), [([], 3), (None, 0), ([np.zeros((9, 9), np.uint8)], 2), ([np.zeros((9, 9, 3))], 2)]
)
def test_invalid_pictures_are_refused(images, frames):
    images = pictures(1, 16) if images is None else images
    with pytest.raises(ValueError, match="expected"):
        moving_layers(np.random.default_rng(0), images, frames=frames, size=32)
