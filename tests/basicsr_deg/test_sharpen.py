"""Unsharp masking: flat regions are unchanged, edges overshoot."""

import cv2
import numpy as np
import pytest

from basicsr_deg.sharpen import unsharp_mask


def step(low=60, high=180):
    frame = np.full((40, 64, 3), low, np.uint8)
    frame[:, 32:] = high
    return frame


def test_flat_frames_and_slight_differences_are_unchanged():
    flat = np.full((2, 20, 30, 3), 99, np.uint8)
    np.testing.assert_allclose(unsharp_mask(flat), flat, atol=1e-3)
    slight = step(100, 115)  # differs by 7.5 from its blur, below the threshold of 10
    np.testing.assert_array_equal(unsharp_mask(slight), slight)
    assert np.abs(unsharp_mask(slight, threshold=1) - slight).max() > 1


def test_edges_overshoot_by_the_weight_and_stay_in_range():
    out = unsharp_mask(step(), kernel_size=9, weight=1.0)
    assert out[20, 32].min() > 190 and out[20, 31].max() < 50
    extremes = unsharp_mask(step(0, 255))
    assert extremes.min() == 0 and extremes.max() == 255 and extremes.dtype == np.float32
    np.testing.assert_allclose(unsharp_mask(step(), weight=0.0), step(), atol=1e-4)


def test_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (30, 33, 3)).astype(np.float32)
    line = cv2.getGaussianKernel(51, 8.0)  # 0.3 ((51 - 1)/2 - 1) + 0.8
    blur = lambda x: cv2.filter2D(x, -1, line @ line.T)  # noqa: E731
    residue = frame - blur(frame)
    soft = blur((np.abs(residue) > 10).astype(np.float32))
    expected = soft * np.clip(frame + 0.5 * residue, 0, 255) + (1 - soft) * frame
    np.testing.assert_allclose(unsharp_mask(frame), expected, atol=2e-3)


def test_clips_are_sharpened_frame_by_frame():
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 22, 3), dtype=np.uint8)
    out = unsharp_mask(clip, kernel_size=9)
    assert out.shape == clip.shape
    np.testing.assert_array_equal(out[1, 2], unsharp_mask(clip[1, 2], kernel_size=9))
    assert unsharp_mask(clip[:, :0]).shape == (2, 0, 20, 22, 3)


@pytest.mark.parametrize(("shape", "kernel"), [((20, 20), 51), ((20, 20, 4), 51), ((20, 20, 3), 50), ((20, 20, 3), 0)])
def test_wrong_shapes_and_kernels_are_refused(shape, kernel):
    with pytest.raises(ValueError, match="expected"):
        unsharp_mask(np.zeros(shape), kernel_size=kernel)
