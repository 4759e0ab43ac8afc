"""Write files atomically, under a temporary name that is then renamed, and read small files up to a size limit."""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # 0 on Windows
LONGEST = 150  # bytes of a name that a temporary name keeps; systems allow 255
LARGEST_TEXT = 64 << 20  # bytes of a record, manifest or table
# Names from `temporary_name`, with the process ID
TEMPORARY = re.compile(r"\..*\.(?:partial|old)-(\d+)(?:-[0-9a-f]{8})?(?:\.\w+)?")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a new empty file beside `path`, which replaces `path` if the block ends without an error.

    The temporary name is random and has the suffix of `path`; no link is followed. The permissions are those of the
    umask. If `path` is a link, the link itself is replaced.
    """
    temporary = path.with_name(f"{temporary_name(path.stem)}{path.suffix}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW, 0o666)
    permissions = os.fstat(handle).st_mode & 0o777
    os.close(handle)
    try:
        yield temporary
        temporary.chmod(permissions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str, kind: str = "partial") -> str:
    """Return an unpredictable hidden name for a file or folder that will get, or had, the given name."""
    return f".{shortened(name)}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def shortened(name: str) -> str:
    """Return a name for use in temporary names; a name of more than LONGEST bytes is cut and gets a hash."""
    data = os.fsencode(name)
    if len(data) <= LONGEST:
        return name
    return f"{data[:LONGEST].decode('utf-8', 'ignore')}-{hashlib.sha256(data).hexdigest()[:8]}"


def set_aside(folder: Path) -> Path:
    """Rename a folder to a temporary name beside it, before its removal, and return the new path.

    If the process is killed during the removal, no incomplete folder remains under the old name. Raises OSError.
    """
    return folder.rename(folder.with_name(temporary_name(folder.name, "old")))


def is_temporary(name: str) -> bool:
    """Whether a name was created by `temporary_name`."""
    return TEMPORARY.fullmatch(name) is not None


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash or power failure it has either the old or the new content."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)
        sync(temporary)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no handles of folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """Read a regular UTF-8 file of at most `most` bytes. Raises OSError, or ValueError for any other file."""
    if not path.is_file():  # reading a pipe or device may never end
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
