import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.sequence_decoder import FuseBlock, ResidualDenseBlock, SequenceAutoencoder
from ldm.nets.temporal import conv_over_time

TINY = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def latents_and_features(vae, frames, h=4, w=3):
    x = torch.rand(frames, 3, h * vae.downsampling, w * vae.downsampling) * 2 - 1
    with torch.no_grad():
        _, features = vae.encode(x)
    return torch.randn(frames, 4, h, w), features


@torch.no_grad()
def test_without_mixing_and_fusion_it_is_the_image_decoder():
    image, video = AutoencoderKL(**TINY), SequenceAutoencoder(**TINY, temporal_alpha=0.0)
    found = video.load_state_dict(image.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all("temporal" in name or "fusion_layer" in name for name in found.missing_keys)
    z, x = torch.randn(3, 4, 4, 3), torch.rand(3, 3, 16, 12)
    torch.testing.assert_close(video.decode(z, None, num_frames=3, fusion_w=0), image.decode(z), atol=1e-5, rtol=1e-5)
    assert torch.equal(video.encode(x)[0], image.encode(x))


@torch.no_grad()
def test_clips_are_independent_but_frames_are_not():
    vae = SequenceAutoencoder(**TINY, temporal_alpha=0.5)
    z, features = latents_and_features(vae, 6)
    both = vae.decode(z, features, num_frames=3)
    for clip in (slice(0, 3), slice(3, 6)):
        alone = vae.decode(z[clip], [f[clip] for f in features], num_frames=3)
        torch.testing.assert_close(both[clip], alone, atol=1e-5, rtol=1e-5)
    singles = vae.decode(z, features, num_frames=1)
    assert (both - singles).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("ch_mult, fused", [([1], []), ([1, 2], [1]), ([1, 1, 2], [1, 2]), ([1, 2, 2, 1], [1, 2])])
def test_features_are_half_and_quarter_size_where_the_levels_exist(ch_mult, fused):
    vae = SequenceAutoencoder(ch=32, ch_mult=ch_mult, num_res_blocks=1, num_fuse_block=1)
    z, features = latents_and_features(vae, 2)
    scale = vae.downsampling
    assert [tuple(f.shape) for f in features] == [
        (2, 32 * ch_mult[level], 4 * scale // 2**level, 3 * scale // 2**level) for level in fused
    ]
    for weight in (0.0, 0.5):
        assert vae.decode(z, features, num_frames=2, fusion_w=weight).shape == (2, 3, 4 * scale, 3 * scale)


@torch.no_grad()
@pytest.mark.parametrize("ch_mult", [[1], [1, 2], [1, 1, 2], [1, 2, 2, 1]])
def test_features_alone_are_those_of_encode_and_cost_no_coarser_level(ch_mult):
    vae = SequenceAutoencoder(ch=32, ch_mult=ch_mult, num_res_blocks=1)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    _, expected = vae.encode(x)
    last = max(vae.decoder.fused_levels, default=-1)
    unused = [vae.encoder.mid.block_1.conv1, vae.encoder.conv_out, vae.quant_conv]
    unused += [stage.block[0].conv1 for stage in vae.encoder.down[last + 1 :]]
    for layer in unused:
        layer.forward = None  # calling it would raise
    actual = vae.features(x)
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@torch.no_grad()
def test_every_feature_reaches_the_image_unless_its_weight_is_zero():
    vae = SequenceAutoencoder(**TINY)
    z, features = latents_and_features(vae, 2)
    reference = vae.decode(z, features, num_frames=2)
    for k in range(2):
        changed = [f + 1.0 * (i == k) * torch.randn_like(f) for i, f in enumerate(features)]
        assert (vae.decode(z, changed, num_frames=2) - reference).abs().max() > 1e-4
        plain, other = (vae.decode(z, f, num_frames=2, fusion_w=0) for f in (features, changed))
        assert torch.equal(plain, other)


@torch.no_grad()
def test_the_correction_is_proportional_to_the_weight():
    block = FuseBlock(32, num_block=1)
    enc, dec = torch.randn(2, 1, 32, 4, 5)
    full = block(enc, dec, 1.0) - dec
    torch.testing.assert_close(block(enc, dec, 0.25) - dec, 0.25 * full, atol=1e-6, rtol=1e-5)
    assert block(enc, dec, 0) is dec
    assert full.abs().max() > 0


def test_dense_block_reads_all_earlier_results_oldest_first():
    block = ResidualDenseBlock(8, growth=4)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 5, 4)
    y1 = F.leaky_relu(block.conv1(x), 0.2)
    y2 = F.leaky_relu(block.conv2(torch.cat([x, y1], 1)), 0.2)
    y3 = F.leaky_relu(block.conv3(torch.cat([x, y1, y2], 1)), 0.2)
    y4 = F.leaky_relu(block.conv4(torch.cat([x, y1, y2, y3], 1)), 0.2)
    expected = x + 0.2 * block.conv5(torch.cat([x, y1, y2, y3, y4], 1))
    torch.testing.assert_close(block(x), expected)
    inputs = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block.double(), inputs)


