"""Fill networks from weight files, strictly: the one loader of inference, of trainings and of latents."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor, nn

from ldm.weights import checkpoint
from ldm.weights.checkpoint import CheckpointError
from ldm.weights.files import WeightFile


def fill(
    networks: Mapping[str, nn.Module], state: Mapping[str, Tensor], entry: WeightFile, *, unused: Iterable[str] = ()
) -> list[str]:
    """Load the parts of a file into the networks that `entry.fills` names; all fit or none changes.

    Args:
        networks: those to fill; on the meta device they take over the file's tensors.
        state: the entries of the file (`checkpoint.read`).
        entry: what is known of the file.
        unused: networks whose entries in the file are left out.

    Returns a line for each reason of `entry.tolerate` that applied. Raises CheckpointError that lists what is missing,
    unexpected or of another shape, with the likely cause.
    """
    state = rename_entries(state, entry.rename)
    constant = [name for network in networks.values() for name in getattr(network, "constant_buffers", ())]
    tolerated = [*entry.tolerate, *(f"*{name}" for name in constant)]
    checkpoint.load_slots(networks, state, entry.layout, absent=unused, tolerated_missing=tolerated)
    lines = []
    for name, network in networks.items():
        prefixes = entry.fills[name]
        missing = [own for own in network.state_dict() if checkpoint.name_in_file(own, prefixes) not in state]
        for pattern, reason in entry.tolerate.items():
            kept = [own for own in missing if fnmatchcase(own, pattern)]
            missing = [own for own in missing if own not in kept]
            if kept:
                lines.append(f"{name}: {len(kept)} entries {pattern} keep their initial values: {reason}")
    return lines


def rename_entries(state: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The entries with the longest beginning of their names that `rename` knows replaced."""

    def new(name: str) -> str:
        old = max((old for old in rename if name.startswith(old)), key=len, default=None)
        return name if old is None else rename[old] + name.removeprefix(old)

    return {new(name): value for name, value in state.items()} if rename else dict(state)


@contextlib.contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Start the messages of CheckpointErrors with the file they are about."""
    try:
        yield
    except CheckpointError as error:
        line = str(error)
        raise CheckpointError(line if line.startswith(str(file)) else f"{file}: {line}") from error
