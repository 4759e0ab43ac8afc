"""Names of the U-Net's layers in Stable Diffusion, in its own code and in diffusers."""

import re
from collections.abc import Iterable
from typing import NamedTuple

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
SINGLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
TRANSFORMER = ("norm", "proj_in", "proj_out")  # besides transformer_blocks.*
_LAYER = re.compile(r"(?:(input|output)_blocks\.(\d+)|middle_block)\.(\d+)\.(.+)")


class Names(NamedTuple):
    """A layer's names in Stable Diffusion's code and in diffusers."""

    original: str
    diffusers: str


def layers_of_stable_diffusion(entries: Iterable[str]) -> dict[str, Names]:
    """Return the names in Stable Diffusion of the layers of a U-Net, given the names of its entries.

    SPADE and temporal layers have none. Temporal layers lie between those of Stable Diffusion, so that the middle
    block is numbered differently (B3): its residual blocks are 0 and 2 there, and its transformer is 1.
    """
    modules = sorted({entry.rpartition(".")[0] for entry in entries})
    transformers = {name.partition(".transformer_blocks.")[0] for name in modules if ".transformer_blocks." in name}
    middle = sorted({int(m[1]) for name in modules if (m := re.match(r"middle_block\.(\d+)\.in_layers\.", name))})
    numbers = [int(m[1]) for name in modules if (m := re.match(r"input_blocks\.(\d+)\.", name))]
    first_smaller = [int(m[1]) for name in modules if (m := re.match(r"input_blocks\.(\d+)\.0\.op$", name))]
    per_level = min(first_smaller, default=max(numbers, default=0) + 1)
    found = {}
    for name in modules:
        if name in SINGLE:
            found[name] = Names(name, SINGLE[name])
        elif (match := _LAYER.fullmatch(name)) and "spade" not in name:
            is_transformer = _block(name) in transformers
            names = _in_a_block(*match.groups(), is_transformer=is_transformer, middle=middle, per=per_level)
            found |= {} if names is None else {name: names}
    return found


def _block(name: str) -> str:
    """Return the beginning of a name that belongs to all layers of its block."""
    return ".".join(name.split(".")[: 2 if name.startswith("middle_block") else 3])


def _in_a_block(
    half: str | None, number: str | None, place: str, layer: str, *, is_transformer: bool, middle: list[int], per: int
) -> Names | None:
    """Return the names of a layer: block `number` of a half, or of the middle, and its `place` there."""
    if half is None:
        if is_transformer:
            return _named("middle_block.1", "mid_block.attentions.0", layer, is_transformer=True)
        rank = middle.index(int(place)) if int(place) in middle else 0
        return _named(f"middle_block.{2 * rank}", f"mid_block.resnets.{rank}", layer, is_transformer=False)
    level, index = divmod(int(number) - (half == "input"), per)
    original = f"{half}_blocks.{number}.{min(int(place), 1) if is_transformer else place}"
    side = "down_blocks" if half == "input" else "up_blocks"
    if layer == "op":
        return Names(f"{original}.op", f"{side}.{level}.downsamplers.0.conv")
    if layer == "conv":
        return Names(f"{original}.conv", f"{side}.{level}.upsamplers.0.conv")
    kind = "attentions" if is_transformer else "resnets"
    return _named(original, f"{side}.{level}.{kind}.{index}", layer, is_transformer=is_transformer)


def _named(original: str, diffusers: str, layer: str, *, is_transformer: bool) -> Names | None:
    """Return the names of a layer of a residual block or a transformer; None for a layer of neither."""
    if is_transformer:
        known = layer in TRANSFORMER or layer.startswith("transformer_blocks.")
        return Names(f"{original}.{layer}", f"{diffusers}.{layer}") if known else None
    return Names(f"{original}.{layer}", f"{diffusers}.{RESIDUAL[layer]}") if layer in RESIDUAL else None
