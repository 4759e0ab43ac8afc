"""What diffusers and transformers write into config.json beside their weights, as arguments of our networks.

Values that our networks do not have are refused by name. Keys that do not change a number are not looked at.
"""

from collections.abc import Mapping
from typing import Any

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.control import TemporalConditioning
from ldm.nets.text import OpenCLIPText
from ldm.nets.upscaler import UpscalerPlan, UpscalerUNet

BUILDABLE = ("upscaler_of", "control_of", "autoencoder_of", "text_of")  # by configurations

ATTENDING = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
LARGEST = 2**20  # of a number in a file
# What the U-Net and the control network compute; other values are another network's. None: the key may be absent.
DENOISER = {
    "center_input_sample": (False, None),
    "flip_sin_to_cos": (True, None),
    "freq_shift": (0, None),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "downsample_padding": (1, None),
    "mid_block_scale_factor": (1, None),
    "act_fn": ("silu", None),
    "use_linear_projection": (True,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "dual_cross_attention": (False, None),
    "resnet_time_scale_shift": ("default", None),
    "resnet_skip_time_act": (False, None),
    "resnet_out_scale_factor": (1, None),
    "time_embedding_type": ("positional", None),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3, None),
    "conv_out_kernel": (3, None),
    "attention_type": ("default", None),
    "cross_attention_norm": (None,),
    "global_pool_conditions": (False, None),
    "conditioning_channels": (3, None),
    "controlnet_conditioning_channel_order": ("rgb", None),
}
AUTOENCODER = {
    "act_fn": ("silu", None),
    "use_quant_conv": (True, None),
    "use_post_quant_conv": (True, None),
    "mid_block_add_attention": (True, None),
    "shift_factor": (0, None),
    "latents_mean": (None,),
    "latents_std": (None,),
}
TEXT = {"hidden_act": ("gelu",), "layer_norm_eps": (1e-5, None), "model_type": ("clip_text_model", None)}
PUBLIC = "; these are the weights of the public x4 upscaler, expected those of StableVSR"


def refuse_others(config: Mapping[str, Any], known: Mapping[str, tuple], what: str) -> None:
    """Raise ValueError naming a key of a configuration whose value is none of the known ones."""
    for key, values in known.items():
        if config.get(key) not in values:
            hint = PUBLIC if key == "num_class_embeds" else ""
            raise ValueError(f"{what}: got {key}={config.get(key)!r}, expected {values[0]!r}{hint}")


def whole_number(config: Mapping[str, Any], key: str, what: str, default: int | None = None) -> int:
    """A whole number from 1. Raises ValueError for anything else, or where it is missing and has no default."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f"{what}: got {key}={value!r}, expected a whole number from 1")
    return value


def listed(config: Mapping[str, Any], key: str, what: str, kind: type = int) -> list:
    """A list of numbers or words. Raises ValueError for anything else, or where it is missing."""
    values = config.get(key)
    if not isinstance(values, list | tuple) or not values or any(type(value) is not kind for value in values):
        raise ValueError(f"{what}: got {key}={values!r}, expected a list; is this the config.json of these weights?")
    if kind is int and not all(1 <= value <= LARGEST for value in values):
        raise ValueError(f"{what}: got {key}={values!r}, expected whole numbers from 1")
    return list(values)


def per_level(config: Mapping[str, Any], key: str, what: str, *, levels: int, kind: type) -> list:
    """One value for each level, which the file may say once for all."""
    value = config.get(key)
    return [value] * levels if type(value) is kind else listed(config, key, what, kind)


def attending_levels(config: Mapping[str, Any], what: str) -> list[bool]:
    """Which levels have transformers. Raises ValueError for types of blocks that we do not have."""
    types = listed(config, "down_block_types", what, str)
    mirrored = [name.replace("Down", "Up") for name in reversed(types)]
    up_types = listed(config, "up_block_types", what, str) if config.get("up_block_types") else mirrored
    if up_types != mirrored or not set(types) <= ATTENDING.keys():
        raise ValueError(f"{what}: got blocks {types} and {up_types}, expected only {', '.join(ATTENDING)}")
    return [ATTENDING[name] for name in types]


def denoiser_plan(config: Mapping[str, Any], what: str) -> UpscalerPlan:
    """Widths and attention of a UNet2DConditionModel or ControlNetModel. Raises ValueError for what we do not have."""
    refuse_others(config, DENOISER, what)
    widths = listed(config, "block_out_channels", what)
    only_cross = {"only_cross_attention": config.get("only_cross_attention") or False}
    # `attention_head_dim` is misnamed in these files: it is the number of heads
    given = (config.get(key) for key in ("num_attention_heads", "attention_head_dim"))
    heads = {"attention_head_dim": next((value for value in given if value is not None), 8)}
    eps = config.get("norm_eps", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ValueError(f"{what}: got norm_eps={eps!r}, expected a number such as 1e-5")
    return UpscalerPlan(
        widths=widths,
        layers=whole_number(config, "layers_per_block", what, 2),
        attention=attending_levels(config, what),
        only_cross=per_level(only_cross, "only_cross_attention", what, levels=len(widths), kind=bool),
        heads=per_level(heads, "attention_head_dim", what, levels=len(widths), kind=int),
        context_dim=whole_number(config, "cross_attention_dim", what, 1280),
        depth=whole_number(config, "transformer_layers_per_block", what, 1),
        norm_groups=whole_number(config, "norm_num_groups", what, 32),
        norm_eps=eps,
    ).completed()


def upscaler_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ldm.nets.upscaler.UpscalerUNet` from unet/config.json. Raises ValueError."""
    what = "unet/config.json"
    channels = {key: whole_number(config, key, what, 4) for key in ("in_channels", "out_channels")}
    return {**channels, "plan": denoiser_plan(config, what)}


