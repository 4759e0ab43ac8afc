import pytest
import torch

from ldm.ops.windows import WindowPlan, consecutive_windows, crossfaded_windows, over_windows, released_windows


def mean_of_window(clip, *, scale=1.0):
    """Something that differs between windows."""
    return scale * clip + clip.mean(1, keepdim=True)


def visited_in_order(clip, windows):
    """As the released code has it: first visits are written, later ones averaged with the earlier value."""
    out, seen = torch.zeros_like(clip), torch.zeros(clip.shape[1], dtype=torch.bool)
    for window in windows:
        for frame, value in zip(
            range(window.start, window.stop), mean_of_window(clip[:, window]).unbind(1), strict=True
        ):
            out[:, frame] = 0.5 * out[:, frame] + 0.5 * value if seen[frame] else value
            seen[frame] = True
    return out


@pytest.mark.parametrize("frames", [1, 8, 9, 12, 13, 14, 15, 19, 20, 25, 26, 31])
def test_released_shares_are_the_visits_in_order(frames):
    clip = torch.randn(2, frames, 3, 4, generator=torch.Generator().manual_seed(frames))
    starts = [min(s, frames - 8) for s in range(0, frames, 6)] if frames > 8 else [0]
    expected = visited_in_order(clip, [slice(s, min(s + 8, frames)) for s in starts])
    torch.testing.assert_close(over_windows(mean_of_window, released_windows)(clip), expected)


@pytest.mark.parametrize("frames", [13, 14, 19, 20])
def test_a_last_window_that_is_repeated_counts_twice_and_is_computed_once(frames):
    calls = []

    def fn(clip):
        calls.append(clip.shape[1])
        return mean_of_window(clip)

    plan = released_windows(frames)
    assert plan.windows[-1] == plan.windows[-2] and len(plan.distinct().windows) == len(plan.windows) - 1
    clip = torch.arange(frames, dtype=torch.float32).view(1, frames, 1)
    repeated = over_windows(fn, released_windows)(clip)
    assert calls == [8] * (len(plan.windows) - 1)
    once = WindowPlan(plan.windows[:-1], plan.shares[:-1])  # what a build that skips the repetition has
    once.shares[:, plan.windows[-1]] *= 2
    assert (over_windows(mean_of_window, lambda _: once)(clip) - repeated).abs().max() > 0.1


@pytest.mark.parametrize("frames", range(1, 40))
def test_shares_sum_to_one(frames):
    for plan in (released_windows(frames), crossfaded_windows(frames), consecutive_windows(frames)):
        torch.testing.assert_close(plan.shares.sum(0), torch.ones(frames, dtype=torch.float64))
        torch.testing.assert_close(plan.distinct().shares.sum(0), torch.ones(frames, dtype=torch.float64))
        for window, row in zip(*plan, strict=True):
            inside = torch.zeros(frames, dtype=torch.bool)
            inside[window] = True
            assert not row[~inside].any()


def test_crossfaded_windows_are_never_repeated_and_fade():
    for frames in range(1, 60):
        windows, _ = crossfaded_windows(frames)
        pairs = [(w.start, w.stop) for w in windows]
        assert len(set(pairs)) == len(pairs) and pairs[-1][1] == frames
        assert all(b[0] <= a[1] - 2 for a, b in zip(pairs, pairs[1:], strict=False))
    _, shares = crossfaded_windows(14)
    assert shares[0, 5] == 1 and 0.5 < shares[0, 6] < 1 and 0 < shares[0, 7] < 0.5


def test_chunks_overlap_with_less_of_a_seam():
    """A function with an edge effect, as padding in time has: overlapping chunks are nearer to the whole."""

    def edgy(clip):
        return clip + torch.nn.functional.pad(clip[:, 1:], (0, 0, 0, 1))

    clip = torch.rand(1, 30, 4, generator=torch.Generator().manual_seed(0)) + 1
    side_by_side = over_windows(edgy, lambda n: consecutive_windows(n, length=5))(clip)
    overlapping = over_windows(edgy, lambda n: crossfaded_windows(n, length=5, overlap=2))(clip)
    whole = edgy(clip)
    assert (overlapping - whole).abs().max() < 0.5 * (side_by_side - whole).abs().max()


def test_clips_are_cut_together_and_settings_pass():
    def fn(a, b, *, scale):
        assert a.shape[1] == b.shape[1]
        return scale * a.flatten(2)[..., :1] + b

    a, b = torch.randn(1, 20, 2, 3), torch.randn(1, 20, 1)
    run = over_windows(fn, released_windows)
    torch.testing.assert_close(run(a, b, scale=2.0), 2 * a[..., :1, 0] + b)
    with pytest.raises(ValueError, match="got clips of \\[20, 19\\] frames"):
        run(a, b[:, 1:], scale=1.0)


def test_half_precision_is_summed_in_float32():
    clip = torch.full((1, 9, 1), 0.1, dtype=torch.bfloat16)
    out = over_windows(lambda x: x, crossfaded_windows)(clip)
    assert out.dtype == torch.bfloat16 and torch.equal(out, clip)


@pytest.mark.parametrize("plan", [released_windows, crossfaded_windows])
def test_windows_that_make_no_sense_are_refused(plan):
    for arguments in (
        {"frames": 0},
        {"frames": 9, "overlap": 8},
        {"frames": 9, "overlap": -1},
        {"frames": 9, "length": 0},
    ):
        with pytest.raises(ValueError, match="expected 1 or more frames and an overlap"):
            plan(**arguments)
