"""Decide whether an output exists, was made from the same inputs and settings, and has not changed since.

All commands that skip or resume work use this module. An output has a record beside it (`ldm.engine.provenance`); a
folder of several outputs has a manifest with the settings that it was started with.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ldm.engine import provenance
from ldm.files import read_object
from ldm.printable import printable

log = logging.getLogger(__name__)
MAX_SHOWN = 3  # maximum number of differences in a message


class OutputDiffers(ValueError):
    """An existing output that differs from what the command would write; the message is one line with the reason."""


def finished(output: Path, made_of: Mapping) -> dict | None:
    """Return the record of an output that is up to date; None if there is no output or no record.

    `made_of` holds the entries of the record that determine the output, among them "input". Paths of the input and of
    weights are not compared. Raises OutputDiffers, and OSError for an output that cannot be read.
    """
    beside = provenance.record_path(output)
    if not (output.exists() and beside.is_file()):
        return None
    try:
        record = read_object(beside)
        was = portable({key: record[key] for key in made_of})
        if not all(isinstance(was[key], Mapping) for key in ("input", "weights") if key in was):
            raise TypeError("got values of another kind")
        recorded = record["output"]["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OutputDiffers(f"{beside}: not a record of an output; remove it and {output}") from None
    if found := changes(continued(was, made_of), portable(made_of)):
        raise OutputDiffers(f"{output}: made with {found}; choose another -o, or remove it")
    if recorded != provenance.digest(output):
        raise OutputDiffers(f"{output}: its frames have changed since they were written; remove it")
    return record


def unchanged(output: Path, made_of: Mapping) -> dict | None:
    """Return the record of an output that is up to date, else None; see `finished`.

    The reason why an output differs is logged for debugging.
    """
    try:
        return finished(output, made_of)
    except (OutputDiffers, OSError) as error:
        log.debug("%s", error)
        return None


def is_finished(output: Path, made_of: Mapping) -> bool:
    """Whether an output is up to date; see `unchanged`."""
    return unchanged(output, made_of) is not None


def stored_manifest(
    path: Path, now: Mapping, *, remedy: str, compared: Callable[[Mapping], dict] = dict
) -> dict | None:
    """Return the manifest of a folder that was started with the values of `now`; None if there is none.

    `compared` returns the part of a manifest that must be equal.

    Raises OutputDiffers, whose message ends in `remedy`, for other values; OutputDiffers or OSError for a file that
    cannot be read.
    """
    if not path.exists():
        return None
    try:
        stored = read_object(path)
    except ValueError:
        raise OutputDiffers(f"{path}: not readable as a manifest; remove it, or choose another folder") from None
    if found := changes(compared(continued({key: stored.get(key) for key in now}, now)), compared(now)):
        raise OutputDiffers(f"{path.parent}: started with {found}; {remedy}")
    return stored


def changes(stored: Mapping, now: Mapping) -> str:
    """Return `key=old, now new; ...` for the first values that differ from a stored JSON object; "" if none."""
    found = _differences(stored, json.loads(json.dumps(now)))
    return "; ".join(found[:MAX_SHOWN]) + (" ..." if len(found) > MAX_SHOWN else "")


def continued(stored: Mapping, now: Mapping) -> dict:
    """Return a stored record or manifest with `damaged: stop` changed to `repeat` if that is wanted now.

    Frames before a damaged one are the same under both, so that `--damaged repeat` continues a run that stopped at it.
    """
    before, after = stored.get("arguments"), now.get("arguments")
    if isinstance(before, dict) and isinstance(after, dict):
        if (before.get("damaged"), after.get("damaged")) == ("stop", "repeat"):
            return {**stored, "arguments": {**before, "damaged": "repeat"}}
    return dict(stored)


def _differences(stored: Mapping, now: Mapping, place: str = "") -> list[str]:
    found = []
    for key in sorted({*stored, *now}):
        old, new, name = stored.get(key), now.get(key), f"{place}{printable(key, 60)}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{name}.")
        elif old != new:
            found.append(f"{name}={_short(old)}, now {_short(new)}")
    return found


def _short(value: Any) -> str:
    try:
        text = printable(value)
    except (RecursionError, ValueError):  # nested too deeply, or more digits than Python prints
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:28] + "..." + text[-28:]


def portable(made_of: Mapping) -> dict:
    """Return the entries of a record or manifest without what may differ where an output is the same.

    These are the paths of the input and of weights, whose hashes remain, and the device with its number of threads.
    """
    kept = {key: value for key, value in made_of.items() if key != "hardware"}
    if isinstance(kept.get("input"), Mapping):
        kept["input"] = {**kept["input"], "path": ""}
    if isinstance(kept.get("weights"), Mapping):
        entries = kept["weights"].items()
        kept["weights"] = {name: {**one, "path": ""} if isinstance(one, Mapping) else one for name, one in entries}
    return kept
