"""What an output was made of: a JSON beside it, and the check that it still is."""

import errno
import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm.files import read_text, write_whole
from ldm.printable import printable
from ldm.video.source import is_visible
from ldm.weights import checkpoint

PACKAGES = ("torch", "numpy", "av", "opencv-python-headless", "omegaconf", "safetensors")
NAME = "mgld-vsr"
SLOT = re.compile(r"[a-z][a-z0-9_]{0,40}")  # names of weights in a record
MOST_NAMES = 1_000_000


def versions() -> dict[str, str]:
    """Versions of everything that decides a result."""
    found = {"python": platform.python_version()}
    for name in (NAME, *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found | {"code": code_digest(Path(__file__).parents[1])}


def code_digest(package: Path) -> str:
    """The beginning of a SHA-256 over the source files of a package."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package).as_posix()}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


def digest(path: Path, names: Iterable[str] = ()) -> str:
    """The SHA-256 of a file, or over the names and contents of files of a folder (by default all but hidden ones).

    Raises OSError for what is neither: a pipe or a device would be read for ever.
    """
    if not path.is_dir():
        return _digest_of_file(path)
    total = hashlib.sha256()
    for name in names or sorted(child.name for child in path.iterdir() if child.is_file() and is_visible(child)):
        total.update(f"{name}\n{_digest_of_file(path / name)}\n".encode())
    return total.hexdigest()


def _digest_of_file(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    return checkpoint.sha256(path)


def beside(output: Path) -> Path:
    """Where the JSON of an output lies."""
    return output.with_name(f"{output.name}.json")


def record(output: Path, manifest: Mapping, **more) -> Path:
    """Write the JSON of a finished output: the manifest, the output's own hash, and `more`."""
    path = beside(output)
    content = {**manifest, "output": {"path": output.name, "sha256": digest(output)}, **more}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    return path


def is_as_written(output: Path, record: Mapping) -> bool:
    """Whether an output has the hash that its record's content says."""
    written = record.get("output")
    return isinstance(written, dict) and written.get("sha256") == digest(output)


def unchanged(output: Path, made_of: Mapping) -> dict | None:
    """The record of an output that was made of `made_of` and has not changed since; None where there is none.

    `made_of` are the entries of the record, as JSON holds them, that decide the output.
    """
    try:
        content = dict(json.loads(beside(output).read_text(encoding="utf-8")))
        same = made_of.items() <= content.items() and is_as_written(output, content)
    except (OSError, ValueError, TypeError):
        return None
    return content if same else None


def verify(path: Path) -> list[tuple[str, str]]:
    """(what, "as recorded" | "differs" | "not found") for the output, the input and the weights of a JSON's output.

    The output is the file beside the JSON whose name the JSON's own begins with; the others are looked for where they
    were named. Raises ValueError for a file that is not such a JSON.
    """
    try:
        content = json.loads(read_text(path))
        entries = {"output": content["output"], "input": content["input"], **content["weights"]}
        named = {what: _entry(what, entry) for what, entry in entries.items()}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: not a record of an output; expected the JSON that lies beside one") from None
    results = []
    for what, (name, expected, names) in named.items():
        file = path.with_name(path.name.removesuffix(".json")) if what == "output" else Path(name)
        results.append((printable(f"{what} {file}"), _compared(file, expected, names)))
    return results


def _entry(what: str, entry: Mapping) -> tuple[str, str, list[str]]:
    """(path, hash, names in a folder) of an entry of a record. Raises ValueError, KeyError or TypeError."""
    if not SLOT.fullmatch(what):
        raise ValueError("got an unknown entry")
    path, expected, names = entry["path"], entry["sha256"], entry.get("names") or []
    if not (isinstance(path, str) and isinstance(expected, str) and isinstance(names, list)):
        raise TypeError("got values of another kind")
    if len(names) > MOST_NAMES or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError("got names that are not of files in the folder")
    return path, expected, names


def _compared(file: Path, expected: str, names: Iterable[str]) -> str:
    try:
        return "as recorded" if digest(file, names) == expected else "differs"
    except (OSError, ValueError):  # ValueError: a name with a null byte
        return "not found"
