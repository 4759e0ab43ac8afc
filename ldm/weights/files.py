"""Weight files as data: what the entries `weights:` of a model's YAML say of them, and how they are found."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ldm.weights import checkpoint
from ldm.weights.checkpoint import CheckpointError

KEYS = ("files", "fills", "ignore", "tolerate", "rename", "has", "lacks", "only", "spare", "optional", "source")


@dataclass(frozen=True)
class WeightFile:
    """One weight file of a model.

    Args:
        name: of the entry; used in messages and records.
        files: names to look for in a folder, with or without a suffix; they may lie in sub-folders.
        fills: network -> {beginning of names in the file: beginning in the network}.
        ignore: shell patterns of names in the file that no network takes.
        tolerate: shell patterns of names that may be missing from the file -> the reason.
        rename: beginnings of names, as in the file -> what they are replaced by.
        has, lacks: parts of names that some entry must contain, or that none may contain, for the file to be this one.
        only: settings (key -> value) with which the file is used; it then replaces other sources of its networks.
        spare: it is used only where no other file holds its networks.
        optional: the model works without it.
        source: where the file can be had, its size, hash and licence.
    """

    name: str
    files: tuple[str, ...]
    fills: Mapping[str, Mapping[str, str]]
    ignore: tuple[str, ...] = ()
    tolerate: Mapping[str, str] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    only: Mapping[str, str] = field(default_factory=dict)
    spare: bool = False
    optional: bool = False
    source: Mapping = field(default_factory=dict)

    @classmethod
    def from_config(cls, name: str, entry: Mapping) -> "WeightFile":
        """From an entry of `weights:`. Raises ValueError that names a key of another form."""
        place = f"config.weights.{name}"
        if not isinstance(entry, Mapping) or not {"files", "fills"} <= entry.keys() <= set(KEYS):
            got = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
            raise ValueError(f"{place}: got {got}, expected files and fills, and perhaps {', '.join(KEYS[2:])}")
        for key in ("files", "ignore", "has", "lacks"):
            value = entry.get(key) or []
            if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
                raise ValueError(f"{place}.{key}: got {value!r}, expected a list of words")
        for key in ("fills", "tolerate", "rename", "only", "source"):
            if not isinstance(entry.get(key) or {}, Mapping):
                raise ValueError(f"{place}.{key}: got {entry[key]!r}, expected a mapping")
        fills = {net: {part: ""} if isinstance(part, str) else dict(part) for net, part in entry["fills"].items()}
        words = {key: tuple(entry.get(key) or ()) for key in ("files", "ignore", "has", "lacks")}
        maps = {key: dict(entry.get(key) or {}) for key in ("tolerate", "rename", "only", "source")}
        switches = {key: bool(entry.get(key)) for key in ("spare", "optional")}
        return cls(name, fills=fills, **switches, **words, **maps)

    @property
    def required(self) -> bool:
        """Whether the model cannot be built without it, whatever its settings."""
        return not self.optional and not self.only

    def used_with(self, settings: Mapping) -> bool:
        """Whether `only` agrees with the settings."""
        return all(settings.get(key) == value for key, value in self.only.items())

    @property
    def layout(self) -> checkpoint.Layout:
        """Which part of the file belongs to which network."""
        return checkpoint.Layout(file=self.name, slots=self.fills, ignored=self.ignore)

    def find(self, folder: Path) -> Path | None:
        """The file in `folder`, None where it is not there. Raises FileNotFoundError for a folder that is missing."""
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} to find {' or '.join(self.files)} in")
        try:
            return checkpoint.find(folder, self.files)
        except FileNotFoundError:
            return None

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a file with entries of these names is this one, by `has` and `lacks`."""
        text = "\n".join(f"\n{name}" for name in names)
        return bool(self.has) and all(part in text for part in self.has) and not any(p in text for p in self.lacks)


def find_in(folder: Path, entries: Iterable[WeightFile]) -> dict[str, Path]:
    """Entry name -> path of the entries that lie in a folder.

    Raises FileNotFoundError naming what a required entry is called.
    """
    found = {}
    for entry in entries:
        path = entry.find(folder)
        if path is not None:
            found[entry.name] = path
        elif entry.required:
            checkpoint.find(folder, entry.files)  # raises with the names that were tried
    return found


def sort_out(states: Iterable[tuple[Path, Mapping]], entries: Iterable[WeightFile]) -> dict[str, Path]:
    """Entry name -> path of weight files in any order, recognised by the names of their entries.

    `states` are the files with their contents. Raises CheckpointError for a file that is none of the entries, two files
    that are the same one, or a required entry without a file.
    """
    states, entries, found = list(states), list(entries), {}
    expected = f"a folder with {' and '.join(entry.name for entry in entries if entry.required)}, or these files"
    for path, state in states:
        entry = next((entry for entry in entries if entry.fits(state)), None)
        if entry is None or entry.name in found:
            looks_like = checkpoint.recognise(state) or "nothing known"
            raise CheckpointError(f"{path}: looks like {looks_like}, expected {expected}")
        found[entry.name] = path
    if missing := [entry.name for entry in entries if entry.required and entry.name not in found]:
        given = ", ".join(str(path) for path, _ in states)
        raise CheckpointError(f"got {given} without {missing[0]}, expected {expected}")
    return found
