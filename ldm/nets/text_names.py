"""Names of transformers' CLIPTextModel for the text tower of this project (`ldm.nets.text`)."""

from collections.abc import Mapping

import torch
from torch import Tensor

_PREFIX = "text_model."
_WHOLE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_POSITIONS = "embeddings.position_ids"  # a constant that older files carry


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a CLIPTextModel under the names of OpenCLIP's text tower; q, k and v are stacked in this order.

    The same function as OpenCLIP's with one layer more, of which the last is not run. Raises ValueError for a name that
    does not belong to a CLIPTextModel, and for a layer without all of q, k and v.
    """
    renamed: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        short = name.removeprefix(_PREFIX)
        if short == _POSITIONS:
            continue
        if short in _WHOLE:
            renamed[_WHOLE[short]] = value
            continue
        layer, part, kind = _split_layer_name(short, name)
        if part in _PARTS:
            renamed[f"{layer}.{_PARTS[part]}.{kind}"] = value
        elif part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            stacks.setdefault(f"{layer}.attn.in_proj_{kind}", {})[part[len("self_attn.")]] = value
        else:
            raise ValueError(f"got the weight {name}, expected those of a CLIPTextModel")
    for name, parts in stacks.items():
        if set(parts) != set("qkv"):
            raise ValueError(f"got only {sorted(parts)} for {name}, expected q, k and v")
        renamed[name] = torch.cat([parts[key] for key in "qkv"])
    return renamed


def _split_layer_name(short: str, name: str) -> tuple[str, str, str]:
    """("transformer.resblocks.3", "mlp.fc1", "weight") of "encoder.layers.3.mlp.fc1.weight"."""
    words = short.split(".")
    if words[:2] != ["encoder", "layers"] or len(words) < 5 or not words[2].isdigit():
        raise ValueError(f"got the weight {name}, expected those of a CLIPTextModel")
    return f"transformer.resblocks.{words[2]}", ".".join(words[3:-1]), words[-1]
