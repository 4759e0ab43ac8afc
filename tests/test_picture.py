"""The comparison picture: it is drawn for any shape, and shows what it says."""

import numpy as np
import pytest
import torch

from ldm.picture import ACCENT, BAND, GAP, LINE, STRIP, busiest_box, comparison, strips


def clip(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("frames", "low", "high"), [
    (3, (12, 16), (48, 64)), (1, (2, 3), (8, 12)), (1, (1, 1), (1, 1)), (2, (9, 40), (18, 80)), (2, (60, 7), (240, 28)),
    (1, (108, 192), (1080, 1920)), (1, (192, 108), (1920, 1080)), (150, (8, 8), (16, 16)),
])  # fmt: skip
def test_any_shape_gives_a_picture_one_can_look_at(frames, low, high):
    picture = comparison(clip(frames, 3, *low), clip(frames, 3, *high))
    assert picture.dtype == np.uint8
    assert picture.ndim == 3 and picture.shape[2] == 3
    assert picture.shape[1] <= 1620
    assert picture.shape[0] <= 2000


def test_the_middle_frame_of_input_and_output_is_shown():
    """Plain colours per frame: the left half shows the input's middle frame, the right half the output's."""
    lq, sr = torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 32, 32)
    lq[1, 0], sr[1, 2] = 1.0, 1.0
    picture = comparison(lq, sr)
    red, blue = ((picture == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
    half = picture.shape[1] // 2
    assert red[:, :half].mean() > 0.5 and blue[:, half:].mean() > 0.5
    assert not red[:, half:].any() and not blue[:, :half].any()


def test_the_box_lies_on_the_texture():
    sr = torch.full((1, 3, 120, 160), 0.5)
    sr[..., 70:100, 100:150] = clip(1, 3, 30, 50)
    picture = comparison(torch.full((1, 3, 30, 40), 0.5), sr)
    right = picture[:, picture.shape[1] // 2 :]
    y, x = np.nonzero((right == ACCENT).all(-1)[:600, 20:-40])
    scale = 4  # a frame 160 wide is shown four times larger
    assert 60 <= (y.mean() - 36) / scale <= 110
    assert 90 <= (x.mean() + 20) / scale <= 150


def test_the_profile_shows_time_downward():
    """Frames that only grow brighter give a profile that only grows brighter from top to bottom."""
    sr = torch.linspace(0.2, 0.9, 8).view(8, 1, 1, 1).expand(8, 3, 32, 32)
    picture = comparison(sr[..., ::4, ::4], sr)
    profile = picture[-16 - 128 : -16, -60].astype(int)
    assert (np.diff(profile, axis=0) >= 0).all()
    assert len(np.unique(profile[:, 0])) == 8


@pytest.mark.parametrize(("lq", "sr"), [
    ((2, 3, 8, 8), (3, 3, 32, 32)), ((2, 1, 8, 8), (2, 1, 32, 32)), ((0, 3, 8, 8), (0, 3, 32, 32)),
    ((3, 8, 8), (3, 32, 32)),
])  # fmt: skip
def test_what_does_not_fit_is_refused(lq, sr):
    with pytest.raises(ValueError, match="expected"):
        comparison(torch.zeros(lq), torch.zeros(sr))


def test_values_outside_the_range_are_clamped():
    picture = comparison(torch.full((1, 3, 8, 8), -3.0), torch.full((1, 3, 32, 32), 3.0))
    assert (picture[:, picture.shape[1] // 2 :] == 255).all(-1).mean() > 0.5


def test_strips_show_one_row_over_time_and_mark_it():
    rng = np.random.default_rng(0)
    frames = [np.full((80, 640, 3), 128, np.uint8) for _ in range(3)]
    for frame in frames:
        frame[20:68] = rng.integers(0, 255, (48, 640, 3))
    left, top, width, height = busiest_box(frames[1], (640, BAND))
    row = top + height // 2
    for frame in frames:
        frame[row] = (0, 0, 255)
    picture = strips({"a": [255 - frame for frame in frames], "the truth": frames})
    assert picture.shape == (2 * (LINE + STRIP[1]), 2 * STRIP[0] + GAP, 3)
    shown = picture[-STRIP[1] :]
    assert (shown[:, STRIP[0] + GAP + 320] == (0, 0, 255)).all()  # over time
    line = np.flatnonzero((shown[:, 320] == (0, 0, 255)).all(1))
    for column in (1, STRIP[0] - 2):
        mark = np.flatnonzero((shown[:, column] == ACCENT).all(1))
        assert len(mark) > 2 and abs(mark.mean() - line.mean()) <= 1
