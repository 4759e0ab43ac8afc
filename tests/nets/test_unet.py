import pytest
import torch
from torch import nn

from ldm.nets.attention import SpatialTransformer
from ldm.nets.layers import GroupNorm, LayerNorm, Upsample
from ldm.nets.unet import MIDDLE_ORDER, MergedUpsample, UNet
from tests.golden_checks.case import FOLDER, Case

TINY = {
    "model_channels": 32,
    "attention_resolutions": (2,),
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "num_head_channels": 16,
    "context_dim": 8,
    "semb_channels": 6,
}


def tiny(**settings) -> UNet:
    torch.manual_seed(0)
    net = UNet(**TINY | settings)
    for name, parameter in net.named_parameters():
        if not name.endswith("temporal_alpha"):
            nn.init.normal_(parameter, std=0.1)
    return net.eval()


def inputs(frames: int, *, height: int = 4, width: int = 6, levels: int = 2) -> dict:
    torch.manual_seed(1)
    return {
        "x": torch.randn(frames, 4, height, width),
        "t": torch.randint(0, 1000, (frames,)),
        "context": torch.randn(frames, 5, 8),
        "struct_cond": [torch.randn(frames, 6, height >> i, width >> i) for i in range(levels)],
    }


def rows(given: dict, chosen) -> dict:
    return {k: [m[chosen] for m in v] if isinstance(v, list) else v[chosen] for k, v in given.items()}


@pytest.mark.parametrize("middle", MIDDLE_ORDER)
def test_full_size_has_the_released_parameters(middle):
    with torch.device("meta"):
        net = UNet(middle=middle)
    assert sum(p.numel() for p in net.parameters()) == 935_321_287
    assert len(net.state_dict()) == 876
    trained = [p for name, p in net.named_parameters() if "spade" in name or "temporal" in name]
    assert (len(trained), sum(p.numel() for p in trained)) == (188, 69_408_003)


def recorded(key: str):
    if not (FOLDER / "j_stage1_keys.json.gz").exists():
        pytest.skip("the recorded names are not there")
    return Case.read(FOLDER, "j_stage1_keys").meta[key]


def test_full_size_has_the_released_names_in_order():
    with torch.device("meta"):
        net = UNet()
    prefix = "model.diffusion_model."
    expected = {n.removeprefix(prefix): shape for n, shape, *_ in recorded("entries") if n.startswith(prefix)}
    assert list(expected.items()) == [(name, list(value.shape)) for name, value in net.state_dict().items()]


def test_repaired_middle_has_all_names_of_the_image_model():
    homeless = {name.removeprefix("model.diffusion_model.") for name in recorded("sd21")["sd_entries_without_home"]}
    with torch.device("meta"):
        released, repaired = UNet(), UNet(middle="repaired")
    assert len(homeless) == 36
    assert not homeless & set(released.state_dict())
    assert homeless <= set(repaired.state_dict())


def test_repaired_middle_computes_the_same_under_other_names():
    released, repaired = tiny(), tiny(middle="repaired")
    place = dict(zip(MIDDLE_ORDER["released"], MIDDLE_ORDER["repaired"], strict=True))
    weights = {}
    for name, value in released.state_dict().items():
        part = name.split(".")
        if part[0] == "middle_block":
            part[1] = str(place[int(part[1])])
        weights[".".join(part)] = value
    repaired.load_state_dict(weights, strict=True)
    given = inputs(3)
    assert torch.equal(repaired(**given, num_frames=3), released(**given, num_frames=3))
    kinds = [type(layer).__name__ for layer in repaired.middle_block]
    assert kinds[:3] == ["ResBlock", "SpatialTransformer", "ResBlock"]
    assert kinds[3:] == ["TemporalConv", "TemporalAttention", "TemporalConv"]


def test_every_norm_has_its_groups_and_eps():
    net = tiny(attention_resolutions=(1, 2))
    inside = {m.norm for m in net.modules() if isinstance(m, SpatialTransformer)}
    groups = {m for m in net.modules() if isinstance(m, nn.GroupNorm)}
    layer_norms = {m for m in net.modules() if isinstance(m, nn.LayerNorm)}
    assert {(m.num_groups, m.eps) for m in inside} == {(32, 1e-6)}
    assert {(m.num_groups, m.eps) for m in groups - inside} == {(32, 1e-5)}
    assert {m.eps for m in layer_norms} == {1e-5}
    assert all(isinstance(m, GroupNorm) for m in groups) and all(isinstance(m, LayerNorm) for m in layer_norms)


def test_temporal_layers_start_at_the_documented_blend():
    starts = {n: p.item() for n, p in UNet(**TINY).named_parameters() if n.endswith("temporal_alpha")}
    assert sorted(starts) == [f"middle_block.{i}.temporal_alpha" for i in (1, 3, 5)]
    assert list(starts.values()) == pytest.approx([0.1] * 3)
    net = UNet(**TINY, temporal_alpha=0.25)
    assert {p.item() for n, p in net.named_parameters() if n.endswith("temporal_alpha")} == {0.25}


def test_a_fresh_network_predicts_zero():
    given = inputs(2)
    assert torch.equal(UNet(**TINY)(**given, num_frames=2), torch.zeros_like(given["x"]))


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_clips_of_any_length_side_by_side_equal_clips_alone(num_frames):
    net, given = tiny(temporal_alpha=0.6), inputs(2 * num_frames)
    both = net(**given, num_frames=num_frames)
    for clip in (slice(0, num_frames), slice(num_frames, 2 * num_frames)):
        assert torch.allclose(both[clip], net(**rows(given, clip), num_frames=num_frames), atol=1e-4)


