import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.nets.clip_attention import (
    ClipTransformer,
    RotaryPositions,
    RotaryTemporalAttention,
    relative_position_buckets,
)
from ldm.nets.clip_layers import PlusBlock, TemporalModule, TimeConv, clip_norm, frame_block, time_block


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def shaken(module):
    """The module with all parameters drawn, so that no branch is zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    return module.eval()


def as_volume(x, frames):
    """(b*t, c, h, w) -> (b, c, t, h, w)."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def as_frames(x):
    return x.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_clip_norm_is_the_group_norm_of_volumes(layout, gradient):
    x = (3 + 2 * torch.randn(6, 8, 4, 5)).contiguous(memory_format=layout)
    norm = shaken(clip_norm(8, groups=4, eps=1e-5)).requires_grad_(gradient)
    expected = F.group_norm(as_volume(x, 3), 4, norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(norm(x, 3), as_frames(expected), rtol=1e-5, atol=1e-5)
    assert (norm(x, 3) - norm(x, 1)).abs().max() > 0.01  # frames influence one another


@pytest.mark.parametrize("gradient", [True, False])
def test_clip_norm_is_exact_far_from_zero_and_in_half_precision(gradient):
    x = 1000 + torch.randn(4, 8, 16, 16)
    norm = clip_norm(8, groups=2, eps=1e-5).requires_grad_(gradient)
    exact = F.group_norm(as_volume(x.double(), 4), 2, eps=1e-5)
    assert (norm(x, 4) - as_frames(exact)).abs().max() < 1e-3
    half = torch.randn(4, 8, 16, 16, dtype=torch.bfloat16)
    out = norm.bfloat16()(half, 2)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.detach().float(), as_frames(F.group_norm(as_volume(half.float(), 2), 2)), rtol=0, atol=0.02
    )


def test_clip_norm_has_the_gradient_of_the_group_norm():
    x = torch.randn(4, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    norm = shaken(clip_norm(4, groups=2, eps=1e-5)).double()
    assert torch.autograd.gradcheck(lambda x: norm(x, 2), (x,))


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="got 48 channels and 32 groups"):
        clip_norm(48, groups=32, eps=1e-6)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_convolution_over_time_is_a_conv3d(kernel, frames):
    conv = TimeConv(4, kernel=kernel)
    x = torch.randn(2 * frames, 4, 3, 5)
    expected = nn.Conv3d.forward(conv, as_volume(x, frames))
    torch.testing.assert_close(conv(x, frames), as_frames(expected), rtol=1e-5, atol=1e-6)


def test_convolution_over_time_has_a_gradient():
    conv = TimeConv(2, kernel=5).double()
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: conv(x, 4), (x,))


def test_an_embedding_row_belongs_to_its_clip():
    block = shaken(frame_block(8, 16, groups=4, eps=1e-5, emb_channels=6))
    x, emb = torch.randn(4, 8, 3, 3), torch.randn(2, 6)
    both = block(x, 2, emb)
    torch.testing.assert_close(both[2:], block(x[2:], 2, emb[1:]))
    assert (both[2:] - block(x[2:], 2, emb[:1])).abs().max() > 0.01


def test_plus_block_starts_as_its_residual_block():
    plus, plain = PlusBlock(3, 8, groups=4, eps=1e-6), frame_block(3, 8, groups=4, eps=1e-6)
    plain.load_state_dict({k: v for k, v in plus.state_dict().items() if "_3d" not in k})
    x = torch.randn(3, 3, 4, 4)
    assert torch.equal(plus(x, 3), plain(x, 3))


def test_temporal_modules_start_as_the_identity():
    x, emb = torch.randn(4, 32, 4, 4), torch.randn(1, 8)
    assert torch.equal(TemporalModule(32, emb_channels=8)(x, 4, emb), x)


def test_attention_over_time_sees_order_and_starts_at_zero():
    layer = RotaryTemporalAttention(64, heads=2, rotary=RotaryPositions())
    x = torch.randn(3, 5, 64)
    assert not layer(x).any()
    shaken(layer)
    backwards = layer(x.flip(1)).flip(1)
    assert (layer(x) - backwards).abs().max() > 0.01


def test_rotation_keeps_scores_of_equal_distance():
    rotary, q, k = RotaryPositions(), torch.randn(1, 1, 1, 40), torch.randn(1, 1, 1, 40)
    turned_q, turned_k = rotary(q.expand(1, 1, 8, 40)), rotary(k.expand(1, 1, 8, 40))
    scores = (turned_q @ turned_k.transpose(-1, -2))[0, 0]
    for distance in range(8):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert torch.equal(turned_q[..., 32:], q[..., 32:].expand(1, 1, 8, 8))


def test_buckets_grow_with_the_distance_and_keep_the_sign():
    row = relative_position_buckets(60)[30]
    assert row[30] == 0 and row[29] == 1 and row[31] == 17
    assert row[:30].flip(0).diff().min() >= 0 and row.max() == 31 and row[:30].max() == 15


@pytest.mark.parametrize("heads", [0, 3, 4])
def test_heads_that_do_not_fit_are_refused(heads):
    with pytest.raises(ValueError, match=f"got {heads} heads for 64 channels"):
        RotaryTemporalAttention(64, heads=heads, rotary=RotaryPositions())


def test_layers_of_the_transformer_keep_their_own_constants():
    """Eps and groups, which outputs of ordinary size hardly show."""
    layer = ClipTransformer(64, heads=2, context_dim=8, groups=8, cross_only=True, rotary=RotaryPositions())
    assert (layer.norm.num_groups, layer.norm.eps) == (8, 1e-6)
    for norm in (layer.resblock_temporal.norm1, layer.resblock_temporal.norm2):
        assert (norm.num_groups, norm.eps) == (32, 1e-6)
    norms = [m for m in layer.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 4 and {norm.eps for norm in norms} == {1e-5}


def test_faint_maps_show_the_eps():
    x = 1e-3 * torch.randn(2, 32, 4, 4)
    x = x - x.mean()
    for eps in (1e-5, 1e-6):
        norm = clip_norm(32, groups=1, eps=eps)
        variance = x.var(correction=0).item()
        assert norm(x, 2).std(correction=0).item() == pytest.approx((variance / (variance + eps)) ** 0.5, rel=1e-3)
    assert time_block(32, kernel=3).norm1.eps == 1e-6
