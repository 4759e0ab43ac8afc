"""Merge weights of Stable Diffusion 2.1 into a U-Net that was trained around it: LoRA weights, or whole layers.

MGLD-VSR trained SPADE, the temporal layers and the structure encoder; the other layers of its U-Net are those of
SD 2.1. They can be replaced by weights that were distilled from SD 2.1 for few steps, such as TCD or SD-Turbo.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.printable import printable
from ldm.weights.checkpoint import CheckpointError, first_names
from ldm.weights.stable_diffusion import layers_of_stable_diffusion

PREFIX = "model.diffusion_model."  # of the U-Net in a file of stage 1
OF_U_NET = ("base_model.model.unet.", "base_model.model.", "unet.", "lora_unet_", PREFIX, "diffusion_model.")
OF_TEXT = ("lora_te", "text_encoder", "te.", "base_model.model.text_encoder", "cond_stage_model.")
LORA_NAME = re.compile(
    r"(?P<layer>.+?)(?:\.processor\.(?P<of>to_q|to_k|to_v|to_out)_lora|\.lora(?:_linear_layer|_conv_layer)?)"
    r"[._](?P<part>down|up|A|B)(?:\.default)?\.weight"
)
LORA_PARTS = {"down": "down", "A": "down", "up": "up", "B": "up"}


@dataclass
class Merge:
    """The result of a merge.

    Args:
        state: all entries of the file, with the merged ones replaced.
        changed: name of a replaced entry -> ||new - old|| / ||old|| (Frobenius norms).
        left: reason -> names that were not merged.
    """

    state: dict[str, Tensor]
    changed: dict[str, float] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def put(self, name: str, value: Tensor) -> None:
        """Replace an entry, in its dtype, and note the size of the change."""
        before = self.state[name].float()
        self.changed[name] = ((value - before).norm() / before.norm().clamp_min(1e-12)).item()
        self.state[name] = value.to(self.state[name].dtype)


def merge_changes(
    state: Mapping[str, Tensor], changes: Mapping[str, Tensor], *, scale: float = 1.0, base: Mapping | None = None
) -> Merge:
    """Add low-rank changes to the U-Net of a file of stage 1: W + scale (alpha / rank) up @ down (Hu et al. 2022).

    The changes have names of diffusers (also those of peft) or kohya; alpha is the rank where the file has none. Those
    of text encoders are left out. `base` and what is left out of the middle block: see `own_layers`.

    Raises CheckpointError for a change that no layer takes, of another shape or kind, or without one of its parts.
    """
    result, layers = Merge(dict(state)), own_layers(state)
    known = {alias: own for own, names in layers.items() for alias in _aliases(*names)}
    groups, odd = _grouped(changes, result)
    unmatched = odd + [name for name in groups if name not in known]
    if unmatched or not groups:
        raise CheckpointError(
            f"{len(unmatched)} changes that no layer takes: {first_names(unmatched)}. Expected low-rank changes "
            f"(lora_down, lora_up, or lora_A, lora_B) of the U-Net of SD 2.1, in names of diffusers or kohya"
        )
    kept = _kept(state, layers, base, result)
    for name, parts in groups.items():
        own = f"{PREFIX}{known[name]}.weight"
        if known[name] in kept:
            result.put(own, result.state[own].float() + scale * _product(name, parts, result.state[own].shape))
    return result


def exchange_layers(state: Mapping[str, Tensor], other: Mapping[str, Tensor], *, base: Mapping | None = None) -> Merge:
    """Replace the layers of Stable Diffusion in a file of stage 1 by those of another file of its U-Net.

    The other file has the names of Stable Diffusion's code, with or without a prefix, or those of diffusers; what it
    holds beside the U-Net is left out. `base` and what is left out of the middle block: see `own_layers`.

    Raises CheckpointError for a layer that the other file lacks or holds in another shape.
    """
    result, layers = Merge(dict(state)), own_layers(state)
    plain = {_without_prefix(name): value for name, value in other.items()}
    kept, found, missing = _kept(state, layers, base, result), {}, []
    for name in (name for name in state if name.startswith(PREFIX)):
        layer, _, leaf = name.removeprefix(PREFIX).rpartition(".")
        if layer in kept:
            values = [plain[f"{alias}.{leaf}"] for alias in layers[layer] if f"{alias}.{leaf}" in plain]
            found |= {name: values[0]} if values else {}
            missing += [] if values else [name]
    if missing or not found:
        raise CheckpointError(
            f"{len(missing)} entries are not in the other file: {first_names(missing)}. Expected a U-Net of SD 2.1"
        )
    for name, value in found.items():
        if value.squeeze().shape != state[name].squeeze().shape:  # linear layers may be 1x1 convolutions
            shapes = f"{tuple(state[name].shape)} here, {tuple(value.shape)} there"
            raise CheckpointError(f"{printable(name)}: {shapes}; expected a U-Net of SD 2.1, of the same width")
        result.put(name, value.float().view(state[name].shape))
    return result


def own_layers(state: Mapping[str, Tensor]) -> Mapping[str, tuple[str, str]]:
    """Return the layers of the U-Net that come from Stable Diffusion -> their names there.

    In the published file, two blocks in the middle do not: the released code lost their weights (B3), so that the
    transformer is an identity with `proj_out` of zeros and the block behind it is random; these stay unchanged. With a
    `base`, the file of SD 2.1 around which a model was trained, any layer that differs from it stays unchanged.
    """
    layers = layers_of_stable_diffusion(name.removeprefix(PREFIX) for name in state if name.startswith(PREFIX))
    if not layers:
        raise CheckpointError(f"got no entries {PREFIX}..., expected a file of stage 1 (mgldvsr_unet)")
    return layers


def _kept(state: Mapping, layers: Mapping, base: Mapping | None, result: Merge) -> set[str]:
    """Return the layers that may change; the others are noted in the result."""
    idle = _idle_middle(state, layers)
    result.left["the middle block of the published file, which is not that of SD 2.1 (B3)"] += sorted(idle)
    kept = set(layers) - idle
    if base is not None:
        plain = {_without_prefix(name): value for name, value in base.items()}
        other = {layer for layer in kept if not _equals(state, layer, layers[layer], plain)}
        result.left["layers that differ from --base, trained"] += sorted(other)
        kept -= other
    return kept


def _idle_middle(state: Mapping[str, Tensor], layers: Mapping) -> set[str]:
    """Return the layers of the middle block behind the first residual block if the released code lost them."""
    last = [own for own, names in layers.items() if names[0] == "middle_block.1.proj_out"]
    if not last or state[f"{PREFIX}{last[0]}.weight"].any():
        return set()
    return {own for own, names in layers.items() if names[0].startswith(("middle_block.1.", "middle_block.2."))}


def _equals(state: Mapping[str, Tensor], layer: str, names: tuple[str, str], plain: Mapping[str, Tensor]) -> bool:
    """Whether a layer's weight is that of another file, up to rounding to half precision."""
    value = next((plain[f"{name}.weight"] for name in names if f"{name}.weight" in plain), None)
    if value is None:
        raise CheckpointError(f"--base has no {printable(names[0])}.weight, expected the U-Net of SD 2.1")
    own = state[f"{PREFIX}{layer}.weight"].float()
    same_size = value.numel() == own.numel()
    return same_size and torch.allclose(value.float().view(own.shape), own, rtol=2e-3, atol=1e-6)


