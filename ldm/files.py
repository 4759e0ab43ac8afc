"""Atomic files, written under a temporary name and then renamed; and bounded reading of small files."""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such links
LONGEST = 150  # bytes of a name that a temporary name keeps; systems allow 255
LARGEST_TEXT = 64 << 20  # bytes of a record, manifest or table
TEMPORARY = re.compile(
    r"\..*\.(?:partial|old)-(\d+)(?:-[0-9a-f]{8})?(?:\.\w+)?"
)  # names that we give, with the process


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a new empty file beside `path`, with its suffix; it replaces `path` when the block ends without an error.

    Its name is random and new, so that no link is followed. Its permissions are those of the umask, whatever the block
    does to it. If `path` is a link, the link is replaced.
    """
    temporary = path.with_name(f".{shortened(path.stem)}.partial-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW, 0o666)
    permissions = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(permissions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shortened(name: str) -> str:
    """Return a name, or the beginning and a hash of a long one, for use in temporary names."""
    data = os.fsencode(name)
    if len(data) <= LONGEST:
        return name
    return f"{data[:LONGEST].decode('utf-8', 'ignore')}-{hashlib.sha256(data).hexdigest()[:8]}"


def set_aside(folder: Path) -> Path:
    """Rename a folder to a temporary name beside it and return the new path, for removal.

    A process that is killed while it removes the folder then leaves no incomplete one under its name. Raises OSError.
    """
    aside = folder.with_name(f".{shortened(folder.name)}.old-{os.getpid()}-{secrets.token_hex(4)}")
    return folder.rename(aside)


def is_temporary(name: str) -> bool:
    """Whether a file or folder has a name from `atomic_file` or `set_aside`."""
    return TEMPORARY.fullmatch(name) is not None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically, so that a power cut leaves the old or the new content."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk, so that they outlive a power cut."""
    if os.name == "nt" and path.is_dir():  # Windows has no handles of folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """Read a regular UTF-8 file of at most `most` bytes. Raises OSError, or ValueError for any other file."""
    if not path.is_file():  # a pipe or a device would be read for ever
        path.stat()
        raise ValueError(f"{path}: not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: more than {most} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got no UTF-8 text ({error.reason} at byte {error.start}), expected it") from None


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises the errors of `read_text`, and ValueError for invalid or too deeply nested JSON."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None


def read_object(path: Path) -> dict:
    """Read a JSON file that contains an object. Raises OSError, or ValueError for any other file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got no JSON object")
    return content
