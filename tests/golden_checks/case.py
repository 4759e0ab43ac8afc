"""A golden case: numbers recorded from the reference classes, read from NAME.json and NAME.safetensors."""

import gzip
import importlib
import json
import os
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("GOLDEN") or Path(__file__).parents[1] / "golden")
DEVICE = os.environ.get("GOLDEN_DEVICE") or "cpu"
SLACK = 1.0 if DEVICE == "cpu" else 20.0  # on another device sums are in another order: limits are so much wider


def recipe_value(name: str, shape: tuple[int, ...], seed: int, gain: float = 1.0) -> Tensor:
    """The weight of one state-dict entry by recipe (golden/CASES.md, "Weights"): drawn from name, shape and seed."""
    state = np.random.RandomState((zlib.crc32(name.encode()) + 1000003 * int(seed)) % 2**32)
    z, leaf = state.standard_normal(tuple(shape)), name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    if leaf == "running_var":
        value = 1 + 0.2 * np.tanh(z)
    elif leaf == "running_mean":
        value = 0.1 * z
    elif leaf == "temporal_alpha":
        value = 0.4 + 0.1 * z
    elif len(shape) >= 2:
        value = gain * z / np.sqrt(int(np.prod(shape[1:])))
    elif leaf == "weight":
        value = 1 + 0.1 * z
    else:
        value = 0.1 * gain * z
    return torch.from_numpy(np.asarray(value, np.float32)).to(DEVICE)


def recipe_normal(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal numbers addressed by name and seed, float32."""
    state = np.random.RandomState((zlib.crc32(name.encode()) + 1000003 * int(seed)) % 2**32)
    return torch.from_numpy(state.standard_normal(tuple(shape)).astype(np.float32)).to(DEVICE)


class Case(NamedTuple):
    """One recorded case; `meta` is its JSON, `tensors` its arrays as stored (float16 and uint8 not yet upcast)."""

    name: str
    meta: dict
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path, name: str) -> "Case":
        json_file = folder / f"{name}.json"
        text = json_file.read_text() if json_file.exists() else gzip.open(f"{json_file}.gz", "rt").read()
        array_file = folder / f"{name}.safetensors"
        return cls(name, json.loads(text), load_file(array_file, device=DEVICE) if array_file.exists() else {})

    def __getitem__(self, key: str) -> Tensor:
        """A tensor upcast to float32 if it was stored in half precision."""
        value = self.tensors[key]
        return value.float() if value.dtype == torch.float16 else value

    def stored_weights(self) -> dict[str, Tensor]:
        return {k.removeprefix("weights."): self[k] for k in self.tensors if k.startswith("weights.")}

    def recipe_weights(self, shapes: Mapping[str, list[int]] | None = None, prefix: str = "") -> dict[str, Tensor]:
        """Weights by recipe for `shapes` (by default the case's `state_dict`) under `prefix`, which is cut off.

        The weight of a name is drawn from its *full* name, prefix included.
        """
        shapes = self.meta["state_dict"] if shapes is None else shapes
        gains = self.meta.get("gains") or self.meta.get("flow_gains") or {}
        out = {}
        for name, shape in shapes.items():
            if name.startswith(prefix):
                suffixes = [s for s in gains if name.endswith(s)]
                gain = gains[max(suffixes, key=len)] if suffixes else 1.0
                out[name.removeprefix(prefix)] = recipe_value(name, shape, self.meta["seed"], gain)
        return out

    def weights(self) -> dict[str, Tensor]:
        return self.stored_weights() or self.recipe_weights()


def names(folder: Path = FOLDER) -> list[str]:
    """Every case in the folder, by its JSON file."""
    return sorted({file.name.removesuffix(".gz").removesuffix(".json") for file in folder.glob("*.json*")})


def assert_near(
    actual: Tensor, expected: Tensor, *, limit: float, relative_to: float | None = None, what: str = ""
) -> None:
    """Largest absolute difference at most `limit`, or `limit` times `relative_to` where that is given."""
    shapes = tuple(actual.shape), tuple(expected.shape)
    assert shapes[0] == shapes[1], f"{what}: shape {shapes[0]}, expected {shapes[1]}"
    bound = SLACK * (limit if relative_to is None else limit * relative_to)
    both = actual.detach().cpu().double(), expected.cpu().double()
    worst = (both[0] - both[1]).abs().max().item() if expected.numel() else 0.0
    assert worst <= bound, f"{what}: largest difference {worst:.3e}, limit {bound:.3e}"


def checks_of(package: str, modules: Collection[str] | None = None) -> dict[str, Callable]:
    """All `CHECKS` of the modules of a package beside this file: {first letters of a case's name: check}.

    `modules` are the names of those to import; None imports all.
    """
    folder, checks = Path(__file__).parent.joinpath(*package.split(".")[2:]), {}
    for file in sorted(folder.glob("*.py")):
        if modules is not None and file.stem not in modules:
            continue
        checks |= getattr(importlib.import_module(f"{package}.{file.stem}"), "CHECKS", {})
    return checks


def check_for(name: str, checks: Mapping[str, Callable]) -> Callable:
    """The check whose prefix of the case's name is the longest."""
    prefixes = [prefix for prefix in checks if name.startswith(prefix)]
    assert prefixes, f"{name}: unknown kind of case, expected a name starting with one of {sorted(checks)}"
    return checks[max(prefixes, key=len)]