def _grouped(changes: Mapping[str, Tensor], result: Merge) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return the parts of each layer's change by the layer's name in its file, and entries of another kind."""
    groups, odd = defaultdict(dict), []
    for name, value in changes.items():
        match = LORA_NAME.fullmatch(name)
        if name.startswith(OF_TEXT):
            result.left["changes of text encoders"].append(name)
        elif match:
            layer = match["layer"] + {None: "", "to_out": ".to_out.0"}.get(match["of"], f".{match['of']}")
            groups[_without_prefix(layer)][LORA_PARTS[match["part"]]] = value.float()
        elif name.endswith(".alpha") and value.numel() == 1:
            groups[_without_prefix(name.removesuffix(".alpha"))]["alpha"] = value.float()
        else:
            odd.append(name)
    return dict(groups), odd


def _product(name: str, parts: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """Return (alpha / rank) up @ down in the shape of the weight."""
    if not {"down", "up"} <= parts.keys():
        raise CheckpointError(f"{printable(name)}: got only {', '.join(parts)}, expected a lower and an upper part")
    down, up = parts["down"].flatten(1), parts["up"].flatten(1)
    rank = len(down)
    if up.shape != (shape[0], rank) or down.shape[1] != shape[1:].numel():
        got = f"parts of {tuple(parts['down'].shape)} and {tuple(parts['up'].shape)}"
        raise CheckpointError(f"{printable(name)}: got {got} for a weight of {tuple(shape)}; is it for SD 2.1?")
    return (parts["alpha"].item() if "alpha" in parts else rank) / rank * (up @ down).view(shape)


def _aliases(original: str, diffusers: str) -> set[str]:
    """Return all names of a layer, with dots and with kohya's underscores."""
    return {original, diffusers, original.replace(".", "_"), diffusers.replace(".", "_")}


def _without_prefix(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in OF_U_NET if name.startswith(prefix)), name)
