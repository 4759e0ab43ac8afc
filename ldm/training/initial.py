"""Initial weights of a training, loaded from files into modules of the model."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ldm.weights import checkpoint
from ldm.weights.fill import rename_entries


def start_from(model: nn.Module, entries: Iterable[Mapping]) -> list[str]:
    """Load weight files into modules of a model and return the log lines, one per module and per tolerated pattern.

    Loading is strict: a weight that is neither in the file nor tolerated is an error.

    Args:
        model: its modules are filled in place.
        entries: mappings {file, modules} with any of these keys:
            prefix: a module takes the names in the file that start with prefix + its own name + "." (default "").
            names: start of the names in the file, where it is not prefix + module name; "" takes the whole file.
            rename: maps prefixes of names within a module, from those of the file to those of the model.
            ignore: shell patterns of names in the file that no module takes.
            tolerate: maps shell patterns of names that may be missing from the file to the reason.
    Raises:
        ValueError: an entry has other keys, or the model has no such module.
        FileNotFoundError, CheckpointError: as `ldm.weights.checkpoint.read` and `load`.
    """
    lines = []
    for entry in entries:
        _check_entry(entry)
        state, prefix = checkpoint.read(entry["file"]), entry.get("prefix", "")
        for name in entry["modules"]:
            start = entry.get("names", f"{prefix}{name}.")
            own = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            lines += _fill_module(model, name, rename_entries(own, entry.get("rename") or {}), entry)
    return lines


def left_random(model: nn.Module, entries: Sequence[Mapping]) -> list[str]:
    """Log lines, one per part of the model with frozen weights that no entry fills, so that they stay random."""
    filled = tuple(f"{name}." for entry in entries for name in entry["modules"])
    parts = {}
    for name, weight in model.named_parameters():
        if weight.ndim and not weight.requires_grad and not name.startswith(filled):
            parts.setdefault(name.partition(".")[0], []).append(name)
    why = "no entry of `init` fills them" if entries else "this configuration has no `init`"
    return [f"{part}: {len(odd)} frozen weights, such as {odd[0]}, stay random: {why}" for part, odd in parts.items()]


def _check_entry(entry: Mapping) -> None:
    known = {"file", "modules", "prefix", "names", "rename", "ignore", "tolerate"}
    if not isinstance(entry, Mapping) or not {"file", "modules"} <= entry.keys() <= known or not entry["file"]:
        got = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
        raise ValueError(f"init: got {got}, expected file and modules, optionally {', '.join(sorted(known))}")


def _fill_module(model: nn.Module, name: str, state: dict[str, Tensor], entry: Mapping) -> list[str]:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        known = ", ".join(n for n, _ in model.named_children())
        raise ValueError(f"init: the model has no module {name!r}, expected one of {known} or a submodule") from None
    tolerate = entry.get("tolerate") or {}
    if not state:
        raise ValueError(f"init: {entry['file']} holds no weights for {name}; check prefix and names")
    checkpoint.load(module, state, tolerated_missing=tuple(tolerate), ignored=tuple(entry.get("ignore") or ()))
    missing = [own for own in module.state_dict() if own not in state]
    return [f"{name}: {len(state)} entries from {entry['file']}", *_tolerated_lines(name, missing, tolerate)]


def _tolerated_lines(module: str, missing: Iterable[str], tolerate: Mapping[str, str]) -> list[str]:
    """Return a line per shell pattern of `tolerate` that fits missing entries of a module, with its reason."""
    lines = []
    for pattern, reason in tolerate.items():
        kept = [name for name in missing if fnmatchcase(name, pattern)]
        missing = [name for name in missing if name not in kept]
        if kept:
            lines.append(f"{module}: {len(kept)} entries {pattern} keep their initial values: {reason}")
    return lines
