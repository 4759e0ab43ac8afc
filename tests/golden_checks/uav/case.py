"""A golden case of Upscale-A-Video: NAME.json and NAME.safetensors, either possibly compressed (.gz, .xz)."""

import gzip
import json
import lzma
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

from ldm.nets.video_unet import UNetVideoModel
from ldm.nets.video_vae import AutoencoderKLVideo
from tests.golden_checks.case import assert_near
from tests.golden_checks.uav.configurations import unet_arguments, vae_arguments

NETWORK = 1e-4  # limit where the recording states none, times the largest value above 1
FOLDER = Path(os.environ.get("GOLDEN_UAV") or Path(__file__).parents[2] / "golden" / "uav")


class UavCase(NamedTuple):
    """One recorded case; clips are recorded as (B, C, T, h, w)."""

    folder: Path
    name: str
    meta: dict
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path, name: str) -> "UavCase":
        return cls(folder, name, read_json(folder, name), read_tensors(folder, name))

    def __getitem__(self, key: str) -> Tensor:
        """A tensor, in float32 unless it holds integers."""
        assert key in self.tensors, f"{self.name}: no tensor {key}, only {sorted(self.tensors)[:40]}"
        value = self.tensors[key]
        return value.float() if value.is_floating_point() else value

    def vector(self, key: str) -> Tensor:
        """Numbers (n,) from the tensors, where a single one may have no dimension, or from the JSON file."""
        return (self[key] if key in self.tensors else torch.tensor(self.meta[key])).reshape(-1)

    def clip(self, key: str) -> Tensor:
        """A recorded clip as (B, T, C, h, w)."""
        return self[key].transpose(1, 2)

    def near(self, value: Tensor, key: str, limit: float) -> None:
        """A clip (B, T, C, h, w) near the recorded one, where it was recorded."""
        if key in self.tensors:
            assert_near(value, self.clip(key), limit=limit, what=f"{self.name} {key}")

    def limit(self, key: str, default: float | None = None) -> float:
        """The recorded limit of a tensor; else the default, or `NETWORK` of the values of its size."""
        if default is None:
            largest = self[key].abs().max().item() if key in self.tensors else 0.0
            default = NETWORK * max(1.0, largest)
        return self.meta.get("tolerance", {}).get(key, {}).get("suggested_atol", default)


def read_json(folder: Path, name: str) -> dict:
    file = folder / f"{name}.json"
    return json.loads(file.read_text() if file.exists() else gzip.open(f"{file}.gz", "rt").read())


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    file = folder / f"{name}.safetensors"
    if file.exists():
        return load_file(file)
    packed = Path(f"{file}.xz")
    return load(lzma.open(packed).read()) if packed.exists() else {}


@lru_cache(maxsize=8)
def network(folder: Path, name: str) -> nn.Module:
    """The network of a `weights_*` case, loaded strictly but for what its JSON says is left out of the folder."""
    meta, weights = read_json(folder, name), {}
    for file in meta.get("files") or [name]:
        weights |= read_tensors(folder, file.removesuffix(".safetensors"))
    build, arguments = (
        (UNetVideoModel, unet_arguments) if meta["class_"] == "UNetVideoModel" else (AutoencoderKLVideo, vae_arguments)
    )
    net = build(**arguments(meta["config"])).eval()
    missing, unexpected = net.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
    state = net.state_dict(keep_vars=True)
    loaded = {id(state[key]) for key in weights if key in state}  # one file may name a shared tensor once
    left_out = tuple(meta.get("left_out", ()))
    missing = [key for key in missing if id(state[key]) not in loaded and not key.startswith(left_out)]
    assert not unexpected and not missing, f"{name}: missing {missing[:9]}, unexpected {unexpected[:9]}"
    return net
