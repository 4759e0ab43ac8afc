"""The tensors of saved states, each written once, in files that are never changed.

A state of a long scene holds many tensors of which one unit of work changes few. Each saving writes the new ones to a
file of their own, and the state refers to all of them by file and position.
"""

import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.files import atomic_file, sync
from ldm.weights.safe import check_nested, refuse_bombs

FILE = re.compile(r"\d{8}\.pt")
REFERENCE = "tensor in file"  # the only key of a dictionary that stands for a tensor: [file number, position]


class TensorStore:
    """A folder of tensors, trusted as little as any other file.

    Files appear atomically, and a file is removed when no tensor of it is referred to, so that a state is complete
    whenever a run is interrupted: call `replaced`, write the state that it returns, then call `sweep`. A tensor counts
    as stored while it is the same object and unchanged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored: dict[int, tuple[weakref.ref, int, list[int]]] = {}  # id of a tensor: itself, version, reference
        self._used: set[int] = set()  # numbers of the files to which the last state refers

    def path(self, number: int) -> Path:
        """Return the path of a file."""
        return self.folder / f"{number:08d}.pt"

    def replaced(self, tree: Any) -> Any:
        """Return nested dictionaries, lists and tuples with references for tensors, after writing the new tensors."""
        number, fresh, stored = max(self._used, default=0) + 1, [], {}

        def refer(tensor: Tensor) -> dict:
            reference = self._reference(tensor)
            if reference is None:
                reference = stored[id(tensor)][2] if id(tensor) in stored else [number, len(fresh)]
                if id(tensor) not in stored:
                    fresh.append(tensor)
            stored[id(tensor)] = (weakref.ref(tensor), _version(tensor), reference)
            return {REFERENCE: reference}

        tree = mapped(tree, refer, lambda node: isinstance(node, Tensor))
        if fresh:
            self.folder.mkdir(exist_ok=True)
            save_tensors(self.path(number), [tensor.detach().cpu() for tensor in fresh])
        self._stored, self._used = stored, {reference[0] for _, _, reference in stored.values()}
        return tree

    def _reference(self, tensor: Tensor) -> list[int] | None:
        known = self._stored.get(id(tensor))
        same = known is not None and known[0]() is tensor and known[1] == _version(tensor)
        return known[2] if same else None

    def restored(self, tree: Any) -> Any:
        """Return a tree with tensors for references. Raises ValueError or OSError for references that do not fit."""
        files: dict[int, list[Tensor]] = {}
        stored = {}

        def tensor_of(node: dict) -> Tensor:
            reference = node[REFERENCE]
            if not isinstance(reference, list) or [type(value) for value in reference] != [int, int]:
                raise ValueError("not a reference")
            number, position = reference
            if number not in files:
                files[number] = self._read(number)
            if not 0 <= position < len(files[number]):
                raise ValueError("no such tensor")
            tensor = files[number][position]
            stored[id(tensor)] = (weakref.ref(tensor), _version(tensor), reference)
            return tensor

        tree = mapped(tree, tensor_of, lambda node: isinstance(node, dict) and node.keys() == {REFERENCE})
        self._stored, self._used = stored, set(files)
        return tree

    def _read(self, number: int) -> list[Tensor]:
        path = self.path(number)
        if not 0 < number < 10**8 or path.is_symlink() or not path.is_file():
            raise ValueError("not a regular file")
        refuse_bombs(path)
        tensors = torch.load(path, weights_only=True, map_location="cpu")
        check_nested(tensors)
        if not isinstance(tensors, list) or not all(isinstance(tensor, Tensor) for tensor in tensors):
            raise ValueError("no list of tensors")
        return tensors

    def unused(self) -> list[Path]:
        """Return the files to which the last state does not refer."""
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        kept = {self.path(number).name for number in self._used}
        return [path for path in files if path.name not in kept]


def save_tensors(path: Path, content: Any) -> None:
    """Write values and tensors to a file, atomically. Raises OSError if it cannot be written."""
    with atomic_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # of PyTorch's own writer
            raise OSError(f"{path}: cannot be written, is the disk full? ({error})") from None
        sync(temporary)


def mapped(tree: Any, change: Callable[[Any], Any], chosen: Callable[[Any], bool]) -> Any:
    """Return nested dictionaries, lists and tuples with the chosen nodes changed."""
    if chosen(tree):
        return change(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, change, chosen) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(value, change, chosen) for value in tree)
    return tree


def _version(tensor: Tensor) -> int:
    """Return a number that changes in place operations increase; tensors of inference mode have none."""
    return 0 if tensor.is_inference() else tensor._version
