"""Our networks beside those of diffusers and transformers, where these are installed (they are not needed)."""

import warnings

import pytest
import torch

from ldm.diffusion.samplers import ddpm_step
from ldm.diffusion.scheduler import Scheduler
from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.configurations import (
    autoencoder_settings,
    control_config,
    control_settings,
    text_settings,
    upscaler_settings,
)
from ldm.nets.control import TemporalConditioning
from ldm.nets.text import OpenCLIPText
from ldm.nets.upscaler import UpscalerUNet
from ldm.weights.names import autoencoder_state, text_state

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")
SEEDED = {"norm": 0.2, "bias": 0.1}
DOWN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
DENOISERS = [
    {"block_out_channels": [8, 12, 16, 24], "down_block_types": [DOWN, CROSS, CROSS, CROSS], "attention_head_dim": 2},
    {
        "block_out_channels": [8, 12, 20],
        "down_block_types": [CROSS, DOWN, CROSS],
        "attention_head_dim": [2, 3, 5],
        "only_cross_attention": [False, True, True],
        "layers_per_block": 1,
    },
    {
        "block_out_channels": [16, 16],
        "down_block_types": [DOWN, CROSS],
        "attention_head_dim": 4,
        "only_cross_attention": True,
        "layers_per_block": 3,
        "transformer_layers_per_block": 2,
    },
]
SHARED = {"cross_attention_dim": 12, "norm_num_groups": 4, "use_linear_projection": True, "in_channels": 7}


def lively(net, seed: int = 0):
    """Random weights everywhere, so that no layer is invisible."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            p.copy_(
                noise * p[0].numel() ** -0.5
                if p.ndim > 1
                else 0.1 * noise + (1.0 if "norm" in name and "weight" in name else 0)
            )
    return net.eval()


def denoisers(config: dict):
    config = {"only_cross_attention": [True] * (len(config["block_out_channels"]) - 1) + [False]} | SHARED | config
    up = [name.replace("Down", "Up") for name in reversed(config["down_block_types"])]
    unet = lively(diffusers.UNet2DConditionModel(**config, up_block_types=up, out_channels=4))
    channels = [4, 6, 8]
    control = lively(diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels), 1)
    return unet, control


@torch.no_grad()
@pytest.mark.parametrize("config", DENOISERS)
@pytest.mark.parametrize("size", [(16, 16), (7, 9), (17, 3)])
def test_denoiser_and_control_network_are_those_of_diffusers(config, size):
    unet, control = denoisers(config)
    ours, ours_control = UpscalerUNet(**upscaler_settings(dict(unet.config))), None
    ours.load_state_dict(unet.state_dict())
    settings = control_settings(dict(control.config))
    ours_control = TemporalConditioning(**settings)
    assert control_settings(control_config(ours_control))["plan"] == ours_control.plan
    ours_control.load_state_dict(control.state_dict())
    g = torch.Generator().manual_seed(2)
    x, context = torch.randn(3, 7, *size, generator=g), torch.randn(3, 5, 12, generator=g)
    condition, t = torch.randn(3, 3, 4 * size[0], 4 * size[1], generator=g), torch.tensor([999, 3, 500])
    down, middle = control(x, t, context, condition, conditioning_scale=0.6, return_dict=False)
    residuals = ours_control(x, t, context, condition, scale=0.6)
    for value, expected in zip((*residuals.skips, residuals.middle), (*down, middle), strict=True):
        torch.testing.assert_close(value, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours(x, t, context), unet(x, t, context).sample, atol=2e-5, rtol=1e-5)
    expected = unet(x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
    torch.testing.assert_close(ours(x, t, context, residuals), expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("widths", "layers", "size"),
    [([8, 12, 20], 2, (16, 24)), ([12, 8], 1, (11, 7)), ([8, 8, 8], 1, (17, 19)), ([4, 8, 8, 16], 1, (8, 16))],
)
@pytest.mark.parametrize("old", [False, True])
def test_autoencoder_is_that_of_diffusers(widths, layers, size, old):
    levels = len(widths)
    theirs = lively(
        diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=widths,
            layers_per_block=layers,
            norm_num_groups=4,
        )
    )
    state = theirs.state_dict()
    if old:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, before in names.items():
            state = {name.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): v for name, v in state.items()}
    ours = AutoencoderKL(**autoencoder_settings(dict(theirs.config))).eval()
    ours.load_state_dict(autoencoder_state(state))
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 3, *size, generator=g), torch.randn(2, 4, 3, 5, generator=g)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x).latent_dist.parameters, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, atol=2e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_tower_is_that_of_transformers(prefix):
    config = transformers.CLIPTextConfig(
        hidden_size=24, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=9, vocab_size=50, hidden_act="gelu", eos_token_id=49, bos_token_id=48, pad_token_id=0,
    )  # fmt: skip
    theirs = lively(transformers.CLIPTextModel(config))
    ours = OpenCLIPText(**text_settings(config.to_dict())).eval()
    state = {prefix + name.removeprefix("text_model."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(text_state(state))
    tokens = torch.randint(0, 48, (2, 9), generator=torch.Generator().manual_seed(0))
    tokens[:, -1] = 49
    torch.testing.assert_close(ours(tokens), theirs(tokens).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 37, 50, 333, 999])
def test_time_steps_are_those_of_diffusers(spacing, steps):
    config = {"timestep_spacing": spacing, "steps_offset": 1, "beta_schedule": "scaled_linear"}
    theirs = diffusers.DDPMScheduler(**config)
    theirs.set_timesteps(steps)
    assert Scheduler.from_config(config).timesteps(steps) == theirs.timesteps.tolist()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("clip", [False, True])
def test_steps_are_those_of_diffusers(kind, variance, schedule, clip):
    config = {
        "prediction_type": kind, "variance_type": variance, "beta_schedule": schedule, "clip_sample": clip,
        "clip_sample_range": 1.5, "num_train_timesteps": 200, "steps_offset": 1,
    }  # fmt: skip
    theirs, ours = diffusers.DDPMScheduler(**config), Scheduler.from_config(config)
    for steps in (9, [190, 120, 33, 4, 0]):
        theirs.set_timesteps(steps) if isinstance(steps, int) else theirs.set_timesteps(timesteps=steps)
        plan = ours.sampling(steps)
        g = torch.Generator().manual_seed(0)
        for k, t in enumerate(theirs.timesteps.tolist()):
            x, prediction = torch.randn(2, 4, 5, 6, generator=g), torch.randn(2, 4, 5, 6, generator=g)
            i, seed = len(plan) - 1 - k, torch.Generator().manual_seed(k)
            noise = torch.randn(x.shape, generator=seed) if t > 0 else torch.zeros_like(x)
            expected = theirs.step(prediction, t, x, generator=torch.Generator().manual_seed(k))
            x0 = ours.to_x0(prediction, x, plan, i)
            scale = max(1.0, expected.pred_original_sample.abs().max().item())
            torch.testing.assert_close(x0, expected.pred_original_sample, atol=1e-4 * scale, rtol=0)
            found = ddpm_step(x0, x, i, plan, noise=lambda _, noise=noise: noise)
            torch.testing.assert_close(found, expected.prev_sample, atol=1e-4 * scale, rtol=0)
