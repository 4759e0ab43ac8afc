"""The record of a folder of weights, `weights.json`: the source of each file, and the hash of its first download."""

import contextlib
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ldm.files import read_object, write_atomically
from ldm.weights.checkpoint import sha256
from ldm.weights.download import SHA256, Fetched

RECORD = "weights.json"
FORMAT = "mgld-vsr weights 1"
ABSENT, EQUAL, DIFFERENT, UNKNOWN = "absent", "equal", "different", "unknown"


@dataclass(frozen=True)
class Check:
    """The state of a file: ABSENT, EQUAL, DIFFERENT, or UNKNOWN (no hash to compare with), with a text for people."""

    state: str
    text: str


def read_record(folder: Path) -> dict[str, dict]:
    """Return file name -> entry of the record; empty if there is none. Raises ValueError for an invalid record."""
    path = folder / RECORD
    if not path.exists():
        return {}
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        record = read_object(path)
        if record["format"] == FORMAT and all(isinstance(entry, dict) for entry in record["files"].values()):
            return dict(record["files"])
    raise ValueError(f"{path}: not a record of weights; move it away, and run `check` to write another")


def add_to_record(folder: Path, name: str, fetched: Fetched, licence: str) -> None:
    """Record a downloaded file. The hash of the first download of a file stays, as `first_sha256`, if it changes."""
    files = read_record(folder)
    before = files.get(name, {})
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    first = before.get("first_sha256") or before.get("sha256") or fetched.sha256
    entry = {"sha256": fetched.sha256, "bytes": fetched.size, "url": fetched.url, "commit": fetched.commit}
    files[name] = entry | {"licence": licence, "downloaded": today, "first_sha256": first}
    content = {"format": FORMAT, "files": dict(sorted(files.items()))}
    write_atomically(folder / RECORD, (json.dumps(content, indent=2) + "\n").encode())


def check_file(path: Path, known: str, recorded: Mapping) -> Check:
    """Compare a file with the known SHA-256 (or its first digits), or else with that of its first download."""
    if not path.is_file():
        return Check(ABSENT, "not there")
    got = sha256(path)
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    first = str(recorded.get("first_sha256") or "")
    first = first if SHA256.fullmatch(first) else ""
    if wanted := known or first:
        whose = "the published one" if known else "that of the first download"
        same = got.startswith(wanted)
        text = f"equal to {whose}" if same else f"differs from {whose}, {wanted[:16]}"
        return Check(EQUAL if same else DIFFERENT, f"{size}, SHA-256 {got[:16]}..., {text}")
    return Check(UNKNOWN, f"{size}, SHA-256 {got} (none is known to compare with)")
