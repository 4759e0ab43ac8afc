"""Single building blocks against recorded ones; heads, widths and frames are read off the recorded shapes and notes."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.nets.attention import AttentionBlock, SpatialTransformer, TemporalAttention
from ldm.nets.autoencoder import ResnetBlock, VAEAttention, VAEDownsample, VAEUpsample
from ldm.nets.layers import SPADE, Downsample, ResBlock, Upsample
from ldm.nets.sequence_decoder import FuseBlock
from ldm.nets.temporal import DilatedTemporalConv, TemporalConv
from tests.golden_checks.case import Case, assert_near, recipe_value

Shapes = dict[str, list[int]]


class Note(str):
    """What a recording says about a block, e.g. `TemporalAttention(64, num_heads=4, dim_head=16, num_frames=3)(x)`."""

    def number(self, key: str, default: float) -> float:
        found = re.search(rf"\b{key}\s*=\s*([\d.]*\d)", self)
        return float(found.group(1)) if found else default

    def position(self, index: int, default: int) -> int:
        found = re.search(r"\(([^()]*)\)", self)
        values = [v.strip() for v in found.group(1).split(",")] if found else []
        return int(values[index]) if index < len(values) and values[index].isdigit() else default


def residual(shapes: Shapes) -> ResBlock:
    out, channels = shapes["in_layers.2.weight"][:2]
    cond = shapes.get("spade.mlp_shared.0.weight")
    emb = shapes["emb_layers.1.weight"][1]
    return ResBlock(channels, emb, out_channels=out, cond_channels=cond[1] if cond else None)


def temporal_attention(shapes: Shapes, note: Note) -> TemporalAttention:
    heads = int(note.number("num_heads", note.position(1, 1)))
    dim_head = shapes["temporal_attn.to_q.weight"][0] // heads
    return TemporalAttention(shapes["norm.weight"][0], heads=heads, dim_head=dim_head)


def transformer(shapes: Shapes, note: Note) -> SpatialTransformer:
    first = "transformer_blocks.0.attn"
    heads = int(note.number("n_heads", note.position(1, 1)))
    return SpatialTransformer(
        shapes["norm.weight"][0],
        heads=heads,
        dim_head=shapes[f"{first}1.to_q.weight"][0] // heads,
        context_dim=shapes[f"{first}2.to_k.weight"][1],
        depth=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("transformer_blocks.")),
    )


def fusion(shapes: Shapes) -> FuseBlock:
    blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("encode_enc_2."))
    return FuseBlock(shapes["encode_enc_3.norm1.weight"][0], num_block=blocks)


# key of the recording -> (build from shapes and note, run on the case's inputs)
BLOCKS: dict[str, tuple[Callable[[Shapes, Note], nn.Module], Callable[..., Tensor]]] = {
    "stconv": (
        lambda s, n: TemporalConv(s["temporal_conv.bias"][0]),
        lambda m, c, n: m(c["x"], frames(c, n)),
    ),
    "mdconv": (
        lambda s, n: DilatedTemporalConv(s["temporal_conv1.bias"][0]),
        lambda m, c, n: m(c["x"], frames(c, n)),
    ),
    "tattn": (temporal_attention, lambda m, c, n: m(c["x"], frames(c, n))),
    "spade": (
        lambda s, n: SPADE(s["mlp_gamma.bias"][0], s["mlp_shared.0.weight"][1], hidden=s["mlp_shared.0.bias"][0]),
        lambda m, c, n: m(c["x"], c["cond"]),
    ),
    "resdual": (lambda s, n: residual(s), lambda m, c, n: m(c["x"], c["emb"], c["cond"])),
    "res": (lambda s, n: residual(s), lambda m, c, n: m(c["x"], c["emb"])),
    "strans": (transformer, lambda m, c, n: m(c["x"], c["context"])),
    "attnblock": (
        lambda s, n: AttentionBlock(s["norm.weight"][0], heads=int(n.number("num_heads", 1))),
        lambda m, c, n: m(c["x"]),
    ),
    "up": (lambda s, n: Upsample(s["conv.bias"][0]), lambda m, c, n: m(c["x"])),
    "down": (lambda s, n: Downsample(s["op.bias"][0]), lambda m, c, n: m(c["x"])),
    "vdown": (lambda s, n: VAEDownsample(s["conv.bias"][0]), lambda m, c, n: m(c["x"])),
    "vup": (lambda s, n: VAEUpsample(s["conv.bias"][0]), lambda m, c, n: m(c["x"])),
    "vres": (
        lambda s, n: ResnetBlock(s["norm1.weight"][0], s["norm2.weight"][0]),
        lambda m, c, n: m(c["x"]),
    ),
    "vattn": (lambda s, n: VAEAttention(s["norm.weight"][0]), lambda m, c, n: m(c["x"])),
    "fuse": (lambda s, n: fusion(s), lambda m, c, n: m(c["enc"], c["x"], n.number("w", 1.0))),
}


def frames(case: Case, note: Note) -> int:
    return int(note.number("num_frames", case.meta["frames"]))


@torch.no_grad()
def check_blocks(case: Case) -> None:
    assert case.meta["blocks"], f"{case.name}: no block recorded"
    for recorded in case.meta["blocks"]:
        key, shapes, note = recorded["key"], recorded["shapes"], Note(recorded["what"])
        build, run = BLOCKS[re.sub(r"[\d.]+$", "", key)]
        module = build(shapes, note).eval()
        weights = {name: recipe_value(f"{key}.{name}", shape, case.meta["seed"]) for name, shape in shapes.items()}
        module.load_state_dict(weights, strict=True)
        expected = case[f"out.{key}"]
        out = run(module, case, note)
        assert_near(out[: expected.shape[0]], expected, limit=1e-5, what=key)  # some outputs hold the first frames only


CHECKS = {"l_blocks": check_blocks}
