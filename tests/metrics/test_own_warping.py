"""The published warping error against closed forms and a computation pixel by pixel."""

import numpy as np
import pytest
import torch

from ldm.metrics.own_warping import own_warping_error

RNG = np.random.default_rng(0)


def still(value=(0.0, 0.0)):
    """An estimator that sees the same motion everywhere, forth; and its opposite back."""
    calls = []

    def flow(one, other):
        calls.append((one, other))
        sign = 1 if len(calls) % 2 else -1
        return sign * torch.tensor(value).view(1, 2, 1, 1).expand(1, 2, *one.shape[-2:])

    flow.calls = calls
    return flow


def test_a_change_of_brightness_is_summed_over_channels():
    before, frame = np.full((32, 48, 3), 100, np.uint8), np.full((32, 48, 3), 110, np.uint8)
    assert own_warping_error(before, frame, still()) == pytest.approx(3000 * (10 / 255) ** 2, rel=1e-5)
    assert own_warping_error(before, before, still()) == 0


def test_motion_that_is_followed_costs_nothing():
    wide = np.repeat(np.repeat(RNG.integers(0, 256, (16, 40, 3), dtype=np.uint8), 2, axis=0), 2, axis=1)
    before, frame = wide[:, 4:68], wide[:, :64]  # moves by 4 pixels to the right: 2 of the half size
    got = own_warping_error(before, frame, still((2.0, 0.0)))
    assert got < own_warping_error(before, frame, still()) / 5
    # What is left is at the right border, where the nearest pixel stands in for what is outside.
    before[:, 60:] = before[:, 58:60].repeat(2, axis=1)
    assert own_warping_error(before, frame, still((2.0, 0.0))) == pytest.approx(0, abs=1e-6)


def test_the_estimator_sees_black_pictures_as_released():
    frames = RNG.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    released, corrected = still(), still()
    own_warping_error(*frames, released)
    own_warping_error(*frames, corrected, released=False)
    assert len(released.calls) == len(corrected.calls) == 2
    for dark, clear in zip(released.calls, corrected.calls, strict=True):
        for one, other in zip(dark, clear, strict=True):
            assert other.shape == (1, 3, 16, 24) and other.max() > 0.5
            torch.testing.assert_close(one * 255, other)
    assert torch.equal(corrected.calls[0][0], corrected.calls[1][1])  # forth, then back
    assert torch.equal(corrected.calls[0][1], corrected.calls[1][0])


def test_sides_are_filled_up_to_multiples_of_eight():
    frames = RNG.integers(0, 256, (2, 30, 45, 3), dtype=np.uint8)
    flow = still()
    own_warping_error(*frames, flow, released=False)
    (image, _), _ = flow.calls
    assert image.shape == (1, 3, 16, 24)  # 15 x 22, one row below, one column each side
    assert torch.equal(image[..., 15, :], image[..., 14, :])
    assert torch.equal(image[..., 0], image[..., 1]) and torch.equal(image[..., 23], image[..., 22])


def by_hand(old, new, forth, back):
    """The definition, pixel by pixel, of pictures (3, h, w) and flows (2, h, w)."""
    _, h, w = old.shape

    def at(image, x, y):
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        columns, rows = np.clip([x0, x0 + 1], 0, w - 1), np.clip([y0, y0 + 1], 0, h - 1)
        across, down = np.clip(x, 0, w - 1) - columns[0], np.clip(y, 0, h - 1) - rows[0]
        top, bottom = (image[:, r, columns[0]] * (1 - across) + image[:, r, columns[1]] * across for r in rows)
        return top * (1 - down) + bottom * down

    total = count = 0
    for y in range(h):
        for x in range(w):
            motion = forth[:, y, x]
            there = x + motion[0], y + motion[1]
            came = at(back, *there)
            lost = ((motion + came) ** 2).sum() > 0.01 * ((motion**2).sum() + (came**2).sum()) + 0.5
            right = forth[:, y, x] - forth[:, y, x + 1] if x + 1 < w else np.zeros(2)
            below = forth[:, y, x] - forth[:, y + 1, x] if y + 1 < h else np.zeros(2)
            edge = (right**2).sum() + (below**2).sum() > 0.01 * (motion**2).sum() + 0.002
            if not (lost or edge):
                total += ((at(new, *there) - old[:, y, x]) ** 2).sum()
                count += 1
    return 1000 * total / count, count


def test_it_is_the_definition():
    frames = RNG.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    forth = torch.stack([1.3 + 0.04 * columns, 0.7 - 0.03 * rows])[None]
    back = -forth + 0.9 * (columns > 17)  # does not come back there
    forth[..., 6:10, 4:8] += 0.3  # an object with boundaries
    flows = iter([forth, back])
    got = own_warping_error(*frames, lambda one, other: next(flows))
    old, new = (torch.from_numpy(f).double().reshape(16, 2, 24, 2, 3).mean(dim=(1, 3)).numpy() / 255 for f in frames)
    wanted, count = by_hand(*(np.moveaxis(f, 2, 0) for f in (old, new)), forth[0].numpy(), back[0].numpy())
    assert 50 < count < 350
    assert got == pytest.approx(wanted, rel=1e-4)


def test_where_nothing_is_visible_it_is_nothing():
    frames = RNG.integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    assert own_warping_error(*frames, lambda one, other: torch.full((1, 2, 16, 24), 3.0)) == 0


def test_what_cannot_be_judged_is_named():
    frame = np.zeros((32, 48, 3), np.uint8)
    with pytest.raises(ValueError, match="48x32 and 32x32"):
        own_warping_error(frame, frame[:, :32], still())
    with pytest.raises(FloatingPointError, match="not finite"):
        own_warping_error(frame, frame, still((float("nan"), 0.0)))
