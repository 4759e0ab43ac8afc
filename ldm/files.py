"""Files that are there whole or not at all: written under a temporary name beside their own, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, that becomes it when the block ends well."""
    temporary = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that outlives a power cut."""
    with partial(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)


def sync(path: Path) -> None:
    """Wait until a file is on the disk, so that a power cut after its renaming does not leave it empty."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
