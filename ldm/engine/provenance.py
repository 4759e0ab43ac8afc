"""Record how an output was made in a JSON file beside it, and verify such records."""

import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm.files import read_object, write_atomically
from ldm.printable import printable
from ldm.video.source import is_visible
from ldm.weights import checkpoint

PACKAGES = ("torch", "numpy", "av", "opencv-python-headless", "omegaconf", "safetensors")
NAME = "mgld-vsr"
SLOT = re.compile(r"[a-z][a-z0-9_]{0,40}")  # valid names of weights in a record
MAX_NAMES = 1_000_000
LARGEST_FILE = 1 << 45  # bytes; special files such as /proc/kcore report larger sizes


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of all packages and code that determine a result; computed once for a process."""
    found = {"python": platform.python_version()}
    for name in (NAME, *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found | {"code": code_digest(Path(__file__).parents[1])}


def code_digest(package: Path) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the source files of a package."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def digest(path: Path, names: Iterable[str] = ()) -> str:
    """Return the SHA-256 of a file, or over the names and contents of files in a folder (default: all visible ones).

    Raises OSError for other kinds of files: reading a pipe or device might never end.
    """
    if not path.is_dir():
        return _digest_of_file(path)
    total = hashlib.sha256()
    for name in names or sorted(child.name for child in path.iterdir() if child.is_file() and is_visible(child)):
        total.update(os.fsencode(f"{name}\n{_digest_of_file(path / name)}\n"))
    return total.hexdigest()


def _digest_of_file(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    return checkpoint.sha256(path)


def record_path(output: Path) -> Path:
    """Return the path of the record of an output."""
    return output.with_name(f"{output.name}.json")


def write_record(output: Path, manifest: Mapping, **more) -> Path:
    """Write the record of a finished output: the manifest, the hash of the output, and `more`."""
    path = record_path(output)
    content = {**manifest, "output": {"path": output.name, "sha256": digest(output)}, **more}
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def verify(path: Path) -> list[tuple[str, str]]:
    """Compare the output, the input and the weights of a record with the files that now exist.

    The output is the file or folder beside the record; the other paths are those in the record. Returns pairs (name,
    "as recorded" | "differs" | "not found"). Raises ValueError for a file that is not a record.
    """
    try:
        content = read_object(path)
        entries = {"output": content["output"], "input": content["input"], **content["weights"]}
        checked = {what: _entry(what, entry) for what, entry in entries.items()}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a record of an output; expected the JSON that lies beside one") from None
    results = []
    for what, (name, expected, names) in checked.items():
        file = path.with_name(path.name.removesuffix(".json")) if what == "output" else Path(name)
        results.append((printable(f"{what} {file}"), _compared(file, expected, names)))
    return results


def _entry(what: str, entry: Mapping) -> tuple[str, str, list[str]]:
    """Return (path, hash, names in a folder) of an entry. Raises ValueError, KeyError or TypeError."""
    if not SLOT.fullmatch(what):
        raise ValueError("got an unknown entry")
    path, expected, names = entry["path"], entry["sha256"], entry.get("names") or []
    if not (isinstance(path, str) and isinstance(expected, str) and isinstance(names, list)):
        raise TypeError("got values of another kind")
    if len(names) > MAX_NAMES or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError("got names that are not of files in the folder")
    return path, expected, names


def _compared(file: Path, expected: str, names: Iterable[str]) -> str:
    try:
        return "as recorded" if digest(file, names) == expected else "differs"
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return "not found"
