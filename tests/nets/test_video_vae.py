import pytest
import torch
from torch import nn

from ldm.nets.clip_layers import ClipGroupNorm
from ldm.nets.video_vae import AutoencoderKLVideo

TOY = {"block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}


def shaken(**arguments):
    torch.manual_seed(0)
    net = AutoencoderKLVideo(**TOY | arguments).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.0, 0.15)
    return net


@torch.no_grad()
def test_sizes_and_the_chunk():
    vae = shaken()
    clip = torch.randn(2, 3, 3, 8, 12)
    moments = vae.encode(clip)
    assert moments.shape == (2, 3, 8, 2, 3) and vae.encode(clip[..., :11]).shape == (2, 3, 8, 2, 2)
    z = torch.randn(2, 3, 4, 2, 3)
    whole = vae.decode(z)
    assert whole.shape == (2, 3, 3, 8, 12)
    assert (whole[:, :1] - vae.decode(z[:, :1])).abs().max() > 1e-3  # norms run over the chunk
    torch.testing.assert_close(whole[1:], vae.decode(z[1:]), rtol=1e-4, atol=1e-5)  # but not over clips


@torch.no_grad()
def test_half_precision_is_near():
    vae, z = shaken(), torch.randn(1, 2, 4, 3, 2)
    exact, half = vae.decode(z), vae.bfloat16().decode(z.bfloat16())
    assert half.dtype == torch.bfloat16 and (half - exact).abs().max() < 0.1 * exact.abs().max()


@torch.no_grad()
def test_the_condition_counts_by_its_weight():
    vae = shaken(condition_channels=32, block_out_channels=(8, 16, 32))
    z, low = torch.randn(1, 2, 4, 3, 2), torch.randn(1, 2, 3, 3, 2)
    full, none = vae.decode(z, low), vae.decode(z, low, weight=0.0)
    assert (full - none).abs().max() > 1e-3
    torch.testing.assert_close(none, vae.decode(z, torch.zeros_like(low), weight=0.0))


@torch.no_grad()
def test_without_a_condition_path_the_frames_are_ignored():
    vae, z = shaken(), torch.randn(1, 2, 4, 3, 2)
    assert torch.equal(vae.decode(z, torch.randn(1, 2, 3, 3, 2)), vae.decode(z))


def test_norms_have_their_own_groups_and_eps():
    vae = AutoencoderKLVideo(block_out_channels=(32, 32), norm_num_groups=8, condition_channels=64)
    for name, module in vae.named_modules():
        if isinstance(module, nn.GroupNorm):
            groups = 8
            if "condition" in name:
                groups = 3 if name.endswith("condition_in.0.norm1") else 32
            assert (module.num_groups, module.eps) == (groups, 1e-6), name
            assert isinstance(module, ClipGroupNorm) != name.endswith("group_norm")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: vae.encode(torch.zeros(1, 1, 3, 3, 8)), "images of 3x8 pixels, expected 4 a side"),
        (lambda vae: vae.encode(torch.zeros(1, 3, 8, 8)), "expected \\(B, T, 3, H, W\\)"),
        (lambda vae: vae.decode(torch.zeros(1, 4, 3, 2)), "expected \\(B, T, C, h, w\\)"),
        (lambda vae: vae.decode(torch.zeros(1, 2, 4, 3, 2)), "got low-resolution frames None"),
        (lambda vae: vae.decode(torch.zeros(1, 2, 4, 3, 2), torch.zeros(1, 2, 3, 3, 3)), "expected one size"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(shaken(condition_channels=32, block_out_channels=(8, 16, 32)))
