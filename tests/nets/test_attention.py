import pytest
import torch
from torch.nn import functional as F

from ldm.nets.attention import (
    TOKENS,
    AttentionBlock,
    CrossAttention,
    FeedForward,
    SpatialTransformer,
    TemporalAttention,
    TransformerBlock,
    split_heads,
)


def attend(q, k, v):
    """Plain softmax attention of one head: (n, tokens, d)."""
    return torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v


def test_cross_attention_is_softmax_attention_head_by_head():
    layer = CrossAttention(6, heads=2, dim_head=4, context_dim=5).double()
    x, context = torch.randn(3, 7, 6).double(), torch.randn(3, 9, 5).double()
    q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context)
    heads = [attend(q[..., s], k[..., s], v[..., s]) for s in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(layer(x, context), layer.to_out(torch.cat(heads, dim=-1)), atol=1e-12)
    assert layer.to_q.bias is None and layer.to_k.bias is None and layer.to_v.bias is None


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_context_rows_belong_to_consecutive_frames(rows):
    layer = CrossAttention(6, heads=2, dim_head=4, context_dim=5)
    x, context = torch.randn(6, 7, 6), torch.randn(rows, 9, 5)
    expected = torch.cat([layer(x[i : i + 1], context[i * rows // 6, None]) for i in range(6)])
    assert torch.allclose(layer(x, context), expected, atol=1e-5)


def test_feed_forward_gates_the_first_half_with_gelu_of_the_second():
    layer, x = FeedForward(4), torch.randn(2, 3, 4)
    value, gate = layer.net[0].proj(x).split(16, dim=-1)
    exact_gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    assert torch.allclose(layer(x), layer.net[2](value * exact_gelu), atol=1e-6)


def test_feed_forward_of_many_tokens_is_that_of_each():
    layer, x = FeedForward(4), torch.randn(3, TOKENS // 2, 4)
    with torch.no_grad():
        assert torch.allclose(layer(x)[:, -7:], layer(x[:, -7:]), atol=1e-6)
    assert torch.allclose(layer(x).detach(), torch.cat([layer(row[None]) for row in x]).detach(), atol=1e-6)


def test_transformer_block_attends_to_itself_then_to_the_text_then_feeds_forward():
    block = TransformerBlock(8, heads=2, dim_head=4, context_dim=5)
    x, context = torch.randn(2, 6, 8), torch.randn(2, 3, 5)
    y = x + block.attn1(block.norm1(x))
    y = y + block.attn2(block.norm2(y), context)
    y = y + block.ff(block.norm3(y))
    assert torch.allclose(block(x, context), y, atol=1e-6)
    order = [name.split(".")[0] for name in block.state_dict()]
    assert list(dict.fromkeys(order)) == ["attn1", "ff", "attn2", "norm1", "norm2", "norm3"]


def test_fresh_spatial_transformer_is_the_identity_and_its_norm_has_eps_1e_6():
    layer, x = SpatialTransformer(32, heads=2, dim_head=16, context_dim=5, depth=2), torch.randn(2, 32, 3, 4)
    assert torch.equal(layer(x, torch.randn(1, 7, 5)), x)
    assert layer.norm.eps == 1e-6
    assert {m.eps for m in layer.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    assert len(layer.transformer_blocks) == 2


def test_spatial_transformer_keeps_pixels_in_place():
    layer = SpatialTransformer(32, heads=2, dim_head=16, context_dim=5)
    torch.nn.init.normal_(layer.proj_out.weight)
    x, context = torch.randn(2, 32, 3, 4), torch.randn(1, 7, 5)
    assert torch.allclose(layer(x.flip(3), context), layer(x, context).flip(3), atol=1e-5)
    assert torch.allclose(layer(x.transpose(2, 3), context), layer(x, context).transpose(2, 3), atol=1e-5)


def test_temporal_attention_works_on_each_pixel_of_each_clip_alone():
    layer = TemporalAttention(8, heads=2, dim_head=4, temporal_alpha=0.3)
    x = torch.randn(6, 8, 2, 3)
    tokens = x[3:, :, 1, 2][None]  # second clip, one pixel: (1, t, c)
    y = layer.temporal_attn(F.layer_norm(tokens, (8,), eps=1e-5))
    assert torch.allclose(layer(x, 3)[3:, :, 1, 2], (0.3 * y + 0.7 * tokens)[0], atol=1e-6)
    assert layer.norm.eps == 1e-5


def test_temporal_attention_has_no_positional_code_and_takes_single_frames():
    layer = TemporalAttention(8, heads=2, dim_head=4)
    assert layer.temporal_alpha.tolist() == pytest.approx([0.1])
    x = torch.randn(4, 8, 2, 2)
    order = [2, 0, 3, 1]
    assert torch.allclose(layer(x[order], 4), layer(x, 4)[order], atol=1e-6)
    tokens = layer.norm(x.permute(0, 2, 3, 1))
    alone = layer.temporal_attn.to_out(layer.temporal_attn.to_v(tokens)).permute(0, 3, 1, 2)  # softmax of one is 1
    assert torch.allclose(layer(x, 1), 0.1 * alone + 0.9 * x, atol=1e-6)


def test_attention_block_orders_qkv_head_by_head():
    block = AttentionBlock(32, heads=2)
    assert torch.equal(block(x := torch.randn(2, 32, 3, 4)), x)  # proj_out starts at zero
    torch.nn.init.normal_(block.proj_out.weight)
    qkv = block.qkv(block.norm(x).flatten(2)).transpose(1, 2)  # (n, h*w, 96)
    heads = [attend(*qkv[..., s : s + 48].split(16, dim=-1)) for s in (0, 48)]
    expected = x + block.proj_out(torch.cat(heads, dim=-1).transpose(1, 2)).unflatten(2, (3, 4))
    assert torch.allclose(block(x), expected, atol=1e-5)
    assert block.norm.eps == 1e-5 and block.norm.num_groups == 32


def test_attention_of_bfloat16_stays_near_float32():
    layer = CrossAttention(64, heads=1, dim_head=64).bfloat16()
    x = torch.randn(1, 300, 64).bfloat16()
    exact = CrossAttention(64, heads=1, dim_head=64)
    exact.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(x).float(), exact(x.float()), atol=1e-2)


def test_heads_come_from_their_size_or_their_number():
    assert split_heads(64, num_heads=-1, num_head_channels=16) == {"heads": 4, "dim_head": 16}
    assert split_heads(64, num_heads=8, num_head_channels=-1) == {"heads": 8, "dim_head": 8}
    with pytest.raises(ValueError, match="got num_heads=-1 for 64 channels"):
        split_heads(64, num_heads=-1, num_head_channels=-1)
    with pytest.raises(ValueError, match="got num_head_channels=48 for 64 channels"):
        split_heads(64, num_heads=-1, num_head_channels=48)
