import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.nets.autoencoder import (
    AutoencoderKL,
    Posterior,
    ResnetBlock,
    VAEAttention,
    VAEDownsample,
    VAEUpsample,
    posterior,
)

TINY = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_logvar_is_clamped_and_the_sample_is_mean_plus_deviation_times_noise():
    moments = torch.tensor([1.0, -2.0, 3.0, -100.0, 0.0, 100.0]).reshape(1, 6, 1, 1)
    code = posterior(moments)
    assert code.mean.flatten().tolist() == [1, -2, 3]
    assert code.logvar.flatten().tolist() == [-30, 0, 20]
    eps = torch.tensor([0.0, 1.5, -1.0]).reshape(1, 3, 1, 1)
    expected = [1.0, -0.5, 3 - torch.exp(torch.tensor(10.0)).item()]
    torch.testing.assert_close(code.sample(eps).flatten(), torch.tensor(expected))
    assert isinstance(AutoencoderKL.posterior(moments), Posterior)


@pytest.mark.parametrize("ch_mult", [[1], [1, 2], [1, 1, 2], [1, 2, 2, 1]])
def test_sizes_follow_the_number_of_levels(ch_mult):
    vae = AutoencoderKL(ch=32, ch_mult=ch_mult, num_res_blocks=1, z_channels=3, embed_dim=2)
    factor = vae.downsampling
    assert factor == 2 ** (len(ch_mult) - 1)
    x = torch.rand(2, 3, 3 * factor, 2 * factor) * 2 - 1
    moments = vae.encode(x)
    assert moments.shape == (2, 4, 3, 2)
    assert vae.decode(posterior(moments).mean).shape == x.shape


def test_all_norms_have_32_groups_and_eps_1e_6():
    norms = [m for m in AutoencoderKL(**TINY).modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 12 + 18
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-6)}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_is_softmax_attention_and_runs_in_a_kernel_without_the_full_matrix(memory_format):
    block = VAEAttention(32)
    x = torch.randn(2, 32, 5, 7)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where only the plain form would do
        actual = block(x.contiguous(memory_format=memory_format))
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (block.q, block.k, block.v))
    weights = torch.softmax(torch.einsum("nci,ncj->nij", q, k) / 32**0.5, dim=-1)
    h = torch.einsum("nij,ncj->nci", weights, v).reshape(x.shape)
    torch.testing.assert_close(actual, x + block.proj_out(h), atol=1e-5, rtol=1e-5)


def test_downsampling_pads_right_and_below_only():
    down = VAEDownsample(1)
    nn.init.ones_(down.conv.weight)
    nn.init.zeros_(down.conv.bias)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    first, last = x[..., :3, :3].sum(), x[..., 2:, 2:].sum()
    y = down(x)
    assert y.shape == (1, 1, 2, 2)
    assert (y[0, 0, 0, 0], y[0, 0, 1, 1]) == (first, last)


def test_upsampling_repeats_pixels_before_its_convolution():
    up = VAEUpsample(1)
    nn.init.dirac_(up.conv.weight)
    nn.init.zeros_(up.conv.bias)
    x = torch.randn(1, 1, 3, 2)
    assert torch.equal(up(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_upsampling_equals_the_convolution_of_the_enlarged_map():
    up, x = VAEUpsample(8), torch.randn(2, 8, 5, 3)
    enlarged = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), up.conv(enlarged), atol=1e-6, rtol=1e-5)
    assert torch.autograd.gradcheck(VAEUpsample(2).double(), torch.randn(1, 2, 2, 3).double().requires_grad_())


@pytest.mark.parametrize("block", [ResnetBlock(32, 32), ResnetBlock(64, 32), VAEAttention(32)])
def test_gradients_survive_the_operations_in_place(block):
    block = block.double()
    x = torch.randn(1, block.norm1.num_channels if hasattr(block, "norm1") else 32, 2, 1, dtype=torch.float64)
    assert torch.autograd.gradcheck(block, x.requires_grad_())


def test_the_input_of_a_block_is_not_overwritten():
    block, x = ResnetBlock(32, 32), torch.randn(1, 32, 4, 4)
    before = x.clone()
    with torch.no_grad():
        block(x)
        VAEAttention(32)(x)
    assert torch.equal(x, before)


def test_attention_sits_at_the_listed_resolutions():
    vae = AutoencoderKL(**TINY, attn_resolutions=[8], resolution=16)
    assert [len(level.attn) for level in vae.encoder.down] == [0, 1, 0]
    assert [len(level.attn) for level in vae.decoder.up] == [0, 2, 0]
    assert "decoder.up.1.attn.1.proj_out.weight" in vae.state_dict()
    x = torch.rand(1, 3, 8, 8)
    assert vae.decode(posterior(vae.encode(x)).mean).shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("block", [ResnetBlock(32, 64), VAEAttention(32), VAEDownsample(32), VAEUpsample(32)])
def test_blocks_keep_the_memory_format(block, memory_format):
    y = block(torch.randn(2, 32, 6, 4).contiguous(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)


@torch.no_grad()
def test_channels_last_and_half_precision_give_the_same_images():
    vae = AutoencoderKL(**TINY).eval()
    z = torch.randn(1, 4, 6, 4)
    reference = vae.decode(z)
    torch.testing.assert_close(vae.to(memory_format=torch.channels_last).decode(z), reference, atol=1e-5, rtol=1e-4)
    half = vae.to(torch.bfloat16).decode(z.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - reference).abs().max() < 0.05 * reference.abs().max()


@torch.no_grad()
def test_sides_of_any_length_are_encoded_as_by_diffusers():
    """Each strided convolution takes one zero row below: of 11 rows it makes 5, and 2; the last is read, 12 makes 3."""
    vae, x = AutoencoderKL(**TINY).eval(), torch.randn(1, 3, 11, 12, generator=torch.Generator().manual_seed(0))
    moments = vae.encode(x)
    assert moments.shape == (1, 8, 2, 3)
    x[..., -1, :] = 0
    assert not torch.equal(vae.encode(x), moments)


def test_invalid_inputs_are_refused():
    vae = AutoencoderKL(**TINY)
    with pytest.raises(ValueError, match="images of 8x3 pixels, expected 4 a side"):
        vae.encode(torch.zeros(1, 3, 8, 3))
    with pytest.raises(ValueError, match="flatten clips"):
        vae.encode(torch.zeros(1, 2, 3, 8, 8))
    with pytest.raises(ValueError, match="double_z"):
        AutoencoderKL(**TINY, double_z=False)
