import pytest

from ldm.nets.configurations import (
    autoencoder_settings,
    control_config,
    control_settings,
    text_settings,
    upscaler_settings,
)
from ldm.nets.control import TemporalConditioning
from ldm.nets.upscaler import UpscalerPlan

UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "use_linear_projection": True,
    "only_cross_attention": True,
    "attention_head_dim": [1, 4],
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
VAE = {"block_out_channels": [8, 12]}
TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu"}


def test_a_configuration_becomes_a_plan():
    assert upscaler_settings(UNET | {"in_channels": 7}) == {
        "in_channels": 7,
        "out_channels": 4,
        "plan": UpscalerPlan([8, 16], 2, [False, True], [True, True], [1, 4], 12, 1, 4, 1e-5),
    }


def test_what_is_written_beside_a_control_network_is_read_again():
    plan = UpscalerPlan((8, 16), 1, (False, True), (True, False), (2, 4), 12, 2, 4, 1e-5).completed()
    control = TemporalConditioning(in_channels=7, condition_widths=[4, 6, 8], plan=plan)
    settings = control_settings(control_config(control))
    assert settings.pop("plan") == plan._replace(widths=[8, 16], attention=[False, True], only_cross=[True, False])
    assert settings == {"in_channels": 7, "condition_widths": [4, 6, 8]}


@pytest.mark.parametrize(
    ("read", "config", "words"),
    [
        (upscaler_settings, UNET | {"num_class_embeds": 1000}, "public x4 upscaler"),
        (upscaler_settings, UNET | {"use_linear_projection": None}, "use_linear_projection=None, expected True"),
        (upscaler_settings, UNET | {"act_fn": "gelu"}, "act_fn='gelu', expected 'silu'"),
        (upscaler_settings, UNET | {"block_out_channels": None}, "block_out_channels=None, expected a list"),
        (upscaler_settings, UNET | {"block_out_channels": "wide"}, "expected a list"),
        (upscaler_settings, UNET | {"block_out_channels": [8, -16]}, "whole numbers from 1"),
        (upscaler_settings, UNET | {"layers_per_block": True}, "layers_per_block=True"),
        (upscaler_settings, UNET | {"layers_per_block": 10**9}, "layers_per_block"),
        (upscaler_settings, UNET | {"cross_attention_dim": [12, 12]}, "cross_attention_dim=.12, 12., expected a whole"),
        (upscaler_settings, UNET | {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "AttnDownBlock2D"),
        (upscaler_settings, UNET | {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}, "got blocks"),
        (upscaler_settings, UNET | {"norm_eps": "small"}, "norm_eps='small'"),
        (upscaler_settings, UNET | {"norm_eps": float("nan")}, "norm_eps=nan"),
        (upscaler_settings, UNET | {"attention_head_dim": 0}, "0 attention heads for 16 channels"),
        (upscaler_settings, {}, "use_linear_projection=None, expected True"),
        (control_settings, {}, "use_linear_projection=None, expected True"),
        (text_settings, {}, "hidden_act=None, expected 'gelu'"),
        (upscaler_settings, UNET | {"attention_head_dim": 3}, "3 attention heads for 16 channels"),
        (control_settings, UNET, "conditioning_embedding_out_channels=None"),
        (control_settings, UNET | {"controlnet_conditioning_channel_order": "bgr"}, "expected 'rgb'"),
        (autoencoder_settings, VAE | {"use_quant_conv": False}, "use_quant_conv=False, expected True"),
        (autoencoder_settings, VAE | {"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "expected UpDecoderBlock2D"),
        (text_settings, TEXT | {"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu', expected 'gelu'"),
        (text_settings, TEXT | {"intermediate_size": 16}, "intermediate_size=16, expected 64"),
    ],
)
def test_networks_that_we_do_not_have_are_refused_in_one_line(read, config, words):
    with pytest.raises(ValueError, match=words) as error:
        read(config)
    assert "config.json: got" in str(error.value) or "heads" in str(error.value)
    assert "\n" not in str(error.value)
