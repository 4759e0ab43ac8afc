"""Examples to train on: the same whoever asks, in range, cropped and turned alike in all frames."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from basicsr_deg.clips import RenderedScenes
from basicsr_deg.training_clips import TrainingClips, Variation, to_tensor
from ldm import config


def halve(clip, rng):
    """A degradation: every second pixel, and noise."""
    small = clip[:, ::2, ::2].astype(np.float32) / 255
    return np.clip(small + 0.01 * rng.standard_normal(small.shape, np.float32), 0, 1)


class Grid:
    """A source whose pixels say where they are: red the row, green the column, blue the frame (and 100 x the clip)."""

    def __init__(self, count=3, height=20, width=30):
        self.count, self.height, self.width = count, height, width

    def __len__(self):
        return self.count

    def name(self, number):
        return f"grid {number}"

    def long_enough(self, frames):
        self.asked = frames
        return range(self.count)

    def clip(self, number, rng, frames, *, step=1):
        start = int(rng.integers(5))
        out = np.zeros((frames, self.height, self.width, 3), np.uint8)
        out[..., 0] = np.arange(self.height)[:, None]
        out[..., 1] = np.arange(self.width)
        out[..., 2] = (start + step * np.arange(frames) + 100 * number)[:, None, None]
        return out


def clips(source=None, degradation=halve, **changes) -> TrainingClips:
    settings = {"frames": 3, "gt_size": 16, "scale": 2, "seed": 5} | changes
    return TrainingClips(source or Grid(), degradation, **settings)


def places(gt):
    """Rows, columns and numbers of frames that a picture of Grid shows."""
    levels = (gt * 255).round().int()
    return levels[:, 0, :, 0], levels[:, 1, 0], levels[:, 2, 0, 0]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("frames", "size", "scale"), [(3, 16, 2), (1, 12, 2), (2, 20, 2)])
def test_an_example_is_a_pair_of_float_clips(frames, size, scale):
    item = clips(frames=frames, gt_size=size, scale=scale)[1]
    assert item["gt"].shape == (frames, 3, size, size) and item["lq"].shape == (frames, 3, size // 2, size // 2)
    for clip in item.values():
        assert clip.dtype == torch.float32 and clip.min() >= 0 and clip.max() <= 1
    assert (item["lq"] - item["gt"][..., ::2, ::2]).abs().max() < 0.1


def test_an_item_depends_on_seed_and_number_alone():
    first, second = clips(RenderedScenes(length=3, size=24)), clips(RenderedScenes(length=3, size=24))
    forward = [first[k] for k in range(5)]
    backward = [second[k] for k in reversed(range(5))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[3]), "another pass shows a clip differently"
    assert not same(forward[0], clips(RenderedScenes(length=3, size=24), seed=6)[0])


def test_workers_do_not_change_an_example():
    dataset = clips()
    alone, shared = (list(DataLoader(dataset, batch_size=1, num_workers=count)) for count in (0, 2))
    assert len(alone) == 3 and all(same(a, b) for a, b in zip(alone, shared, strict=True))


def test_each_pass_shows_every_clip_once_in_another_order():
    dataset = clips(Grid(count=2, height=16, width=16), gt_size=16)
    shown = [int(places(dataset[k]["gt"])[2][0]) // 100 for k in range(24)]
    passes = [tuple(shown[k : k + 2]) for k in range(0, 24, 2)]
    assert set(passes) == {(0, 1), (1, 0)}


def test_all_frames_are_cropped_at_one_place_and_mirrored_together():
    tops, mirrored = set(), 0
    for k in range(20):
        rows, columns, frames = places(clips()[k]["gt"])
        assert (rows == rows[:1]).all() and (columns == columns[:1]).all()
        assert rows[0].diff().eq(1).all() and columns[0].diff().abs().eq(1).all()
        assert frames.diff().eq(1).all()
        tops.add(int(rows[0, 0]))
        mirrored += int(columns[0, 0] > columns[0, -1])
    assert len(tops) > 2 and 4 <= mirrored <= 16


def test_clips_may_run_backwards_and_in_larger_steps():
    params = {"interval_list": [2, 3], "random_reverse": True, "use_hflip": False}
    node = {"target": "basicsr_deg.training_clips.Variation", "params": params}
    dataset = clips(variation=config.instantiate(node))
    seen = set()
    for k in range(24):
        _, columns, frames = places(dataset[k]["gt"])
        assert columns[0].diff().eq(1).all()
        steps = frames.diff().unique().tolist()
        assert len(steps) == 1
        seen.add(steps[0])
    assert seen == {2, 3, -2, -3}
    assert dataset.source.asked == 7, "from the first frame to the last, three apart"


def test_without_variation_every_pass_is_the_same_middle():
    dataset = clips(variation=None)
    assert same(dataset[1], dataset[4]) and not same(dataset[1], dataset[2])
    rows, columns, _ = places(dataset[0]["gt"])
    assert rows[0].tolist() == list(range(2, 18)) and columns[0].tolist() == list(range(7, 23))


def test_a_clip_without_degradation_comes_alone():
    assert clips(degradation=None)[0].keys() == {"gt"}


def test_the_target_alone_is_sharpened():
    plain, sharp, strong = (
        clips(RenderedScenes(length=1, size=24), variation=None, usm=usm)[0] for usm in (False, True, {"weight": 2.0})
    )
    assert torch.equal(plain["lq"], sharp["lq"])
    contrast = [item["gt"].std().item() for item in (plain, sharp, strong)]
    assert contrast[0] < contrast[1] < contrast[2] and 0 <= sharp["gt"].min() and sharp["gt"].max() <= 1


def test_clips_smaller_than_the_crop_are_named():
    with pytest.raises(ValueError, match=r"grid \d: got frames of 30x20, expected at least 24"):
        clips(gt_size=24)[0]


def test_a_degradation_of_another_scale_is_refused():
    with pytest.raises(ValueError, match="expected frames of 4x4; check scale"):
        clips(scale=4)[0]


@pytest.mark.parametrize("changes", [{"frames": 0}, {"gt_size": 15}, {"scale": 0}])
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="expected"):
        clips(**changes)


def test_intervals_start_at_one():
    for wrong in ([], [0, 1]):
        with pytest.raises(ValueError, match="interval_list"):
            Variation(interval_list=wrong)


def test_channels_come_before_rows():
    clip = np.zeros((2, 4, 5, 3), np.float32)
    clip[1, 2, 3] = (1, 0.2, 0)
    out = to_tensor(clip)
    assert out.shape == (2, 3, 4, 5) and out[1, :, 2, 3].tolist() == pytest.approx([1.0, 0.2, 0.0])
