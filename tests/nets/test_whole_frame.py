import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.nets import whole_frame
from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.frame_norms import FrameNorms
from ldm.nets.layers import channels_last
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.nets.steps import decoder_steps, encoder_steps, reach_of
from ldm.nets.whole_frame import Cut, decode_frames, encode_frames
from ldm.ops.tiling import patches
from tests.marks import mostly_slow

TINY = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "norm_groups": 8}
TILE = 24  # two tiles, one above the other
LEVEL_1 = 5 * 32 * 54 * 24 * 4  # bytes of all maps of the middle level
EXACT = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def lively(net: nn.Module) -> nn.Module:
    """Randomise norms and temporal layers, so that they have an effect."""
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
    return net.eval()


def sequence(version: int = 1, **settings) -> SequenceAutoencoder:
    return lively(SequenceAutoencoder(**TINY, version=version, num_fuse_block=1, temporal_alpha=0.3, **settings))


def uneven(frames: int, size=(27, 12), f: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and frames whose mean and contrast vary across the frame."""
    ramp = torch.linspace(0.2, 1.5, size[1])
    x = (torch.rand(frames, 3, size[0] * f, size[1] * f) * 2 - 1) * ramp.repeat_interleave(f)
    return torch.randn(frames, 4, *size) * ramp.flip(0) + ramp, x


@mostly_slow("hold", [LEVEL_1, 0, whole_frame.HOLD])
@mostly_slow("version", [1, 2])
def test_five_frames_decode_as_the_untiled_network_does(version, hold):
    net, (z, x) = sequence(version), uneven(5)
    expected = net.decode(z, net.features(x), num_frames=5)
    actual = decode_frames(net, z, x, cut=Cut(TILE, hold=hold), num_frames=5)
    torch.testing.assert_close(actual, expected, **EXACT)
    assert expected.std() > 0.1


@mostly_slow("hold", [LEVEL_1 // 5, 0, whole_frame.HOLD])
@pytest.mark.parametrize("net", [AutoencoderKL, SequenceAutoencoder])
def test_images_encode_and_decode_as_the_untiled_network_does(net, hold):
    net, (z, x) = lively(net(**TINY)), uneven(2, (23, 24))
    moments = net.encode(x) if isinstance(net, AutoencoderKL) else net.encode(x)[0]
    torch.testing.assert_close(encode_frames(net, x, Cut(14, hold=hold)), moments, **EXACT)
    image = net.decode(z) if isinstance(net, AutoencoderKL) else net.decode(z, None, num_frames=2, fusion_w=0)
    actual = decode_frames(net, z, cut=Cut(14, hold=hold), num_frames=2, fusion_w=0)
    torch.testing.assert_close(actual, image, **EXACT)


@mostly_slow("hold", [whole_frame.HOLD, 0])
def test_attention_outside_the_middle_is_exact_too(hold):
    net = lively(SequenceAutoencoder(**TINY, num_fuse_block=1, attn_resolutions=[8], resolution=16))
    z, x = uneven(2)
    assert len(net.decoder.up[1].attn) == 2
    expected = net.decode(z, net.features(x), num_frames=2)
    actual = decode_frames(net, z, x, cut=Cut(TILE, hold=hold), num_frames=2)
    torch.testing.assert_close(actual, expected, **EXACT)


@mostly_slow("ch_mult", [[1, 2], [1], [1, 1, 1, 1]])
def test_any_number_of_levels(ch_mult):
    net = lively(SequenceAutoencoder(ch=32, ch_mult=ch_mult, num_res_blocks=1, num_fuse_block=1, norm_groups=8))
    z, x = uneven(4, (18, 9), net.downsampling)
    moments, features = net.encode(x)
    torch.testing.assert_close(encode_frames(net, x, Cut(12)), moments, **EXACT)
    expected = net.decode(z, features, num_frames=2, fusion_w=0.5)  # two clips
    torch.testing.assert_close(decode_frames(net, z, x, cut=Cut(12), num_frames=2, fusion_w=0.5), expected, **EXACT)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({"norms": "shared"}, 3.0), ({"norms": "tile"}, 3.0), ({"attention": 12}, 1.0)],
)
def test_approximate_modes_are_close(settings, limit):
    net, (z, x) = sequence(), uneven(2)
    moments, features = net.encode(x)
    expected = net.decode(z, features, num_frames=2)
    errors = []
    for found, wanted in (
        (encode_frames(net, x, Cut(TILE, hold=0, **settings)), moments),
        (decode_frames(net, z, x, cut=Cut(TILE, hold=0, **settings), num_frames=2), expected),
    ):
        error = (found - wanted).abs()
        errors.append(error.max())
        print(f"{settings}: mean error {error.mean():.4f}, largest {error.max():.4f}, deviation {wanted.std():.4f}")
    assert 1e-4 < max(errors) < limit


@pytest.mark.slow
def test_half_precision_and_channels_last():
    net, (z, x) = channels_last(sequence()), uneven(2)
    with torch.autocast("cpu", torch.bfloat16):
        exact = net.decode(z, net.features(x), num_frames=2)
        tiled = decode_frames(net, z, x, cut=Cut(TILE, hold=0), num_frames=2)
        held = decode_frames(net, z, x, cut=Cut(TILE), num_frames=2)
    reference = net.decode(z, net.features(x), num_frames=2)
    rounding = (exact.float() - reference).abs().max()
    for found in (tiled, held):
        assert found.dtype == torch.bfloat16
        assert (found.float() - reference).abs().max() < 2 * rounding
    assert (decode_frames(net, z, x, cut=Cut(TILE), num_frames=2) - reference).abs().max() < 1e-4


def test_no_convolution_reads_more_than_a_tile_of_its_level():
    net, (z, x) = sequence(), uneven(2)
    seen = {}

    def note(level):
        return lambda layer, args: seen.setdefault(level, set()).add(args[0].shape[-2:])

    for level, stage in enumerate(net.decoder.up):
        stage.block[0].conv1.register_forward_pre_hook(note(level))
    for level, stage in enumerate(net.encoder.down):
        stage.block[0].conv1.register_forward_pre_hook(note(level))
    decode_frames(net, z, x, cut=Cut(TILE, hold=0), num_frames=2)
    for level, sizes in seen.items():
        assert max(max(size) for size in sizes) <= TILE * 4 // 2**level


def test_with_maps_held_nothing_is_computed_twice():
    net, (z, x) = sequence(), uneven(2)
    with FlopCounterMode(display=False) as whole:
        net.decode(z, net.features(x), num_frames=2)
    with FlopCounterMode(display=False) as tiled:
        decode_frames(net, z, x, cut=Cut(TILE), num_frames=2)
    assert tiled.get_total_flops() < 1.2 * whole.get_total_flops()  # halos


def test_the_order_of_tiles_does_not_matter(monkeypatch):
    net, (z, _) = lively(AutoencoderKL(**TINY)), uneven(1)
    expected = decode_frames(net, z, cut=Cut(14, hold=0))
    assert torch.equal(decode_frames(net, z, cut=Cut(14, hold=0)), expected)
    monkeypatch.setattr(whole_frame, "patches", lambda *args, **kw: patches(*args, **kw)[::-1])
    torch.testing.assert_close(decode_frames(net, z, cut=Cut(14, hold=0)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_norm_computed_in_tiles_equals_that_of_the_whole_map(offset):
    net = lively(nn.Sequential(nn.GroupNorm(4, 8)))
    x = torch.randn(2, 8, 20, 30) + offset
    norms, grid = FrameNorms(net), patches((20, 30), tile=12, halo=3)
    with norms.installed():
        run = norms.piecewise(net, [0, 1], wait=True)
        assert all(run(patch.of(x, (20, 30)), patch) is None for patch in grid)
        assert norms.settle() and not norms.settle()
        for patch in grid:
            found = patch.core_of(run(patch.of(x, (20, 30)), patch))
            wanted = patch.place_in(nn.functional.group_norm(x, 4, net[0].weight, net[0].bias), (20, 30))
            torch.testing.assert_close(found, wanted, atol=2e-6 * (1 + offset), rtol=1e-5)
    assert "forward" not in vars(net[0])


@mostly_slow("ch_mult", [[1], [1, 1, 2], [1, 1, 1, 1]])
def test_the_halo_equals_the_receptive_field(ch_mult):
    net = AutoencoderKL(ch=32, ch_mult=ch_mult, num_res_blocks=1).double()
    for part in (net.encoder, net.decoder):
        part.mid.attn_1 = nn.Identity()
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    z = torch.randn(1, 4, 41, 41, dtype=torch.float64)
    reach = reach_of(list(decoder_steps(net, {}, 0)))
    nudged = z.clone()
    nudged[..., 20, 20] += 1
    rows = (net.decode(nudged) - net.decode(z)).abs().sum((0, 1, 3)).nonzero() // net.downsampling
    assert 20 - reach <= rows.min() <= 20 - reach + 1 and 20 + reach - 1 <= rows.max() <= 20 + reach
    x = torch.randn(1, 3, 41 * net.downsampling, 41 * net.downsampling, dtype=torch.float64)
    nudged = x.clone()
    nudged[..., 20 * net.downsampling, 20 * net.downsampling] += 1
    rows = (net.encode(nudged) - net.encode(x)).abs().sum((0, 1, 3)).nonzero()
    reach = math.ceil(reach_of(list(encoder_steps(net))) / net.downsampling)
    assert reach - 1 <= (rows - 20).abs().max() <= reach


def test_the_levels_of_consecutive_steps_match():
    net = sequence()
    source = {level: (lambda *state: (state, None), 0) for level in (1, 2)}
    for steps in (list(encoder_steps(net)), list(decoder_steps(net, source, 1.0))):
        assert all(a.level == b.source for a, b in pairwise(steps))


def test_what_does_not_fit_is_named():
    net, (z, x) = sequence(), uneven(2)
    with pytest.raises(ValueError, match=r"tile=12 for a halo of 10 latent pixels a side, expected at least 21"):
        decode_frames(net, z, x, cut=Cut(12, hold=0), num_frames=2)
    with pytest.raises(ValueError, match="got lq None"):
        decode_frames(net, z, cut=Cut(TILE), num_frames=2)
    with pytest.raises(ValueError, match=r"expected \(2, 3, 108, 48\)"):
        decode_frames(net, z, x[..., 4:], cut=Cut(TILE), num_frames=2)
    with pytest.raises(ValueError, match="complete clips"):
        decode_frames(net, z, x, cut=Cut(TILE), num_frames=3)
    with pytest.raises(ValueError, match="multiples of 4"):
        encode_frames(net, x[..., 1:], Cut(TILE))
    with pytest.raises(ValueError, match="frame, shared, tile"):
        Cut(TILE, norms="exact")
    with pytest.raises(ValueError, match="tile=0"):
        Cut(0)
    z[0, 0, 20, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="rows 14..26, columns"):
        decode_frames(net, z, x, cut=Cut(TILE), num_frames=2)
    assert not any("forward" in vars(module) for module in net.modules())
