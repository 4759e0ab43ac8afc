"""The linear path of the autoencoders, pixel blocks, and both inside the networks."""

import pytest
import torch
from torch import nn

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.linear_path import LinearPath, from_blocks, to_blocks
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.nets.whole_frame import Cut, decode_frames, encode_frames

SMALL = {
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "z_channels": 5,
    "embed_dim": 5,
    "norm_groups": 8,
    "middle_attention": False,
    "patch": 2,
    "linear": True,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shaken(net: nn.Module) -> nn.Module:
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.08)
    return net.eval()


def pictures(count: int = 3, *, height: int = 32, width: int = 40) -> torch.Tensor:
    """Smooth random pictures in [-1, 1]."""
    coarse = torch.randn(count, 3, height // 4, width // 4)
    return nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).tanh()


def test_blocks_and_back():
    x = torch.randn(2, 3, 6, 8)
    assert to_blocks(x, 1) is x
    assert to_blocks(x, 2).shape == (2, 12, 3, 4)
    assert torch.equal(from_blocks(to_blocks(x, 2), 2), x)


def test_a_fitted_path_is_the_principal_components_with_unit_variance():
    x, path = pictures(12), LinearPath(3, 6, scale=4)
    path.fit(x)
    z = path.analyse(x)
    flat = z.movedim(1, -1).reshape(-1, 6)
    assert torch.allclose(flat.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.allclose(torch.cov(flat.t()), torch.eye(6), atol=1e-3)
    blocks = nn.functional.pixel_unshuffle(x, 4).movedim(1, -1).reshape(-1, 48)
    centred = blocks - blocks.mean(0)
    left = torch.linalg.svdvals(centred.double())[6:].square().sum() / blocks.numel()  # Eckart and Young 1936
    error = (path.synthesise(z) - x).square().mean()
    assert error.item() == pytest.approx(left.item(), rel=1e-3)


def test_the_power_keeps_the_components_and_changes_their_scale():
    x, flat, own = pictures(12), LinearPath(3, 6, scale=4), LinearPath(3, 6, scale=4)
    flat.fit(x)
    own.fit(x, power=1.0)
    z, wanted = own.analyse(x), flat.analyse(x)
    deviations = z.std((0, 2, 3))
    assert z.var((0, 2, 3)).mean().item() == pytest.approx(1, rel=1e-2)
    assert torch.allclose(z / deviations[:, None, None], wanted, atol=1e-2)
    assert torch.allclose(own.synthesise(z), flat.synthesise(wanted), atol=1e-4)
    norms = own.from_latent.weight[:, :, 1, 1].norm(dim=0)
    assert torch.allclose(norms, norms.mean().expand(6), rtol=1e-3)


def test_a_path_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="scale 3, expected an even one"):
        LinearPath(3, 4, scale=3)
    with pytest.raises(ValueError, match="got 4 blocks to fit 48 numbers"):
        LinearPath(3, 4, scale=4).fit(torch.zeros(1, 3, 8, 8))


def test_a_fresh_autoencoder_is_its_linear_path():
    x, net = pictures(8), AutoencoderKL(**SMALL)
    net.fit_linear(x)
    code = net.posterior(net.encode(x))
    assert torch.equal(code.mean, net.linear.analyse(to_blocks(x, 2)))
    assert not [name for name in net.state_dict() if name.startswith(("encoder", "quant_conv"))]
    assert torch.allclose(code.logvar, torch.full_like(code.logvar, -7.0))
    assert torch.equal(net.decode(code.mean), from_blocks(net.linear.synthesise(code.mean), 2))


def test_latents_have_the_sides_that_downsampling_says():
    net = AutoencoderKL(**SMALL)
    assert net.downsampling == 4
    assert net.encode(torch.zeros(1, 3, 24, 16)).shape == (1, 10, 6, 4)
    with pytest.raises(ValueError, match="multiples of 4"):
        net.encode(torch.zeros(1, 3, 24, 18))


@pytest.mark.parametrize("cut", [Cut(96), Cut(14, hold=0)])
def test_tiles_give_what_whole_frames_give(cut):
    x, image = pictures(2, height=128, width=64), shaken(AutoencoderKL(**SMALL))
    sequence = shaken(SequenceAutoencoder(**SMALL, num_fuse_block=1))
    with torch.no_grad():
        moments = image.encode(x)
        z = moments[:, :5]
        decoded = image.decode(z)
        clip = sequence.decode(z, sequence.features(x), num_frames=2)
    assert torch.allclose(encode_frames(image, x, cut), moments, atol=1e-5)
    assert torch.allclose(decode_frames(image, z, cut=cut), decoded, atol=1e-5)
    assert torch.allclose(decode_frames(sequence, z, x, cut=cut, num_frames=2), clip, atol=1e-5)


def test_the_published_networks_know_nothing_of_it():
    small = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1}
    for net in (AutoencoderKL(**small), SequenceAutoencoder(**small)):
        assert not [name for name in net.state_dict() if "linear" in name]
        assert any("attn_1" in name for name in net.state_dict())
