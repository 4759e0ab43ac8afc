"""Training pairs: clips of any source, cropped, flipped and degraded."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from basicsr_deg.sharpen import unsharp_mask

BUILDABLE = ("TrainingClips", "Variation")  # what a configuration may name as a target

SHUFFLE = 1  # separates the random numbers of the order of clips from those of an example


class Variation:
    """Random changes of a clip from one pass to the next.

    Args:
        interval_list: possible distances between neighbouring frames.
        random_reverse, use_hflip: reverse or mirror a clip with probability 1/2.

    Raises ValueError for distances below 1.
    """

    def __init__(self, *, interval_list: Sequence[int] = (1,), random_reverse: bool = False, use_hflip: bool = True):
        if not interval_list or min(interval_list) < 1:
            raise ValueError(f"got interval_list={list(interval_list)}, expected whole numbers from 1")
        self.interval_list, self.random_reverse, self.use_hflip = list(interval_list), random_reverse, use_hflip

    def __call__(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the clip (T, H, W, 3), reversed or mirrored at random."""
        backwards, mirrored = rng.random(2) < 0.5
        clip = clip[::-1] if self.random_reverse and backwards else clip
        return clip[:, :, ::-1] if self.use_hflip and mirrored else clip


RELEASED = Variation()


class TrainingClips(Dataset):
    """`{"gt": (T, 3, H, W), "lq": (T, 3, H/scale, W/scale)}` float32 RGB in [0, 1]; `gt` alone without a degradation.

    Item i depends on (seed, i) alone, so that it is the same in any process and order. A pass has `len()` items, one of
    each clip that is long enough; greater indices belong to further passes, each in another order.

    Args:
        source: see `basicsr_deg.clips`.
        degradation: (T, H, W, 3) uint8 and a generator -> (T, h, w, 3) float32 in [0, 1]; None: no "lq".
        gt_size: side of the square crop, which has the same position in all frames.
        variation: None: every pass is equal, with centre crops, for validation. Rendered scenes depend on the seed
            alone: use another one than in training.
        usm: True: sharpen the target after the input was made from it, as released; or arguments of
            `basicsr_deg.sharpen.unsharp_mask`.

    The length and the items raise ValueError for an invalid source, and for clips that are too small or too short.
    """

    def __init__(
        self,
        source,
        degradation: Callable | None = None,
        *,
        frames: int,
        gt_size: int,
        scale: int = 4,
        seed: int = 0,
        variation: Variation | None = RELEASED,
        usm: bool | dict = False,
    ):
        if frames < 1 or gt_size < 1 or scale < 1 or gt_size % scale:
            raise ValueError(f"got frames={frames}, gt_size={gt_size}, expected at least 1 and a multiple of {scale}")
        self.source, self.degradation, self.frames, self.seed = source, degradation, frames, seed
        self.gt_size, self.scale, self.variation = gt_size, scale, variation
        self.usm = None if usm is False else {} if usm is True else dict(usm)
        self._numbers: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self._usable())

    def name(self, index: int) -> str:
        """Return the name of the clip of an item."""
        return self.source.name(self._number(index))

    def _number(self, index: int) -> int:
        """Return the number of the clip of an item."""
        done, place = divmod(index, len(self))
        if self.variation is not None:
            place = shuffled(self.seed, done, len(self))[place]
        return self._usable()[place]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        number = self._number(index)
        if self.variation is None:
            index %= len(self)
        rng = np.random.default_rng([self.seed, index])
        step = self._intervals[rng.integers(len(self._intervals))]
        gt = self._cropped(self.source.clip(number, rng, self.frames, step=step), number, rng)
        gt = np.ascontiguousarray(self.variation(gt, rng) if self.variation else gt)
        item = {"gt": to_tensor(self._sharpened(gt))}
        if self.degradation is not None:
            item["lq"] = to_tensor(self._degraded(gt, rng))
        return item

    @property
    def _intervals(self) -> list[int]:
        return self.variation.interval_list if self.variation else [1]

    def _usable(self) -> Sequence[int]:
        """Return the numbers of the clips that are long enough."""
        if self._numbers is None:
            self._numbers = self.source.long_enough((self.frames - 1) * max(self._intervals) + 1)
        return self._numbers

    def _cropped(self, clip: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        size, (height, width) = self.gt_size, clip.shape[1:3]
        if min(height, width) < size:
            what = f"{self.source.name(number)}: got frames of {width}x{height}"
            raise ValueError(f"{what}, expected at least {size} pixels a side; lower gt_size or leave this clip out")
        room = (height - size, width - size)
        top, left = (int(rng.integers(r + 1)) if self.variation else r // 2 for r in room)
        return clip[:, top : top + size, left : left + size]

    def _degraded(self, gt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        lq, side = self.degradation(gt, rng), self.gt_size // self.scale
        if lq.shape != (self.frames, side, side, 3):
            raise ValueError(f"got a degraded clip {lq.shape}, expected frames of {side}x{side}; check scale")
        return lq

    def _sharpened(self, gt: np.ndarray) -> np.ndarray:
        if self.usm is None:
            return gt / np.float32(255)
        return unsharp_mask(gt, **self.usm) / np.float32(255)


def shuffled(seed: int, done: int, count: int) -> np.ndarray:
    """Return the order of `count` clips in the pass after `done` passes."""
    return np.random.default_rng([seed, done, SHUFFLE]).permutation(count)


def to_tensor(clip: np.ndarray) -> Tensor:
    """(T, H, W, 3) -> (T, 3, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 3, 1, 2), np.float32))
