"""Arguments of the networks of Upscale-A-Video from the configurations of the released folder."""

from collections.abc import Mapping

FIXED = {  # of a released configuration: what this file builds, and nothing else
    "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1,
    "mid_block_scale_factor": 1, "act_fn": "silu", "norm_eps": 1e-5, "dual_cross_attention": False,
    "use_linear_projection": True, "class_embed_type": None, "upcast_attention": False,
    "resnet_time_scale_shift": "default", "use_first_frame": False, "use_relative_position": False,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
}  # fmt: skip
UNET_KEYS = (
    "in_channels", "out_channels", "block_out_channels", "layers_per_block", "only_cross_attention",
    "cross_attention_dim", "num_class_embeds", "max_noise_level", "norm_num_groups", "down_temporal_idx",
    "mid_temporal", "up_temporal_idx",
)  # fmt: skip
VAE_KEYS = (
    "block_out_channels", "layers_per_block", "in_channels", "out_channels", "latent_channels", "norm_num_groups",
)  # fmt: skip


def unet_arguments(config: Mapping) -> dict:
    """Arguments of `UNetVideoModel` from a released `unet_video_config.json`.

    Raises ValueError for a setting that the network is not built for.
    """
    for key, wanted in FIXED.items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"got {key}={config[key]!r} in the configuration of the U-Net, expected {wanted!r}")
    if any((config.get("temporal_module_config") or {}).get("attention_block_types", [])):
        raise ValueError("got attention_block_types in the temporal modules, expected none")
    down, up = config["down_block_types"], config["up_block_types"]
    attention = [name.startswith("CrossAttn") for name in down]
    if attention != [name.startswith("CrossAttn") for name in reversed(up)]:
        raise ValueError(f"got down blocks {down} and up blocks {up}, expected the same levels with attention")
    arguments = {key: config[key] for key in UNET_KEYS if key in config}
    cross_only = config.get("only_cross_attention", False)
    if isinstance(cross_only, bool):
        arguments["only_cross_attention"] = [cross_only] * len(down)
    return arguments | {"attention": attention, "num_heads": config.get("attention_head_dim", 8)}


def vae_arguments(config: Mapping) -> dict:
    """Arguments of `AutoencoderKLVideo` from a released `vae_3d_config.json` or `vae_video_config.json`.

    Raises ValueError for a setting that the network is not built for.
    """
    plus = [name.endswith("_plus") for name in config.get("up_block_types", ())]
    conditioned = bool(config.get("condition_img"))
    if any(word != conditioned for word in plus) or config.get("act_fn", "silu") != "silu":
        raise ValueError(
            f"got up_block_types={config.get('up_block_types')}, condition_img={conditioned} and "
            f"act_fn={config.get('act_fn')!r}, expected plus blocks with a condition and only then, and silu"
        )
    arguments = {key: config[key] for key in VAE_KEYS if key in config}
    return arguments | {"condition_channels": config.get("condition_channels", 128) if conditioned else None}
