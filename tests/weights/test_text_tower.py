"""The text tower with the weights of transformers' CLIPTextModel, against the function written out."""

import torch
from torch import nn

from ldm.nets.text import OpenCLIPText
from ldm.weights.names import text_state

WIDTH, LAYERS = 16, 3
SIZES = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
SIZES |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}


def transformers_weights():
    """A CLIPTextModel of three layers, drawn."""
    torch.manual_seed(0)
    weights = {
        "embeddings.token_embedding.weight": torch.randn(30, WIDTH),
        "embeddings.position_embedding.weight": torch.randn(9, WIDTH),
        "embeddings.position_ids": torch.arange(9)[None],
    }
    for name in ("final_layer_norm", *(f"encoder.layers.{i}.layer_norm{k}" for i in range(LAYERS) for k in (1, 2))):
        weights |= {f"{name}.weight": torch.randn(WIDTH), f"{name}.bias": torch.randn(WIDTH)}
    for i in range(LAYERS):
        for part, (rows, columns) in SIZES.items():
            name = f"encoder.layers.{i}.{part}"
            weights |= {f"{name}.weight": torch.randn(rows, columns) / 4, f"{name}.bias": torch.randn(rows)}
    return {f"text_model.{name}": value for name, value in weights.items()}


def reference(w, tokens, heads):
    """The text tower of CLIP in full: causal, pre-norm, exact GELU, all layers, final norm."""
    w = {name.removeprefix("text_model."): value for name, value in w.items()}

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        return nn.functional.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["embeddings.token_embedding.weight"][tokens] + w["embeddings.position_embedding.weight"]
    hidden = torch.full((9, 9), float("-inf")).triu(1)
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        h = norm(x, f"{layer}.layer_norm1")
        q, k, v = (linear(h, f"{layer}.self_attn.{c}_proj").unflatten(-1, (heads, -1)).transpose(1, 2) for c in "qkv")
        scores = (q @ k.transpose(-1, -2) / (WIDTH / heads) ** 0.5 + hidden).softmax(-1)
        x = x + linear((scores @ v).transpose(1, 2).flatten(2), f"{layer}.self_attn.out_proj")
        h = nn.functional.gelu(linear(norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1"))
        x = x + linear(h, f"{layer}.mlp.fc2")
    return norm(x, "final_layer_norm")


@torch.no_grad()
def test_the_renamed_tower_is_the_same_function():
    weights = transformers_weights()
    tower = OpenCLIPText(width=WIDTH, layers=LAYERS + 1, heads=2, vocab_size=30, context_length=9).eval()
    missing, unexpected = tower.load_state_dict(text_state(weights), strict=False)
    last = f"transformer.resblocks.{LAYERS}."
    assert not unexpected and all(name.startswith((last, "text_projection", "logit_scale")) for name in missing)
    tokens = torch.randint(0, 30, (2, 9))
    torch.testing.assert_close(tower(tokens), reference(weights, tokens, 2), rtol=1e-4, atol=1e-5)
