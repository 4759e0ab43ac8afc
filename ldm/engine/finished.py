"""Decide whether an existing output is up to date."""

import json
from collections.abc import Mapping

from ldm.engine import provenance
from ldm.engine.jobs import Job, Model, manifest_of
from ldm.engine.resume import continued, differences
from ldm.files import read_json

COMPARED_KEYS = ("input", "weights", "settings", "arguments", "versions")  # of the manifest: they determine the frames


class OutputDiffers(ValueError):
    """An existing output that differs from what the command would write; the message is one line with the reason."""


def finished(job: Job, model: Model, *, keys: tuple[str, ...] = COMPARED_KEYS) -> dict | None:
    """Return the record of an output that exists and is up to date; None if there is no output.

    `keys` are the compared keys of the manifest; the plan is not compared. Raises OutputDiffers.
    """
    beside = provenance.record_path(job.output)
    if not (job.output.exists() and beside.is_file()):
        return None
    try:
        record = read_json(beside)
        was = _without_paths({key: record[key] for key in keys})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise OutputDiffers(f"{beside}: not a record of an output; remove it and {job.output}") from None
    now = json.loads(json.dumps(manifest_of(job, model)))
    wanted = _without_paths({key: now[key] for key in was})
    if found := differences(continued(was, wanted), wanted):
        what = "; ".join(found[:2])
        raise OutputDiffers(f"{job.output}: made with {what}; choose another -o, or remove it")
    if not provenance.has_recorded_hash(job.output, record):
        changed = "its frames have changed since they were written"
        raise OutputDiffers(f"{job.output}: {changed}; remove it")
    return record


def _without_paths(manifest: Mapping) -> dict:
    """Remove paths of this machine from a manifest."""
    inside = manifest["input"] | {"path": ""}
    weights = {slot: {"sha256": entry["sha256"]} for slot, entry in manifest["weights"].items()}
    return {**manifest, "input": inside, "weights": weights}
