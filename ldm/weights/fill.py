"""Load weight files into networks, strictly; used for inference, training and the precomputation of latents."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from ldm.weights import checkpoint
from ldm.weights.checkpoint import CheckpointError
from ldm.weights.files import WeightFile
from ldm.weights.names import LAYOUTS


def fill(
    networks: Mapping[str, nn.Module], state: Mapping[str, Tensor], entry: WeightFile, *, unused: Iterable[str] = ()
) -> list[str]:
    """Load a file into the networks of `entry.fills`; no network changes unless all entries fit.

    Args:
        networks: networks to load; those on the meta device take over the tensors of the file.
        state: state dict of the file (`checkpoint.read`).
        entry: description of the file.
        unused: networks whose entries in the file are skipped.

    Returns one line per pattern of `entry.tolerate` that applied. Raises CheckpointError with the missing, unexpected
    and mis-shaped entries and the likely cause.
    """
    state = rename_entries(own_names(state, entry.names), entry.rename)
    constant = [name for network in networks.values() for name in getattr(network, "constant_buffers", ())]
    tolerated = [*entry.tolerate, *(f"*{name}" for name in constant)]
    checkpoint.load_slots(networks, state, entry.layout, absent=unused, tolerated_missing=tolerated)
    lines = []
    for name, network in networks.items():
        prefixes = entry.fills[name]
        missing = [own for own in network.state_dict() if checkpoint.name_in_file(own, prefixes) not in state]
        lines += tolerated_lines(name, missing, entry.tolerate)
    return lines


def tolerated_lines(module: str, missing: Iterable[str], tolerate: Mapping[str, str]) -> list[str]:
    """Return a line per shell pattern of `tolerate` that fits missing entries of a module, with its reason."""
    lines = []
    for pattern, reason in tolerate.items():
        kept = [name for name in missing if fnmatchcase(name, pattern)]
        missing = [name for name in missing if name not in kept]
        if kept:
            lines.append(f"{module}: {len(kept)} entries {pattern} keep their initial values: {reason}")
    return lines


def own_names(state: Mapping[str, Tensor], names: str) -> Mapping[str, Tensor]:
    """Rename the entries of a file in the layout `names` (`LAYOUTS`) for the network. Raises CheckpointError."""
    try:
        return LAYOUTS[names](state) if names else state
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def rename_entries(state: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the longest prefix of each name that is a key of `rename`."""

    def new(name: str) -> str:
        old = max((old for old in rename if name.startswith(old)), key=len, default=None)
        return name if old is None else rename[old] + name.removeprefix(old)

    return {new(name): value for name, value in state.items()} if rename else dict(state)


@contextlib.contextmanager
def error_prefix(file: Path | str) -> Iterator[None]:
    """Prefix the messages of CheckpointErrors with the name of the file."""
    try:
        yield
    except CheckpointError as error:
        line = str(error)
        raise CheckpointError(line if line.startswith(str(file)) else f"{file}: {line}") from error
