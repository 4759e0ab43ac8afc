"""The files that a training leaves to restore with: weights as safetensors, and the model's card beside them."""

from pathlib import Path

from torch import nn

from ldm import config
from ldm.engine.assemble import CARD, find_weights
from ldm.weights import checkpoint

# What restoring reads of a configuration.
CARD_KEYS = ("family", "weights", "flags", "flow", "flows", "networks", "method", "output")


def write_export(model: nn.Module, settings) -> str:
    """Write the weights of `model` as `settings.export` says; the line to show.

    {file, half: in float16, drop: prefixes left out}. Where the settings describe how to restore, too, they are written
    as the card beside the file. Raises OSError, and ValueError as `ldm.weights.checkpoint.save`.
    """
    export = config.plain(settings)["export"]
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(tuple(export.get("drop", ())))}
    if export.get("half"):
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    file = Path(export["file"])
    checkpoint.save(file, state, {"trained_by": "main.py"})
    if settings.get("method") is None:
        return f"{file}: written"
    config.save({key: settings[key] for key in CARD_KEYS if key in settings}, file.parent / CARD)
    return f"{file}: written, with {CARD}{_use(file.parent)}"


def _use(folder: Path) -> str:
    try:
        find_weights(folder)
    except FileNotFoundError:  # the other stage is still to be trained
        return ""
    return f"; use it with --weights {folder}"
