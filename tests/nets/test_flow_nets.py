import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldm.nets.raft import RAFT, convex_upsample, correlation_by_volume, correlation_on_demand
from ldm.nets.spynet import SpyNet


def seeded(net: nn.Module, seed: int = 0) -> nn.Module:
    """Small random weights, so that the refinement stays within a few pixels."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 100
            p.copy_(torch.randn(p.shape, generator=g) / fan_in**0.5)
    return net


def images(n=1, h=72, w=80, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 3, h, w, generator=g) for _ in range(2)]


@pytest.fixture(scope="module")
def small():
    return seeded(RAFT("small", iterations=2))


@pytest.fixture(scope="module")
def spynet():
    return seeded(SpyNet())


# The names below are those of the released files (flownet_model.* and loss.flownet.*, prefixes removed).


def test_raft_has_the_released_names_and_its_alias():
    with torch.device("meta"):
        net = RAFT()
    state, parameters = net.state_dict(), dict(net.named_parameters())
    assert len(state) == 179 and sum(p.numel() for p in parameters.values()) == 5257536
    buffers = dict(net.named_buffers(remove_duplicate=False))
    aliases = [k for k in state if k not in parameters and k not in buffers]
    assert len(buffers) == 51
    assert aliases == [f"cnet.layer{k}.0.downsample.1.{leaf}" for k in (2, 3) for leaf in ("weight", "bias")]
    assert net.cnet.layer2[0].norm3 is net.cnet.layer2[0].downsample[1]
    expected = {
        "fnet.conv1.weight": (64, 3, 7, 7),
        "fnet.layer2.0.downsample.0.weight": (96, 64, 1, 1),
        "cnet.norm1.running_var": (64,),
        "cnet.layer3.0.norm3.num_batches_tracked": (),
        "update_block.encoder.convc1.weight": (256, 324, 1, 1),
        "update_block.encoder.conv.weight": (126, 256, 3, 3),
        "update_block.gru.convz1.weight": (128, 384, 1, 5),
        "update_block.gru.convq2.weight": (128, 384, 5, 1),
        "update_block.flow_head.conv2.weight": (2, 256, 3, 3),
        "update_block.mask.2.weight": (576, 256, 1, 1),
    }
    assert {k: tuple(state[k].shape) for k in expected} == expected


def test_small_raft_and_spynet_have_the_released_names():
    with torch.device("meta"):
        small, spynet = RAFT("small"), SpyNet()
    assert sum(p.numel() for p in small.parameters()) == 990162
    assert tuple(small.state_dict()["update_block.gru.convz.weight"].shape) == (96, 242, 3, 3)
    assert not [k for k in small.state_dict() if "norm" in k or "mask" in k]
    assert sum(p.numel() for p in spynet.parameters()) == 1440300
    shapes = {0: (32, 8), 2: (64, 32), 4: (32, 64), 6: (16, 32), 8: (2, 16)}
    expected = {"mean": (1, 3, 1, 1), "std": (1, 3, 1, 1)}
    for level in range(6):
        for k, (after, before) in shapes.items():
            name = f"basic_module.{level}.basic_module.{k}"
            expected |= {f"{name}.weight": (after, before, 7, 7), f"{name}.bias": (after,)}
    assert {k: tuple(v.shape) for k, v in spynet.state_dict().items()} == expected
    assert set(spynet.constant_buffers) <= set(expected)


@pytest.mark.parametrize("size", [(64, 64), (71, 83), (130, 57), (17, 40), (3, 5), (1, 1)])
def test_raft_takes_any_size(small, size):
    a, b = images(2, *size)
    with torch.no_grad():
        flow = small(a, b)
    assert flow.shape == (2, 2, *size) and torch.isfinite(flow).all()


@pytest.mark.parametrize("size", [(64, 64), (33, 95), (32, 32), (5, 40), (1, 1)])
def test_spynet_takes_any_size(spynet, size):
    a, b = images(2, *size)
    with torch.no_grad():
        flow = spynet(a, b)
    assert flow.shape == (2, 2, *size) and torch.isfinite(flow).all()


def test_raft_pads_by_replication_around_the_image(small):
    a, b = images(1, 67, 77)
    # 5 rows missing: 2 above, 3 below; 3 columns missing: 1 left, 2 right
    padded = [F.pad(x, (1, 2, 2, 3), mode="replicate") for x in (a, b)]
    with torch.no_grad():
        assert torch.equal(small(a, b), small(*padded)[..., 2:69, 1:78])


def test_rows_of_a_batch_are_independent(small, spynet):
    a, b = images(3)
    for net in (small, spynet):
        with torch.no_grad():
            torch.testing.assert_close(net(a, b)[1:2], net(a[1:2], b[1:2]), atol=1e-4, rtol=0)


def test_scaling_is_the_mapping_to_the_trained_range(small):
    a, b = images()
    released = RAFT("small", iterations=2, scaling="released")
    released.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(small(a, b), released(2 * a - 1, 2 * b - 1))
        assert (small(a, b) - released(a, b)).abs().max() > 1e-3


def test_iterations_can_be_given_with_the_call(small):
    a, b = images()
    with torch.no_grad():
        assert torch.equal(small(a, b), small(a, b, iterations=2))
        assert not torch.equal(small(a, b), small(a, b, iterations=3))


def test_refinement_starts_from_the_flow_that_is_given(small):
    a, b = images(2, 67, 77)
    with torch.no_grad():
        plain = small(a, b)
        assert torch.equal(small(a, b, flow_init=torch.zeros(2, 2, 9, 10)), plain)
        start = torch.full((2, 2, 9, 10), 3.0)
        moved = small(a, b, flow_init=start)
        net = seeded(RAFT("small", iterations=1))
        for p in net.update_block.flow_head.parameters():
            p.zero_()
        kept = net(a, b, flow_init=start)  # in pixels of a grid eight times as coarse
        torch.testing.assert_close(kept, torch.full_like(kept, 24.0))
    assert (moved - plain).abs().max() > 1
    with pytest.raises(ValueError, match=r"flow_init of shape \(2, 2, 8, 10\), expected \(2, 2, 9, 10\)"):
        small(a, b, flow_init=torch.zeros(2, 2, 8, 10))


def test_released_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    trained, released = RAFT(iterations=1), RAFT(iterations=1, statistics="released")
    for net in (trained, released):
        seeded(net)
        for name, value in net.named_buffers():
            if name.endswith("running_mean"):
                value.fill_(0.3)
    a, b = images(1, 64, 64)
    before = released.cnet.norm1.running_mean.clone()
    with torch.no_grad():
        one, other = released(a, b), trained(a, b)
        trained.cnet.norm1.running_mean.fill_(0.6)
        released.cnet.norm1.running_mean.fill_(0.6)
        assert not torch.equal(trained(a, b), other) and torch.equal(released(a, b), one)
        released.volume_limit = 1
        assert released(torch.cat([a, b]), torch.cat([b, a])).shape == (2, 2, 64, 64)
    assert not torch.equal(one, other) and before[0] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="statistics 'batch'"):
        RAFT(statistics="batch")


@pytest.mark.parametrize("radius", [3, 4])
def test_correlation_is_the_same_with_and_without_the_volume(radius, monkeypatch):
    g = torch.Generator().manual_seed(radius)
    a, b = (torch.randn(2, 16, 9, 13, generator=g) for _ in range(2))
    positions = torch.rand(2, 2, 9, 13, generator=g) * 20 - 4  # some outside
    by_volume = correlation_by_volume(a, b, radius=radius)(positions)
    monkeypatch.setattr("ldm.nets.raft._CHUNK", 2 * 16 * (2 * radius + 1) ** 2 * 10)  # ten pixels at a time
    torch.testing.assert_close(correlation_on_demand(a, b, radius=radius)(positions), by_volume, atol=1e-5, rtol=0)


def test_a_correlation_is_a_scaled_product_and_its_window_runs_over_x_first():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 16, 8, 10, generator=g) for _ in range(2))
    positions = torch.zeros(1, 2, 8, 10)
    positions[:, 0], positions[:, 1] = 4, 3  # every pixel looks at x 4, y 3
    found = correlation_by_volume(a, b, radius=3)(positions)[0, :49].view(7, 7, 8, 10)
    dx, dy = 2, -1
    expected = torch.einsum("chw,c->hw", a[0], b[0, :, 3 + dy, 4 + dx]) / 4
    torch.testing.assert_close(found[3 + dx, 3 + dy], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("limit", "calls", "kind"), [(3, 1, "by_volume"), (2, 2, "by_volume"), (0.5, 3, "on_demand")])
def test_the_correlation_volume_stays_below_its_limit(limit, calls, kind, monkeypatch):
    a, b = images(3)
    net, seen = seeded(RAFT("small", iterations=1)), []
    with torch.no_grad():
        whole = net(a, b)
        net.volume_limit = int(limit * (9 * 10) ** 2)
        for name, make in (("by_volume", correlation_by_volume), ("on_demand", correlation_on_demand)):

            def spy(*maps, name=name, make=make, **options):
                seen.append(name)
                return make(*maps, **options)

            monkeypatch.setattr(f"ldm.nets.raft.correlation_{name}", spy)
        torch.testing.assert_close(net(a, b), whole, atol=1e-4, rtol=0)
    assert seen == [kind] * calls


def test_convex_upsampling_keeps_a_constant_flow_and_its_range():
    flow = torch.tensor([1.5, -2.0]).view(1, 2, 1, 1).expand(1, 2, 5, 6)
    mask = torch.randn(1, 576, 5, 6, generator=torch.Generator().manual_seed(0))
    fine = convex_upsample(flow, mask)
    inner = fine[..., 8:-8, 8:-8]
    torch.testing.assert_close(inner, torch.tensor([12.0, -16.0]).view(1, 2, 1, 1).expand_as(inner))
    centre = torch.full((1, 9, 64, 5, 6), -1e4)
    centre[:, 4] = 0
    varied = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(1))
    nearest = convex_upsample(varied, centre.flatten(1, 2))
    assert torch.equal(nearest, 8 * varied.repeat_interleave(8, -1).repeat_interleave(8, -2))


def test_networks_stay_in_float32_and_evaluation_mode(small, spynet):
    a, b = images()
    with torch.no_grad():
        for net in (small, spynet):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                cast = net(a.bfloat16().float(), b.bfloat16().float())
            assert cast.dtype == torch.float32
            assert torch.equal(cast, net(a.bfloat16(), b.bfloat16()))
    whole = nn.ModuleDict({"flow": RAFT("normal", iterations=1)}).train()
    before = whole["flow"].cnet.norm1.running_mean.clone()
    with torch.no_grad():
        whole["flow"](a, b)
    assert torch.equal(whole["flow"].cnet.norm1.running_mean, before)
    with pytest.raises(ValueError, match="float32"):
        RAFT("small").half()(a, b)
    with pytest.raises(ValueError, match="float32"):
        SpyNet().bfloat16()(a, b)


def test_spynet_is_differentiable_in_both_images_even_outside_the_unit_range(spynet):
    a, b = (2 * x - 1 for x in images(1, 40, 48))
    a.requires_grad_()
    b.requires_grad_()
    spynet(a, b).square().sum().backward()
    assert a.grad.abs().max() > 0 and b.grad.abs().max() > 0


def test_spynet_with_zero_levels_finds_no_flow_and_scales_flows():
    net = SpyNet()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        a, b = images(1, 64, 80)
        assert net(a, b).abs().max() == 0
        net.basic_module[-1].basic_module[8].bias.copy_(torch.tensor([3.0, 5.0]))
        flow = net(a, b)  # 80 columns are searched as 96
    torch.testing.assert_close(flow[0, :, 0, 0], torch.tensor([3.0 * 80 / 96, 5.0]))


def test_invalid_arguments_are_refused(small, spynet):
    with pytest.raises(ValueError, match="'normal' or 'small'"):
        RAFT("large")
    with pytest.raises(ValueError, match="'trained' or 'released'"):
        RAFT(scaling="none")
    with pytest.raises(ValueError, match="iterations"):
        small(*images(), iterations=0)
    for net in (small, spynet):
        with pytest.raises(ValueError, match="one shape"):
            net(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 72))
