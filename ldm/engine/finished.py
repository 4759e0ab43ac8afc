"""Outputs that exist: whether the same command would make the same ones."""

import json
from collections.abc import Mapping

from ldm.engine import provenance
from ldm.engine.jobs import Job, Model, manifest_of
from ldm.engine.resume import differences
from ldm.files import read_text

DECIDING = ("input", "weights", "settings", "arguments", "versions")  # of a manifest: what decides frames


class MadeOtherwise(ValueError):
    """An output that exists and differs from what would be made; the message is one line that says why."""


def finished(job: Job, model: Model, *, deciding: tuple[str, ...] = DECIDING) -> dict | None:
    """The record of an output that exists and is what would be made now; None where there is no output.

    `deciding` are the keys of the manifest that are compared; the plan is not. Raises MadeOtherwise.
    """
    beside = provenance.beside(job.output)
    if not (job.output.exists() and beside.is_file()):
        return None
    try:
        record = json.loads(read_text(beside))
        was = _lasting({key: record[key] for key in deciding})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MadeOtherwise(f"{beside}: not a record of an output; remove it and {job.output}") from None
    now = json.loads(json.dumps(manifest_of(job, model)))
    if found := differences(was, _lasting({key: now[key] for key in was})):
        what = "; ".join(found[:2])
        raise MadeOtherwise(f"{job.output}: made with {what}; choose another -o, or remove it")
    if not provenance.is_as_written(job.output, record):
        changed = "its frames have changed since they were written"
        raise MadeOtherwise(f"{job.output}: {changed}; remove it")
    return record


def _lasting(manifest: Mapping) -> dict:
    """A manifest without places on this machine."""
    inside = manifest["input"] | {"path": ""}
    weights = {slot: {"sha256": entry["sha256"]} for slot, entry in manifest["weights"].items()}
    return {**manifest, "input": inside, "weights": weights}