def test_only_temporal_layers_mix_the_frames_of_a_clip():
    given = inputs(3)
    alone, together = (tiny(temporal_alpha=a)(**given, num_frames=3) for a in (0.0, 0.6))
    assert torch.allclose(alone, tiny(temporal_alpha=0.0)(**given, num_frames=1), atol=1e-4)
    assert not torch.allclose(together, tiny(temporal_alpha=0.6)(**given, num_frames=1), atol=1e-3)


@pytest.mark.parametrize("name", ["t", "context"])
def test_rows_for_all_for_a_clip_and_for_a_frame_mean_the_same(name):
    net, given = tiny(), inputs(6)
    first, second = given[name][:1], given[name][1:2]
    per_clip = net(**given | {name: torch.cat([first, second])}, num_frames=3)
    per_frame = net(**given | {name: torch.cat([first] * 3 + [second] * 3)}, num_frames=3)
    assert torch.allclose(per_clip, per_frame, atol=1e-4)
    for_all = net(**given | {name: first}, num_frames=3)
    assert torch.allclose(for_all[:3], per_clip[:3], atol=1e-4)
    assert not torch.allclose(for_all[3:], per_clip[3:], atol=1e-3)


def test_gradients_reach_the_latents_every_map_and_every_parameter():
    net, given = tiny(), inputs(2)
    leaves = [given["x"], *given["struct_cond"]]
    for leaf in leaves:
        leaf.requires_grad_()
    net(**given, num_frames=2).square().sum().backward()
    assert all(leaf.grad.abs().max() > 0 for leaf in leaves)
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"channel_mult": (1, 1)},
        {"channel_mult": (2, 2)},
        {"transformer_depth": 2},
        {"num_head_channels": -1, "num_heads": 2},
        {"out_channels": 3},
        {"num_res_blocks": 2, "attention_resolutions": ()},
    ],
)
def test_other_architectures_work(settings):
    out = tiny(**settings)(**inputs(2), num_frames=2)
    assert out.shape == (2, settings.get("out_channels", 4), 4, 6) and torch.isfinite(out).all()


def test_four_levels_down_to_a_single_pixel():
    out = tiny(channel_mult=(1, 1, 1, 1))(**inputs(3, height=8, width=16, levels=4), num_frames=3)
    assert out.shape == (3, 4, 8, 16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_stay_near_and_the_result_has_the_dtype_of_the_latents(dtype):
    net, given = tiny(), inputs(2)
    exact = net(**given, num_frames=2)
    out = net.to(dtype)(**given, num_frames=2)
    assert out.dtype == torch.float32
    assert (out - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 3}, "got 4 frames, expected clips of num_frames=3"),
        ({"t": torch.arange(3)}, "got 3 rows of time steps, expected 1, 2"),
        ({"context": torch.zeros(3, 5, 8)}, "got 3 rows of context, expected 1, 2"),
        ({"context": torch.zeros(1, 5, 7)}, "got text of 7 channels, expected context_dim=8"),
        ({"x": torch.zeros(4, 4, 5, 6)}, "got latents of 5x6, expected multiples of 2"),
        ({"struct_cond": [torch.zeros(4, 6, 4, 6)]}, "got 1 condition maps, expected 2"),
        ({"struct_cond": [torch.zeros(4, 6, 2, 3), torch.zeros(4, 6, 4, 6)]}, "for level 0, expected"),
    ],
)
def test_invalid_shapes_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        tiny()(**{"num_frames": 2} | inputs(4) | change)


def test_an_unknown_middle_is_refused():
    with pytest.raises(ValueError, match="got middle='other', expected one of"):
        UNet(**TINY, middle="other")


def test_autocast_stays_near_float32():
    net, given = tiny(), inputs(2)
    exact = net(**given, num_frames=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(**given, num_frames=2)
    assert out.dtype == torch.float32 and (out - exact).norm() < 0.05 * exact.norm()


def test_merged_upsample_is_upsample_with_and_without_gradient():
    merged, x = MergedUpsample(3), torch.randn(2, 3, 4, 5)
    plain = Upsample(3)
    plain.load_state_dict(merged.state_dict())
    with torch.no_grad():
        assert torch.allclose(merged(x), plain(x), atol=1e-6)
    assert torch.equal(merged(x), plain(x))


def test_temporal_layers_at_every_level_follow_each_residual_block():
    net, plain = tiny(temporal="every"), tiny()
    own = {name for name in net.state_dict() if "temporal" in name}
    blocks = {".".join(name.split(".")[:2]) for name in own}
    wanted = {f"input_blocks.{k}" for k in (1, 3)} | {f"output_blocks.{k}" for k in range(4)}
    assert blocks - {name for name in blocks if name.startswith("middle")} == wanted
    # the last layers of a level stay where they were: an Upsample behind them moves by one
    assert [type(layer).__name__ for layer in net.output_blocks[1]] == [
        "ResBlock",
        "SpatialTransformer",
        "TemporalConv",
        "MergedUpsample",
    ]
    assert not any("temporal" in name for name in plain.state_dict() if not name.startswith("middle_block"))
    x = inputs(3)
    with torch.no_grad():
        moved = net(**x, num_frames=3)
        assert moved.shape == x["x"].shape
        assert not torch.allclose(moved, net(**x, num_frames=1), atol=1e-4)
    with pytest.raises(ValueError, match="got temporal='all', expected one of middle, every"):
        tiny(temporal="all")


def test_the_inside_of_spade_can_be_narrower():
    net = tiny(spade_hidden=16)
    assert {p.shape[0] for n, p in net.named_parameters() if "mlp_shared.0.weight" in n} == {16}
