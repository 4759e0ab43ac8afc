import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldm.nets import layers

CHANNELS_LAST = torch.channels_last


def randomised(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def test_timestep_embedding_is_the_closed_form():
    t = torch.tensor([0, 1, 500, 999])
    expected = torch.tensor(
        [
            [math.cos(s / 10000 ** (k / 4)) for k in range(4)] + [math.sin(s / 10000 ** (k / 4)) for k in range(4)]
            for s in t.tolist()
        ]
    )
    assert torch.allclose(layers.timestep_embedding(t, 8), expected, atol=1e-4)  # the phase 999 in float32


def test_timestep_embedding_of_odd_width_ends_with_a_zero_and_is_float32():
    out = layers.timestep_embedding(torch.tensor([7, 9], dtype=torch.float16), 9)
    assert out.dtype == torch.float32 and out.shape == (2, 9)
    assert torch.equal(out[:, :8], layers.timestep_embedding(torch.tensor([7.0, 9.0]), 8))
    assert (out[:, 8] == 0).all()


def test_group_norm_has_32_groups_and_eps_1e_5():
    norm = layers.group_norm(64)
    assert (norm.num_groups, norm.eps, norm.affine) == (32, 1e-5, True)
    x = torch.zeros(1, 64, 1, 2)
    x[..., 1] = 2e-3  # variance 1e-6: the eps dominates
    assert torch.allclose(norm(x)[0, 0, 0], torch.tensor([-1.0, 1.0]) * 1e-3 / math.sqrt(1e-6 + 1e-5))
    with pytest.raises(ValueError, match="got 40 channels, expected a multiple of 32"):
        layers.group_norm(40)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_are_computed_in_float32(dtype):
    x = 300 + torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(1))
    x = x.to(dtype)
    group, layer = randomised(layers.group_norm(64)).to(dtype), randomised(layers.LayerNorm(4)).to(dtype)
    expected = F.group_norm(x.float(), 32, group.weight.float(), group.bias.float(), 1e-5).to(dtype)
    assert torch.equal(group(x), expected)
    expected = F.layer_norm(x.float(), (4,), layer.weight.float(), layer.bias.float(), 1e-5).to(dtype)
    assert torch.equal(layer(x), expected)


SHAPES = [(2, 64, 4, 4), (1, 96, 7, 1), (2, 32, 1, 3), (1, 64, 70, 70), (3, 32, 61, 67), (1, 32, 2, 2048)]


