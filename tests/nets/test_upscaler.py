import pytest
import torch
from torch import nn

from ldm.nets.control import TemporalConditioning
from ldm.nets.upscaler import Residuals, UpscalerPlan, UpscalerUNet, UpscalerUpsample

PLAN = UpscalerPlan(
    widths=(8, 8, 16),
    layers=1,
    attention=(False, True, True),
    only_cross=(True, True, False),
    heads=2,
    context_dim=6,
    norm_groups=4,
)


def lively(net: nn.Module, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p[0].numel() if p.ndim > 1 else 100) ** -0.5)
    return net.eval()


@pytest.fixture(scope="module")
def nets():
    return lively(UpscalerUNet(plan=PLAN)), lively(TemporalConditioning(plan=PLAN, condition_widths=(4, 4, 4)), 1)


def inputs(n=2, h=7, w=9):
    g = torch.Generator().manual_seed(2)
    x, context = torch.randn(n, 7, h, w, generator=g), torch.randn(n, 5, 6, generator=g)
    return (x, torch.tensor([400, 3][:n]), context), torch.randn(n, 3, 4 * h, 4 * w, generator=g)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (17, 3)])
def test_any_size(nets, size):
    given, condition = inputs(2, *size)
    residuals = nets[1](*given, condition)
    assert nets[0](*given, residuals).shape == (2, 4, *size)
    assert [r.shape[-2:] for r in residuals.skips][0] == size


@torch.no_grad()
def test_rows_do_not_see_each_other_and_one_row_of_text_serves_all(nets):
    (x, t, context), _ = inputs()
    whole = nets[0](x, t, context)
    torch.testing.assert_close(nets[0](x[1:], t[1:], context[1:]), whole[1:], atol=1e-5, rtol=1e-5)
    shared = nets[0](x, t, context[:1].expand(2, -1, -1))
    torch.testing.assert_close(nets[0](x, t, context[:1]), shared, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_a_level_with_only_cross_attention_never_attends_to_pixels(nets):
    block, other = (nets[0].down_blocks[k].attentions[0].transformer_blocks[0] for k in (1, 2))
    assert block.attn1.to_k.weight.shape == (8, 6) and other.attn1.to_k.weight.shape == (16, 16)
    tokens, context = torch.randn(1, 6, 8), torch.randn(1, 5, 6)
    changed = tokens.clone()
    changed[:, 2] += 1
    difference = (block(tokens, context) - block(changed, context)).abs().amax(-1)[0]
    assert difference[2] > 1e-3 and difference[[0, 1, 3, 4, 5]].max() == 0


def test_the_fast_up_sampling_is_the_plain_one():
    layer, x = lively(UpscalerUpsample(4)), torch.randn(2, 4, 5, 6)
    plain = layer(x, (10, 12))  # with gradients
    with torch.no_grad():
        torch.testing.assert_close(layer(x, (10, 12)), plain, atol=1e-5, rtol=1e-5)
        assert layer(x, (9, 11)).shape == (2, 4, 9, 11)


@torch.no_grad()
def test_a_new_control_network_changes_nothing(nets):
    given, condition = inputs()
    control = TemporalConditioning(plan=PLAN, condition_widths=(4, 4, 4))
    shared = {name: value for name, value in nets[0].state_dict().items() if name in control.state_dict()}
    control.load_state_dict(control.state_dict() | shared)
    residuals = control(*given, condition)
    assert all(r.abs().max() == 0 for r in (*residuals.skips, residuals.middle))
    assert torch.equal(nets[0](*given, residuals), nets[0](*given))
    assert torch.equal(control.mid_block.resnets[1].conv2.weight, nets[0].mid_block.resnets[1].conv2.weight)


@torch.no_grad()
def test_scale_multiplies_all_residuals(nets):
    given, condition = inputs()
    once, half = nets[1](*given, condition), nets[1](*given, condition, scale=0.5)
    for a, b in zip((*once.skips, once.middle), (*half.skips, half.middle), strict=True):
        torch.testing.assert_close(b, 0.5 * a)


def test_gradients_reach_the_control_network_through_the_frozen_denoiser(nets):
    unet, control = nets[0].requires_grad_(False), nets[1]
    given, condition = inputs()
    unet(*given, control(*given, condition)).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for n, p in control.named_parameters() if "attn1.to_k" not in n
    )
    assert all(p.grad is None for p in unet.parameters())


@torch.no_grad()
def test_half_precision_stays_close(nets):
    given, condition = inputs(1)
    reference = nets[0](*given, nets[1](*given, condition))
    halves = (
        lively(UpscalerUNet(plan=PLAN)).bfloat16(),
        lively(TemporalConditioning(plan=PLAN, condition_widths=(4, 4, 4)), 1).bfloat16(),
    )
    out = halves[0](*given, halves[1](*given, condition))
    assert out.dtype == torch.float32
    assert (out - reference).abs().max() < 0.05 * reference.abs().max()


def test_wrong_shapes_are_named(nets):
    (x, t, context), condition = inputs()
    with pytest.raises(ValueError, match=r"expected \(n, 7, h, w\)"):
        nets[0](x[:, :4], t, context)
    with pytest.raises(ValueError, match="5 channels, expected 6"):
        nets[0](x, t, context[..., :5])
    with pytest.raises(ValueError, match="time steps"):
        nets[0](x, torch.tensor([1, 2, 3]), context)
    with pytest.raises(ValueError, match="got a condition"):
        nets[1](x, t, context, condition[..., :-4])
    with pytest.raises(ValueError, match="got 1 residuals"):
        nets[0](x, t, context, Residuals([x], x))
    with pytest.raises(ValueError, match="got 2 values of attention"):
        UpscalerUNet(plan=PLAN._replace(attention=(True, True)))
    with pytest.raises(ValueError, match="3 attention heads for 8 channels"):
        UpscalerUNet(plan=PLAN._replace(heads=3))
