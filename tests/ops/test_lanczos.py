import numpy as np
import pytest
from PIL import Image

from ldm.ops.lanczos import floored_to_multiple


def test_sides_are_floored_by_pillow_and_fitting_frames_stay():
    frame = np.random.default_rng(0).integers(0, 256, (18, 15, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(frame).resize((12, 16), Image.Resampling.LANCZOS))
    assert np.array_equal(floored_to_multiple(frame), expected)
    assert floored_to_multiple(expected) is expected
    assert floored_to_multiple(frame, multiple=5).shape == (15, 15, 3)


def test_frames_that_would_vanish_are_refused():
    with pytest.raises(ValueError, match="got a frame of 3x18, expected at least 4"):
        floored_to_multiple(np.zeros((18, 3, 3), np.uint8))