def test_a_fresh_dense_block_is_close_to_the_identity():
    block = ResidualDenseBlock(32)
    assert all(conv.bias.abs().max() == 0 for conv in block.children())
    assert block.conv1.weight.std().item() == pytest.approx(0.1 * (2 / (9 * 32)) ** 0.5, rel=0.1)
    x = torch.randn(1, 32, 8, 8)
    assert (block(x) - x).abs().max() < 0.1


def test_version_2_keeps_the_places_and_has_two_dilated_convolutions():
    names = set(SequenceAutoencoder(**TINY, version=2).state_dict())
    first = {n for n in SequenceAutoencoder(**TINY).state_dict() if "temporal" not in n}
    assert first == {n for n in names if "temporal" not in n}
    layer = "decoder.up.1.temporal_mixing.1."
    assert {layer + "temporal_alpha", layer + "temporal_conv1.weight", layer + "temporal_conv2.bias"} <= names


def test_all_norms_have_32_groups_and_eps_1e_6():
    norms = [m for m in SequenceAutoencoder(**TINY).modules() if isinstance(m, nn.GroupNorm)]
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-6)}
    assert len(norms) == 12 + 18 + 8


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dilation", [1, 2])
def test_mixing_over_time_is_conv3d_in_every_layout_and_type(memory_format, dilation):
    conv = nn.Conv3d(3, 4, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1))
    x = torch.randn(2 * 4, 3, 2, 5).contiguous(memory_format=memory_format).requires_grad_()
    y = conv_over_time(x, conv, num_frames=4)
    expected = conv(x.unflatten(0, (2, 4)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    for actual, wanted in zip(*(torch.autograd.grad(v, (x, conv.weight), weight) for v in (y, expected)), strict=True):
        torch.testing.assert_close(actual, wanted)
    assert y.is_contiguous(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        half = conv_over_time(x, conv, num_frames=4)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_channels_last_and_half_precision_give_the_same_frames():
    vae = SequenceAutoencoder(**TINY)
    z, features = latents_and_features(vae, 2)
    reference = vae.decode(z, features, num_frames=2)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (z, *features)]
    torch.testing.assert_close(vae.decode(last[0], last[1:], num_frames=2), reference, atol=1e-5, rtol=1e-4)
    half = vae.to(torch.bfloat16).decode(z.bfloat16(), [f.bfloat16() for f in features], num_frames=2)
    assert (half.float() - reference).abs().max() < 0.05 * reference.abs().max()


def test_invalid_inputs_are_refused():
    vae = SequenceAutoencoder(**TINY)
    z, features = latents_and_features(vae, 3)
    with pytest.raises(ValueError, match="complete clips"):
        vae.decode(z, features, num_frames=2)
    with pytest.raises(ValueError, match="expected 2"):
        vae.decode(z, None, num_frames=3)
    with pytest.raises(ValueError, match="at level 2"):
        vae.decode(z, [features[0], features[1][..., 1:]], num_frames=3)
    with pytest.raises(ValueError, match="version=3"):
        SequenceAutoencoder(**TINY, version=3)
    with pytest.raises(ValueError, match="multiples of 4"):
        vae.encode(torch.zeros(1, 3, 6, 8))