@pytest.mark.parametrize("mean", [0, 3, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_group_norm_of_channels_last_maps_is_exact_and_keeps_their_layout(shape, mean):
    x = (mean + torch.randn(shape, generator=torch.Generator().manual_seed(1))).contiguous(memory_format=CHANNELS_LAST)
    norm = randomised(layers.group_norm(shape[1]))
    norm.num_groups = 8
    expected = torch.group_norm(x.double(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    with torch.no_grad():
        assert torch.allclose(norm(x).double(), expected, rtol=0, atol=1e-5 + 1e-6 * mean)
        assert norm(x).is_contiguous(memory_format=CHANNELS_LAST)
        assert norm(x.contiguous()).is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_group_norm_of_channels_last_half_precision_rounds_the_float32_result(dtype):
    x = (300 + torch.randn(2, 64, 100, 100, generator=torch.Generator().manual_seed(1))).to(dtype)
    x, norm = x.contiguous(memory_format=CHANNELS_LAST), randomised(layers.group_norm(64))
    exact = torch.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == dtype and out.is_contiguous(memory_format=CHANNELS_LAST)
    assert ((out.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps / 2 + 1e-3).all()


def test_group_norm_of_channels_last_maps_has_the_gradients_of_the_others():
    norm, x = randomised(layers.group_norm(64)), torch.randn(2, 64, 5, 6)
    grads = []
    for layout in (torch.contiguous_format, CHANNELS_LAST):
        leaf = x.clone(memory_format=layout).requires_grad_()
        grads.append(torch.autograd.grad(norm(leaf).pow(3).sum(), [leaf, norm.weight, norm.bias]))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*grads, strict=True))


def test_group_norm_of_a_single_value_is_its_bias():
    norm = randomised(layers.group_norm(32))
    assert torch.allclose(norm(torch.randn(1, 32, 1, 1)).flatten(), norm.bias, atol=1e-3)


@pytest.mark.parametrize("shape", [(7,), (2, 5, 7), (3, 1, 7), (2, 0, 7)])
def test_linear_is_the_matrix_product_with_and_without_gradient(shape):
    layer, x = layers.Linear(7, 4), torch.randn(shape)
    expected = x @ layer.weight.T + layer.bias
    with torch.no_grad():
        out = layer(x)
        assert out.is_contiguous() and torch.allclose(out, expected, atol=1e-6)
        assert torch.allclose(layers.linear(x, layer.weight), expected - layer.bias, atol=1e-6)
        assert torch.allclose(layers.linear(x.double(), layer.weight.double()), (expected - layer.bias).double())
    grad = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
    assert torch.allclose(grad, x.reshape(-1, 7).sum(0).expand(4, -1), atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_per_frame_gives_each_frame_the_row_of_its_clip():
    clips = torch.tensor([10, 20])
    assert layers.per_frame(clips, 6, num_frames=3, name="t").tolist() == [10, 10, 10, 20, 20, 20]
    assert layers.per_frame(clips[:1], 6, num_frames=3, name="t").tolist() == [10]
    assert layers.per_frame(torch.arange(6), 6, num_frames=3, name="t").tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match=r"got 4 rows of t, expected 1, 2 \(one per clip\) or 6"):
        layers.per_frame(torch.arange(4), 6, num_frames=3, name="t")


def test_spade_is_the_norm_scaled_and_shifted_by_the_map():
    spade = randomised(layers.SPADE(32, 3))
    assert spade.mlp_shared[0].out_channels == 128 and spade.param_free_norm.affine
    x, cond = torch.randn(2, 32, 4, 5), torch.randn(2, 3, 4, 5)
    spade.mlp_gamma.weight.data.zero_()
    spade.mlp_beta.weight.data.zero_()
    gamma, beta = spade.mlp_gamma.bias[:, None, None], spade.mlp_beta.bias[:, None, None]
    assert torch.allclose(spade(x, cond), spade.param_free_norm(x) * (1 + gamma) + beta, atol=1e-6)


def test_a_fresh_residual_block_passes_its_input_on():
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(1, 16)
    assert torch.equal(layers.ResBlock(32, 16)(x, emb), x)
    wider = layers.ResBlock(32, 16, out_channels=64)
    assert torch.equal(wider(x, emb), wider.skip_connection(x))


def test_residual_block_with_condition_adds_spade_of_the_branch_to_the_skip():
    block = randomised(layers.ResBlock(32, 16, out_channels=64, cond_channels=3))
    x, emb, cond = torch.randn(2, 32, 4, 4), torch.randn(2, 16), torch.randn(2, 3, 4, 4)
    h = block.in_layers(x) + block.emb_layers(emb)[:, :, None, None]
    expected = block.skip_connection(x) + block.spade(block.out_layers(h), cond)
    assert torch.allclose(block(x, emb, cond), expected, atol=1e-5)
    order = [name.split(".")[0] for name in block.state_dict()]
    assert list(dict.fromkeys(order)) == ["in_layers", "emb_layers", "spade", "out_layers", "skip_connection"]


def test_time_embedding_of_one_row_serves_every_frame():
    block = randomised(layers.ResBlock(32, 16))
    x, emb = torch.randn(3, 32, 4, 4), torch.randn(1, 16)
    assert torch.allclose(block(x, emb), block(x, emb.expand(3, -1)), atol=1e-5)


def test_down_halves_rounding_up_and_up_doubles():
    down, up = layers.Downsample(4), layers.Upsample(4)
    assert down(torch.randn(1, 4, 5, 1)).shape == (1, 4, 3, 1)
    x = torch.randn(1, 4, 2, 3)
    nn.init.dirac_(up.conv.weight)
    nn.init.zeros_(up.conv.bias)
    assert torch.equal(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_down_path_counts_levels_and_channels():
    stem = nn.Conv2d(4, 8, 1)
    blocks, levels, channels = layers.down_path(
        stem, lambda width, out, level: nn.ModuleList([nn.Conv2d(width, out, 1)]), [8, 16, 16], num_res_blocks=2
    )
    assert levels == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert channels == [8, 8, 8, 8, 16, 16, 16, 16, 16]
    assert blocks[0][0] is stem
    assert [i for i, block in enumerate(blocks) if isinstance(block[0], layers.Downsample)] == [3, 6]
