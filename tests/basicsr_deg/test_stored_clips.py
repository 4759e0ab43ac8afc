"""Examples that are made once: kept on the disk, read again, varied from the second pass on."""

import cv2
import numpy as np
import pytest
import torch

from basicsr_deg.clips import StillPhotographs
from basicsr_deg.pipeline import Mixture
from basicsr_deg.stored_clips import StoredClips


class Numbers(torch.utils.data.Dataset):
    """Clips of noise; remembers which were made."""

    def __init__(self):
        self.made = []

    def __getitem__(self, number):
        self.made.append(number)
        rng = np.random.default_rng(number)
        levels = {"gt": (3, 3, 8, 8), "lq": (3, 3, 2, 2)}
        return {name: torch.from_numpy(rng.integers(0, 256, shape)) / 255 for name, shape in levels.items()}


def test_each_item_is_made_once_and_comes_again(tmp_path):
    source = Numbers()
    stored = StoredClips(source, folder=str(tmp_path / "clips"), count=2)
    first = [stored[k] for k in (0, 1)]
    again = StoredClips(source, folder=str(tmp_path / "clips"), count=2)
    for one, other, wanted in zip(first, (again[0], again[1]), (Numbers()[0], Numbers()[1]), strict=True):
        for name in ("gt", "lq"):
            assert torch.equal(one[name], other[name])
            assert torch.allclose(one[name], wanted[name].float(), atol=1e-6)
    assert source.made == [0, 1]
    assert len(list((tmp_path / "clips").iterdir())) == 2


def test_later_passes_mirror_and_reverse_input_and_truth_alike(tmp_path):
    stored = StoredClips(Numbers(), folder=str(tmp_path), count=1)
    plain, seen = stored[0], set()
    for turn in range(1, 30):
        clip = stored[turn]
        assert all(torch.equal(clip[name], stored[turn][name]) for name in clip)
        for mirrored in (False, True):
            for backwards in (False, True):
                changed = {n: x.flip(-1) if mirrored else x for n, x in plain.items()}
                changed = {n: x.flip(0) if backwards else x for n, x in changed.items()}
                if all(torch.equal(changed[name], clip[name]) for name in clip):
                    seen.add((mirrored, backwards))
    assert len(seen) == 4


def test_a_count_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got count=0, expected at least 1"):
        StoredClips(Numbers(), folder=str(tmp_path), count=0)


def test_a_mixture_takes_one_of_its_degradations():
    parts = {name: {"degradation": lambda clip, rng, n=name: n, "weight": w} for name, w in (("a", 3), ("b", 1))}
    mixture, rng = Mixture(parts), np.random.default_rng(0)
    drawn = [mixture(np.zeros(1), rng) for _ in range(400)]
    assert 60 < drawn.count("b") < 140 and set(drawn) == {"a", "b"}
    with pytest.raises(ValueError, match="degradations.a: got .*, expected a degradation and a weight"):
        Mixture({"a": {"weight": 1}})
    with pytest.raises(ValueError, match="expected a mapping of names"):
        Mixture({})


def test_photographs_stand_still_and_are_never_enlarged(tmp_path):
    rng = np.random.default_rng(0)
    assert cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    assert cv2.imwrite(str(tmp_path / "small.png"), np.full((20, 60, 3), 255, np.uint8))
    source = StillPhotographs(length=5, size=32, pictures=str(tmp_path))
    assert len(source) == 5 and list(source.long_enough(9)) == list(range(5)) and "3" in source.name(3)
    for seed in range(8):
        clip = source.clip(0, np.random.default_rng(seed), 3, step=2)
        assert clip.shape == (3, 32, 32, 3) and (clip == clip[:1]).all() and clip.std() > 20
    with pytest.raises(ValueError, match="got 2 photographs of less than 100 pixels a side"):
        StillPhotographs(length=5, size=100, pictures=str(tmp_path)).long_enough(1)
