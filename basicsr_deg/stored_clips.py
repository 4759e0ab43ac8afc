"""A cache of training examples on the disk, for clips that take longer to make than to train on."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

BUILDABLE = ("StoredClips",)  # what a configuration may name as a target

LEVELS = 255


class StoredClips(Dataset):
    """The first `count` items of a dataset, kept in a folder as 8-bit pictures.

    Item i of pass p is item i of the dataset. From the second pass on, items are mirrored and reversed with probability
    1/2 each, depending on i and p alone. Missing items are made and stored, so that an interrupted run resumes. The
    folder belongs to one configuration of the dataset: remove it after a change.

    Args:
        clips: its items are mappings of names to (T, 3, h, w) in [0, 1]; each is read at most once.
        folder: folder of the files `00000000.npz` and so on.
        count: number of items per pass.
    Raises:
        ValueError: a count below 1.
    """

    def __init__(self, clips: Dataset, *, folder: str, count: int) -> None:
        if count < 1:
            raise ValueError(f"got count={count}, expected at least 1")
        self.clips, self.folder, self.count = clips, Path(folder), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        done, place = divmod(number, self.count)
        clip = self._stored(place)
        mirrored, backwards = np.random.default_rng([done, place]).random(2) < 0.5 if done else (False, False)
        if mirrored:
            clip = {name: frames[..., ::-1] for name, frames in clip.items()}
        if backwards:
            clip = {name: frames[::-1] for name, frames in clip.items()}
        return {name: torch.from_numpy(np.ascontiguousarray(x)).float() / LEVELS for name, x in clip.items()}

    def _stored(self, place: int) -> dict[str, np.ndarray]:
        path = self.folder / f"{place:08d}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                return dict(kept)
        clip = {name: np.rint(x.numpy() * LEVELS).astype(np.uint8) for name, x in self.clips[place].items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{path.name}.partial-{os.getpid()}.npz"
        np.savez(temporary, **clip)
        os.replace(temporary, path)
        return clip
