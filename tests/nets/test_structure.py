import pytest
import torch
from torch import nn

from ldm.nets.layers import GroupNorm
from ldm.nets.structure import StructureEncoder
from tests.golden_checks.case import FOLDER, Case


def tiny(**settings) -> StructureEncoder:
    torch.manual_seed(0)
    # 64 channels: with one channel per group the norms would swallow the time embedding
    plan = {"model_channels": 64, "out_channels": 64, "num_res_blocks": 1, "channel_mult": (1, 1, 2)}
    net = StructureEncoder(**plan | settings)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net.eval()


def test_full_size_has_the_released_parameters():
    with torch.device("meta"):
        net = StructureEncoder()
    assert sum(p.numel() for p in net.parameters()) == 52_494_080
    assert len(net.state_dict()) == 200


@pytest.mark.skipif(not (FOLDER / "j_stage1_keys.json.gz").exists(), reason="the recorded names are not there")
def test_full_size_has_the_released_names_in_order():
    with torch.device("meta"):
        net = StructureEncoder()
    prefix = "structcond_stage_model."
    entries = Case.read(FOLDER, "j_stage1_keys").meta["entries"]
    expected = {name.removeprefix(prefix): shape for name, shape, *_ in entries if name.startswith(prefix)}
    assert list(expected.items()) == [(name, list(value.shape)) for name, value in net.state_dict().items()]


def test_every_norm_has_32_groups_and_eps_1e_5():
    norms = [m for m in tiny().modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(isinstance(m, GroupNorm) for m in norms)
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-5)}


def test_width_that_32_does_not_divide_gets_one_group_per_channel_in_the_last_norm():
    net = tiny(out_channels=24)
    assert {(head.in_layers[0].num_groups, head.out_layers[0].num_groups) for head in net.fea_tran} == {(32, 24)}
    assert [m.shape[1] for m in net(torch.randn(1, 4, 8, 8), torch.tensor([5]))] == [24, 24, 24]


def test_one_map_per_level_finest_first_any_size():
    maps = tiny()(torch.randn(2, 4, 10, 7), torch.tensor([3]))
    assert [tuple(m.shape) for m in maps] == [(2, 64, 10, 7), (2, 64, 5, 4), (2, 64, 3, 2)]


def test_levels_of_equal_width_are_separate():
    maps = tiny()(torch.randn(1, 4, 8, 1), torch.tensor([3]))
    assert [tuple(m.shape[2:]) for m in maps] == [(8, 1), (4, 1), (2, 1)]
    maps = tiny()(torch.randn(1, 4, 1, 1), torch.tensor([3]))
    assert [tuple(m.shape[2:]) for m in maps] == [(1, 1), (1, 1), (1, 1)]
    assert not torch.allclose(maps[0], maps[1]) and not torch.allclose(maps[1], maps[2])


def test_a_single_level_is_the_middle_alone():
    assert len(tiny(channel_mult=(1,))(torch.randn(1, 4, 3, 5), torch.tensor([3]))) == 1


def test_frames_are_independent_and_have_their_own_time_steps():
    net, x = tiny(), torch.randn(6, 4, 8, 4)
    per_frame = net(x, torch.tensor([7, 7, 7, 900, 900, 900]))
    per_clip = net(x, torch.tensor([7, 900]), num_frames=3)
    for level in range(3):
        assert torch.allclose(per_frame[level], per_clip[level], atol=1e-4)
        for rows, t in ((slice(0, 3), 7), (slice(3, 6), 900)):
            assert torch.allclose(per_frame[level][rows], net(x[rows], torch.tensor([t]))[level], atol=1e-4)
    assert not torch.allclose(per_frame[0][:3], net(x[:3], torch.tensor([900]))[0], atol=1e-2)
    with pytest.raises(ValueError, match="got 4 rows of time steps"):
        net(x, torch.arange(4), num_frames=3)


def test_half_precision_weights_give_maps_in_the_dtype_of_the_latents():
    net, x, t = tiny(), torch.randn(2, 4, 8, 8), torch.tensor([500])
    exact = net(x, t)
    for half, whole in zip(net.bfloat16()(x, t), exact, strict=True):
        assert half.dtype == torch.float32
        assert (half - whole).norm() < 0.05 * whole.norm()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="got num_heads=5 for 64 channels"):
        tiny(num_heads=5)
