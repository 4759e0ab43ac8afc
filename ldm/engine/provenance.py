"""What an output was made of: a JSON beside it, and the check that it still is."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from ldm.files import write_whole
from ldm.video.source import is_visible
from ldm.weights import checkpoint

PACKAGES = ("torch", "numpy", "av", "opencv-python-headless", "omegaconf", "safetensors")
NAME = "mgld-vsr"


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
    """The SHA-256 of a file, or over the names and contents of files of a folder (by default all but hidden ones)."""
    if not path.is_dir():
        return checkpoint.sha256(path)
    total = hashlib.sha256()
    for name in names or sorted(child.name for child in path.iterdir() if child.is_file() and is_visible(child)):
        total.update(f"{name}\n{checkpoint.sha256(path / name)}\n".encode())
    return total.hexdigest()


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
    """(what, "as recorded" | "differs" | "not found") for the output, the input and the weights that a JSON names.

    The output is looked for beside the JSON, the others where they were named. Raises ValueError for a file that is not
    such a JSON.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = {"output": content["output"], "input": content["input"], **content["weights"]}
        named = {what: (entry["path"], entry["sha256"], entry.get("names", ())) for what, entry in entries.items()}
        for name, _, names in named.values():
            Path(name, *names)  # a TypeError unless all of them are words
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a record of an output; expected the JSON that lies beside one") from None
    results = []
    for what, (name, expected, names) in named.items():
        file = path.parent / name if what == "output" else Path(name)
        results.append((f"{what} {file}", _compared(file, expected, names)))
    return results


def _compared(file: Path, expected: str, names: Iterable[str]) -> str:
    try:
        return "as recorded" if digest(file, names) == expected else "differs"
    except OSError:
        return "not found"
