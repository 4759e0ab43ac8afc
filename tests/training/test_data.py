"""Clips to train on: the same whoever asks, in range, and read from folders that are checked."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from ldm.training.data import SampledClips, SceneClips, to_tensor


def scenes(**changes) -> SceneClips:
    return SceneClips(**{"length": 4, "frames": 3, "size": 32, "seed": 5} | changes)


def same(a, b) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("lq", "gt"))


@pytest.mark.parametrize(("frames", "size", "scale"), [(3, 32, 4), (1, 24, 2), (2, 33, 3)])
def test_a_clip_comes_with_its_degraded_twin(frames, size, scale):
    item = scenes(frames=frames, size=size, scale=scale)[1]
    assert item["gt"].shape == (frames, 3, size, size)
    assert item["lq"].shape == (frames, 3, size // scale, size // scale)
    for clip in item.values():
        assert clip.dtype == torch.float32 and clip.min() >= 0 and clip.max() <= 1
    small = torch.nn.functional.avg_pool2d(item["gt"], scale)
    assert (small - item["lq"]).abs().mean() < 0.15 and (small - item["lq"]).abs().max() > 0


def test_the_number_of_a_clip_decides_it_in_any_order_and_process():
    first, second = scenes(), scenes()
    forward = [first[k] for k in range(4)]
    backward = [second[k] for k in reversed(range(4))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1]) and not same(forward[0], scenes(seed=6)[0])
    assert len(first) == 4


def test_clips_are_collated_into_batches():
    batch = next(iter(DataLoader(scenes(), batch_size=2)))
    assert batch["gt"].shape == (2, 3, 3, 32, 32) and batch["lq"].shape == (2, 3, 3, 8, 8)


def test_pixels_are_scaled_and_channels_come_first():
    clip = np.zeros((2, 4, 5, 3), np.uint8)
    clip[1, 2, 3] = (255, 51, 0)
    out = to_tensor(clip)
    assert out.shape == (2, 3, 4, 5) and out.dtype == torch.float32
    assert out[1, :, 2, 3].tolist() == pytest.approx([1.0, 0.2, 0.0]) and out.sum().item() == pytest.approx(1.2)


def test_pictures_of_a_folder_are_shown_in_their_own_colours(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.PNG"):
        red = np.zeros((80, 90, 3), np.uint8)
        red[..., 2] = 250  # OpenCV writes blue, green, red
        assert cv2.imwrite(str(tmp_path / name), red)
    (tmp_path / "notes.txt").write_text("no picture")
    shown = scenes(frames=1, length=12, pictures=str(tmp_path))
    mean = torch.stack([shown[k]["gt"].mean((0, 2, 3)) for k in range(12)]).median(0).values
    assert mean[0] > 0.6 and mean[1:].max() < 0.2


def test_a_folder_is_not_touched_before_the_first_clip(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        clips = scenes(pictures=str(folder))
        with pytest.raises(ValueError, match="expected a folder with .*png"):
            clips[0]


def test_an_unreadable_picture_is_named(tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    with pytest.raises(ValueError, match="unreadable pictures.*broken.png"):
        scenes(pictures=str(tmp_path))[0]


def test_sampled_clips_are_read_back(tmp_path):
    for k in (1, 0):  # found by name, not by age
        frames = torch.full((2, 3, 8, 8), 51 * (k + 1), dtype=torch.uint8)
        latent = torch.full((2, 4, 2, 2), k + 0.5, dtype=torch.float16)
        item = {"lq": frames[..., :2, :2].contiguous(), "gt": frames, "latent": latent}
        save_file(item, tmp_path / f"{k}.safetensors")
    clips = SampledClips(str(tmp_path))
    assert len(clips) == 2
    for k in range(2):
        item = clips[k]
        assert {v.dtype for v in item.values()} == {torch.float32}
        assert item["gt"].unique().tolist() == pytest.approx([0.2 * (k + 1)]) and item["lq"].shape == (2, 3, 2, 2)
        assert item["latent"].unique().tolist() == [k + 0.5]


def test_a_folder_without_sampled_clips_is_refused_when_asked(tmp_path):
    clips = SampledClips(str(tmp_path))
    for ask in (lambda: len(clips), lambda: clips[0]):
        with pytest.raises(ValueError, match="make_latents.py"):
            ask()