def control_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ldm.nets.control.TemporalConditioning` from controlnet/config.json. Raises ValueError."""
    what = "controlnet/config.json"
    return {
        "plan": denoiser_plan(config, what),
        "in_channels": whole_number(config, "in_channels", what, 4),
        "condition_widths": listed(config, "conditioning_embedding_out_channels", what),
    }


def control_config(control: TemporalConditioning) -> dict[str, Any]:
    """The controlnet/config.json that diffusers reads beside the weights of a control network."""
    plan, embedding = control.plan, control.controlnet_cond_embedding
    heads = list(plan.heads)
    return {
        "_class_name": "ControlNetModel",
        "_diffusers_version": "0.21.1",
        "act_fn": "silu",
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "block_out_channels": list(plan.widths),
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": [embedding.conv_in.out_channels]
        + [conv.out_channels for conv in embedding.blocks[1::2]],
        "controlnet_conditioning_channel_order": "rgb",
        "cross_attention_dim": plan.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in plan.attention],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": control.in_channels,
        "layers_per_block": plan.layers,
        "mid_block_scale_factor": 1,
        "norm_eps": plan.norm_eps,
        "norm_num_groups": plan.norm_groups,
        "only_cross_attention": list(plan.only_cross),
        "resnet_time_scale_shift": "default",
        "transformer_layers_per_block": plan.depth,
        "upcast_attention": False,
        "use_linear_projection": True,
    }


def autoencoder_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ldm.nets.autoencoder.AutoencoderKL` from vae/config.json. Raises ValueError."""
    what = "vae/config.json"
    refuse_others(config, AUTOENCODER, what)
    widths = listed(config, "block_out_channels", what)
    for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = config.get(key) or [name] * len(widths)
        if list(types) != [name] * len(widths):
            raise ValueError(f"{what}: got {key}={types}, expected {name} {len(widths)} times")
    latent = whole_number(config, "latent_channels", what, 4)
    return {
        "ch": widths[0],
        "ch_mult": [width / widths[0] for width in widths],
        "num_res_blocks": whole_number(config, "layers_per_block", what, 1),
        "z_channels": latent,
        "embed_dim": latent,
        "in_channels": whole_number(config, "in_channels", what, 3),
        "out_ch": whole_number(config, "out_channels", what, 3),
        "norm_groups": whole_number(config, "norm_num_groups", what, 32),
    }


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ldm.nets.text.OpenCLIPText` from text_encoder/config.json. Raises ValueError."""
    what = "text_encoder/config.json"
    config = config.get("text_config") or config
    refuse_others(config, TEXT, what)
    width = whole_number(config, "hidden_size", what)
    if config.get("intermediate_size", 4 * width) != 4 * width:
        raise ValueError(f"{what}: got intermediate_size={config['intermediate_size']}, expected {4 * width}")
    return {
        "width": width,
        "layers": whole_number(config, "num_hidden_layers", what),
        "heads": whole_number(config, "num_attention_heads", what),
        "vocab_size": whole_number(config, "vocab_size", what, 49408),
        "context_length": whole_number(config, "max_position_embeddings", what, 77),
        "skip_last": 0,
        "unused": False,
    }


def upscaler_of(config: Mapping[str, Any]) -> UpscalerUNet:
    """The denoiser that unet/config.json describes. Raises ValueError."""
    return UpscalerUNet(**upscaler_settings(config))


def control_of(config: Mapping[str, Any]) -> TemporalConditioning:
    """The control network that controlnet/config.json describes. Raises ValueError."""
    return TemporalConditioning(**control_settings(config))


def autoencoder_of(config: Mapping[str, Any]) -> AutoencoderKL:
    """The autoencoder that vae/config.json describes. Raises ValueError."""
    return AutoencoderKL(**autoencoder_settings(config))


def text_of(config: Mapping[str, Any]) -> OpenCLIPText:
    """The text tower that text_encoder/config.json describes. Raises ValueError."""
    return OpenCLIPText(**text_settings(config))
