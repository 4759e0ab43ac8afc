"""Export a trained model: its weights as safetensors and its card, `model.yaml`."""

from pathlib import Path

from torch import nn

from ldm import config
from ldm.engine.assemble import CARD, find_weights
from ldm.weights import checkpoint

# The keys of a training configuration that restoration needs.
CARD_KEYS = ("family", "weights", "flags", "flow", "flows", "vae", "vaes", "networks", "method", "output")


def write_export(model: nn.Module, settings) -> str:
    """Write the weights of `model` according to `settings.export`; return a line for the log.

    `export` has the keys `file`, `half` (write float16) and `drop` (prefixes of entries to leave out). The card is
    written beside the file if the settings have a `method`. Raises OSError, and ValueError as
    `ldm.weights.checkpoint.save`.
    """
    export = config.plain(settings)["export"]
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(tuple(export.get("drop", ())))}
    if export.get("half"):
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    file = Path(export["file"])
    checkpoint.save(file, state, {"trained_by": "main.py"})
    if settings.get("method") is None:
        return f"{file}: written"
    config.save(config.part_of(settings, CARD_KEYS), file.parent / CARD)
    return f"{file}: written, with {CARD}{_usage(file.parent)}"


def card_text(settings) -> str:
    """Return the content of `model.yaml` for a training configuration, as `write_export` writes it."""
    return config.to_yaml(config.part_of(settings, CARD_KEYS))


def _usage(folder: Path) -> str:
    """Return the end of a message that tells how to use a folder of weights; "" if the folder is incomplete."""
    try:
        find_weights(folder)
    except FileNotFoundError:  # the weights of the other training stage do not exist yet
        return ""
    return f"; use it with --weights {folder}"
