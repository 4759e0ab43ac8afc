"""Clips to train on: rendered scenes, over a folder of pictures or none, and clips with sampled latents from files."""

from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from ldm.training.scenes import degrade_simply, moving_layers, procedural_picture

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def to_tensor(clip: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 -> (T, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float() / 255


class SceneClips(Dataset):
    """Clip number i is rendered from (seed, i): the same on every machine, in any order, in any worker.

    Items are `{"lq": (T, 3, h, w), "gt": (T, 3, scale*h, scale*w)}` float32 in [0, 1].
    `pictures` is a folder of photographs (RGB); without one every picture is procedural. Read at the first item.
    """

    def __init__(
        self, *, length: int, frames: int, size: int, scale: int = 4, seed: int = 0, pictures: str | None = None
    ):
        self.length, self.frames, self.size, self.scale, self.seed = length, frames, size, scale, seed
        self.pictures = pictures
        self._loaded: list[np.ndarray] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        clip = moving_layers(rng, self._sources(rng), frames=self.frames, size=(self.size, self.size))
        return {"lq": to_tensor(degrade_simply(rng, clip, scale=self.scale)), "gt": to_tensor(clip)}

    def _sources(self, rng: np.random.Generator) -> list[np.ndarray]:
        """A few pictures for one clip: photographs mostly, where there are any."""
        if self._loaded is None:
            self._loaded = self._read()
        drawn = [procedural_picture(rng, (384, 384))]
        if self._loaded:
            drawn = [self._loaded[k] for k in rng.integers(len(self._loaded), size=3)] + drawn * (rng.random() < 0.3)
        return drawn

    def _read(self) -> list[np.ndarray]:
        if self.pictures is None:
            return []
        files = sorted(f for f in Path(self.pictures).rglob("*") if f.suffix.lower() in PICTURE_SUFFIXES)
        if not files:
            raise ValueError(f"got pictures={self.pictures}, expected a folder with {sorted(PICTURE_SUFFIXES)} files")
        loaded = [cv2.imread(str(f), cv2.IMREAD_COLOR) for f in files]
        if unreadable := [str(f) for f, p in zip(files, loaded, strict=True) if p is None]:
            raise ValueError(f"got unreadable pictures, expected images: {', '.join(unreadable[:3])}")
        return [cv2.cvtColor(p, cv2.COLOR_BGR2RGB) for p in loaded]


class SampledClips(Dataset):
    """Stage-2 clips from `folder`: one safetensors file a clip, with `lq`, `gt` (uint8) and the sampled `latent`."""

    def __init__(self, folder: str):
        self.folder = folder
        self._files: list[Path] | None = None

    def __len__(self) -> int:
        return len(self._list())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = load_file(self._list()[index])
        return {"lq": item["lq"].float() / 255, "gt": item["gt"].float() / 255, "latent": item["latent"].float()}

    def _list(self) -> list[Path]:
        if self._files is None:
            found = sorted(Path(self.folder).glob("*.safetensors"))
            if not found:
                raise ValueError(f"got {self.folder} without *.safetensors, expected what make_latents.py writes")
            self._files = found
        return self._files
