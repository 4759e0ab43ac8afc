import pytest
import torch
from torch import nn

from ldm.nets.clip_layers import ClipGroupNorm, TemporalModule
from ldm.nets.layers import GroupNorm
from ldm.nets.video_unet import UNetVideoModel

TOY = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "attention": (False, True), "num_heads": 2,
    "only_cross_attention": (True, False), "cross_attention_dim": 8, "num_class_embeds": 400, "norm_num_groups": 8,
    "down_temporal_idx": (0, 1), "up_temporal_idx": (0, 1),
}  # fmt: skip


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNetVideoModel(**TOY).eval()


@pytest.fixture
def shaken(unet):
    for parameter in unet.parameters():
        nn.init.normal_(parameter, 0.0, 0.1)
    return unet


def inputs(batch=1, frames=3, size=(5, 6)):
    x, low = (torch.randn(batch, frames, channels, *size) for channels in (4, 3))
    return {
        "x": x,
        "low_res": low,
        "t": torch.tensor([500] * batch),
        "context": torch.randn(batch, 7, 8),
        "noise_level": torch.tensor([20] * batch),
    }


@torch.no_grad()
def test_as_built_the_layers_over_time_are_the_identity(unet):
    given = inputs(frames=1)
    still = unet(**given | {key: given[key].expand(1, 4, -1, -1, -1) for key in ("x", "low_res")})
    torch.testing.assert_close(still, unet(**given).expand_as(still), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(shaken):
    given = inputs(batch=2) | {"t": torch.tensor([900, 30]), "noise_level": torch.tensor([0, 350])}
    both = shaken(**given)
    for k in range(2):
        alone = shaken(**{key: value[k : k + 1] for key, value in given.items()})
        torch.testing.assert_close(both[k : k + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_everything_given_counts(shaken):
    given = inputs()
    out = shaken(**given)
    assert out.shape == (1, 3, 4, 5, 6)
    changed = {"t": torch.tensor([501]), "noise_level": torch.tensor([21])}
    changed |= {"low_res": given["low_res"].flip(1), "context": given["context"].flip(2)}
    for key, value in changed.items():
        assert (shaken(**given | {key: value}) - out).abs().max() > 1e-5, key
    last = given["x"].clone()
    last[:, -1] += 1
    assert (shaken(**given | {"x": last}) - out)[:, 0].abs().max() > 1e-4  # a frame sees the others


@torch.no_grad()
def test_one_row_serves_a_whole_batch(shaken):
    given = inputs(batch=2)
    one = {key: given[key][:1] for key in ("low_res", "t", "context", "noise_level")}
    many = {key: value.expand(2, *value.shape[1:]) for key, value in one.items()}
    torch.testing.assert_close(shaken(**given | one), shaken(**given | many), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_half_precision_is_near(shaken):
    given = inputs()
    exact = shaken(**given)
    half = shaken.bfloat16()(**given)
    assert half.dtype == torch.float32 and (half - exact).abs().max() < 0.1 * exact.abs().max()


def test_norms_have_their_own_groups_and_eps(unet):
    """Constants that outputs of ordinary size hardly show."""
    for name, module in unet.named_modules():
        if isinstance(module, ClipGroupNorm):
            over_time = "temp_block" in name or "resblock_temporal" in name
            assert (module.num_groups, module.eps) == ((32, 1e-6) if over_time else (8, 1e-5)), name
        elif isinstance(module, GroupNorm):
            assert (module.num_groups, module.eps) == (8, 1e-6), name
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5, name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise_level": torch.tensor([351])}, "got noise levels 351 to 351, expected 0 to 350"),
        ({"noise_level": torch.tensor([-1])}, "got noise levels -1"),
        ({"context": torch.zeros(1, 7, 9)}, "got text of 9 channels, expected 8"),
        ({"t": torch.tensor([1, 2, 3])}, "got 3 rows of time steps, expected 1 or 1"),
        ({"low_res": torch.zeros(1, 3, 3, 5, 7)}, "got latents"),
        ({"x": torch.zeros(1, 3, 5, 5, 6)}, "got latents"),
    ],
)
def test_what_does_not_fit_is_refused(unet, changed, message):
    with pytest.raises(ValueError, match=message):
        unet(**inputs() | changed)


def test_temporal_modules_can_be_left_out():
    net = UNetVideoModel(**TOY | {"down_temporal_idx": (1,), "mid_temporal": False, "up_temporal_idx": ()})
    assert [name for name, m in net.named_modules() if isinstance(m, TemporalModule)] == ["down_temp_blocks.1"]
    assert net(**inputs()).shape == (1, 3, 4, 5, 6)
    with pytest.raises(ValueError, match="got temporal modules at"):
        UNetVideoModel(**TOY | {"up_temporal_idx": (2,)})
    with pytest.raises(ValueError, match="expected one of each per level"):
        UNetVideoModel(**TOY | {"attention": (True,)})
