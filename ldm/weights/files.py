"""Descriptions of weight files (the entries of `weights:` in a model's YAML), and the search for such files."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ldm.weights import checkpoint
from ldm.weights.checkpoint import CheckpointError
from ldm.weights.names import CONVERTERS


@dataclass(frozen=True)
class WeightFile:
    """One weight file of a model.

    Args:
        name: name of the entry, used in messages and records.
        files: file names to look for in a folder, with or without a suffix; subfolders are allowed.
        fills: network -> {prefix of names in the file: prefix in the network}.
        ignore: shell patterns of names in the file that are not loaded.
        tolerate: shell patterns of names that may be missing in the file -> the reason.
        names: library whose names the file has, one of `ldm.weights.names.CONVERTERS`; "" for the network's own names.
        rename: prefixes of names in the file -> their replacements.
        has, lacks: the file is recognised by substrings that some name contains (has) or no name contains (lacks).
        only: settings (dotted key -> value) with which the file is used, in place of other sources of its networks.
        spare: use the file only if no other file holds its networks.
        optional: the model can be built without the file.
        source: URL, size, hash and licence of the file.
    """

    name: str
    files: tuple[str, ...]
    fills: Mapping[str, Mapping[str, str]]
    ignore: tuple[str, ...] = ()
    tolerate: Mapping[str, str] = field(default_factory=dict)
    names: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    only: Mapping[str, str] = field(default_factory=dict)
    spare: bool = False
    optional: bool = False
    source: Mapping = field(default_factory=dict)

    @classmethod
    def from_config(cls, name: str, entry: Mapping) -> "WeightFile":
        """Create a description from an entry of `weights:`. Raises ValueError with the key of an invalid value."""
        place = f"config.weights.{name}"
        keys = [one.name for one in fields(cls) if one.name != "name"]
        if not isinstance(entry, Mapping) or not {"files", "fills"} <= entry.keys() <= set(keys):
            got = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
            raise ValueError(f"{place}: got {got}, expected files and fills, and optionally {', '.join(keys[2:])}")
        for key in ("files", "ignore", "has", "lacks"):
            value = entry.get(key) or []
            if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
                raise ValueError(f"{place}.{key}: got {value!r}, expected a list of words")
        for key in ("fills", "tolerate", "rename", "only", "source"):
            if not isinstance(entry.get(key) or {}, Mapping):
                raise ValueError(f"{place}.{key}: got {entry[key]!r}, expected a mapping")
        names = entry.get("names") or ""
        if names and names not in CONVERTERS:
            raise ValueError(f"{place}.names: got {names!r}, expected one of {', '.join(CONVERTERS)}")
        fills = {net: {part: ""} if isinstance(part, str) else dict(part) for net, part in entry["fills"].items()}
        words = {key: tuple(entry.get(key) or ()) for key in ("files", "ignore", "has", "lacks")}
        maps = {key: dict(entry.get(key) or {}) for key in ("tolerate", "rename", "only", "source")}
        switches = {key: bool(entry.get(key)) for key in ("spare", "optional")}
        return cls(name, fills=fills, names=names, **switches, **words, **maps)

    @property
    def required(self) -> bool:
        """Whether the model needs the file with all settings."""
        return not self.optional and not self.only

    @property
    def layout(self) -> checkpoint.Layout:
        """The assignment of the entries of the file to networks."""
        return checkpoint.Layout(file=self.name, slots=self.fills, ignored=self.ignore)

    def find(self, folder: Path) -> Path | None:
        """Return the path of the file in `folder`; None if it does not exist."""
        with contextlib.suppress(FileNotFoundError):
            return checkpoint.find(folder, self.files)
        return None

    def matches(self, names: Iterable[str]) -> bool:
        """Whether a file with entries of these names matches `has` and `lacks`."""
        text = "\n".join(f"\n{name}" for name in names)
        return bool(self.has) and all(part in text for part in self.has) and not any(p in text for p in self.lacks)


def find_all(folder: Path, entries: Iterable[WeightFile]) -> dict[str, Path]:
    """Find the files of the entries in a folder: entry name -> path.

    Raises FileNotFoundError with the expected names if a required file is missing.
    """
    found = {}
    for entry in entries:
        try:
            found[entry.name] = checkpoint.find(folder, entry.files)
        except FileNotFoundError:
            if entry.required:
                raise
    return found


def match_files(states: Iterable[tuple[Path, Mapping]], entries: Iterable[WeightFile]) -> dict[str, Path]:
    """Assign weight files, given in any order, to entries by the names of their tensors: entry name -> path.

    `states` are paths with state dicts. Raises CheckpointError for a file that matches no entry, two files that match
    the same entry, or a required entry without a file.
    """
    states, entries, found = list(states), list(entries), {}
    expected = f"a folder with {' and '.join(entry.name for entry in entries if entry.required)}, or these files"
    for path, state in states:
        entry = next((entry for entry in entries if entry.matches(state)), None)
        if entry is None or entry.name in found:
            looks_like = checkpoint.recognise(state) or "nothing known"
            raise CheckpointError(f"{path}: looks like {looks_like}, expected {expected}")
        found[entry.name] = path
    if missing := [entry.name for entry in entries if entry.required and entry.name not in found]:
        given = ", ".join(str(path) for path, _ in states)
        raise CheckpointError(f"got {given} without {missing[0]}, expected {expected}")
    return found
