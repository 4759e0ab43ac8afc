import pytest
import torch
from torch import nn

from ldm.nets.text import OpenCLIPText

TOY = {"width": 32, "layers": 4, "heads": 4, "vocab_size": 50, "context_length": 9}
RENAMES = {
    "attn.": "self_attn.",
    "mlp.c_fc.": "linear1.",
    "mlp.c_proj.": "linear2.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
}


@pytest.fixture
def tower():
    torch.manual_seed(0)
    tower = OpenCLIPText(**TOY).eval()
    for parameter in tower.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.5)  # biases and norms that would show if they were left out
    return tower


def torch_block(block):
    """The same block as an encoder layer of torch."""
    layer = nn.TransformerEncoderLayer(32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    weights = {}
    for name, value in block.state_dict().items():
        ours, theirs = next(pair for pair in RENAMES.items() if name.startswith(pair[0]))
        weights[theirs + name.removeprefix(ours)] = value
    layer.load_state_dict(weights, strict=True)
    return layer.train()  # train mode (without dropout) keeps torch off its fused inference path


@torch.no_grad()
def test_equals_three_of_four_torch_encoder_layers(tower):
    tokens = torch.randint(0, 50, (2, 9))
    x = tower.token_embedding.weight[tokens] + tower.positional_embedding
    mask = torch.full((9, 9), float("-inf")).triu(1)
    for block in tower.transformer.resblocks[:3]:
        x = torch_block(block)(x, src_mask=mask)
    expected = nn.functional.layer_norm(x, (32,), tower.ln_final.weight, tower.ln_final.bias, eps=1e-5)
    torch.testing.assert_close(tower(tokens), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_token_changes_itself_and_later_ones_only(tower):
    tokens = torch.randint(0, 40, (1, 9))
    changed = tokens.clone()
    changed[0, 5] += 1
    difference = (tower(tokens) - tower(changed)).abs().amax(dim=(0, 2))
    assert difference[:5].max() == 0
    assert difference[5:].min() > 1e-4


@torch.no_grad()
def test_the_last_block_and_the_unused_entries_have_no_influence(tower):
    before = tower()
    for part in (tower.transformer.resblocks[-1].mlp.c_proj.weight, tower.text_projection, tower.logit_scale):
        part.add_(1)
    assert torch.equal(tower(), before)
    tower.transformer.resblocks[-2].mlp.c_proj.bias.add_(torch.randn(32))
    assert not torch.equal(tower(), before)


def test_the_empty_prompt_of_the_released_vocabulary():
    tower = OpenCLIPText(width=2, layers=1, heads=1)
    assert tower.empty_prompt().tolist() == [[49406, 49407] + [0] * 75]
    assert torch.equal(tower(), tower(tower.empty_prompt()))
    assert tower().shape == (1, 77, 2)


def test_names_and_norms(tower):
    names = set(tower.state_dict())
    block = {
        f"transformer.resblocks.{k}.{part}"
        for k in range(4)
        for part in (
            "ln_1.weight ln_1.bias ln_2.weight ln_2.bias attn.in_proj_weight attn.in_proj_bias attn.out_proj.weight "
            "attn.out_proj.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias"
        ).split()
    }
    whole = {"positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"}
    assert names == block | whole | {"ln_final.weight", "ln_final.bias"}
    assert {m.eps for m in tower.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@torch.no_grad()
def test_half_precision_stays_close(tower):
    reference = tower()
    half = tower.to(torch.bfloat16)()
    assert half.dtype == torch.bfloat16
    assert (half.float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_invalid_inputs_are_refused(tower):
    with pytest.raises(ValueError, match=r"\(n, 9\)"):
        tower(torch.zeros(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="divide"):
        OpenCLIPText(width=30, heads=4, layers=1)
