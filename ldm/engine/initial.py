"""Initialise a model for training: load modules from files and report entries that keep their initial values."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ldm.weights import checkpoint
from ldm.weights.fill import rename_entries


def start_from(model: nn.Module, entries: Iterable[Mapping]) -> list[str]:
    """Load files into modules of `model` and return one line per action, for the log.

    An entry is a mapping with `file` and `modules`. Optional keys:
        prefix: a module is loaded from the names that start with prefix + module + ".".
        names: replaces that start for files with other names; "" stands for the whole file.
        rename: prefixes of names inside a module, as in the file -> prefixes in the module.
        ignore: shell patterns of names in the file that are not loaded.
        tolerate: shell patterns of names that may be missing in the file -> the reason.

    Loading is strict: an entry that is neither in the file nor tolerated is an error. Raises ValueError for an invalid
    entry or an unknown module; FileNotFoundError and CheckpointError as in `ldm.weights.checkpoint`.
    """
    lines = []
    for entry in entries:
        _check(entry)
        state, prefix = checkpoint.read(entry["file"]), entry.get("prefix", "")
        for name in entry["modules"]:
            beginning = entry.get("names", f"{prefix}{name}.")
            own = {k.removeprefix(beginning): v for k, v in state.items() if k.startswith(beginning)}
            lines += _fill_module(model, name, rename_entries(own, entry.get("rename") or {}), entry)
    return lines


def _check(entry: Mapping) -> None:
    known = {"file", "modules", "prefix", "names", "rename", "ignore", "tolerate"}
    if not isinstance(entry, Mapping) or not {"file", "modules"} <= entry.keys() <= known or not entry["file"]:
        got = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"init: got {got}, expected file and modules, perhaps {', '.join(sorted(known))}")


def _fill_module(model: nn.Module, name: str, state: dict[str, Tensor], entry: Mapping) -> list[str]:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        known = ", ".join(n for n, _ in model.named_children())
        raise ValueError(f"init: the model has no module {name!r}, expected one of {known} or a part of one") from None
    tolerate = entry.get("tolerate") or {}
    if not state:
        raise ValueError(f"init: {entry['file']} holds nothing for {name}; see prefix and names")
    checkpoint.load(module, state, tolerated_missing=tuple(tolerate), ignored=tuple(entry.get("ignore") or ()))
    lines = [f"{name}: {len(state)} entries from {entry['file']}"]
    missing = [entry_name for entry_name in module.state_dict() if entry_name not in state]
    for pattern, reason in tolerate.items():
        kept = [m for m in missing if fnmatchcase(m, pattern)]
        missing = [m for m in missing if m not in kept]
        if kept:
            lines.append(f"{name}: {len(kept)} entries {pattern} stay as built: {reason}")
    return lines
