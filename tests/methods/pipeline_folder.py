"""A diffusers pipeline folder of StableVSR with random weights, as narrow as the networks allow."""

import json
from pathlib import Path

import torch

from ldm.nets.configurations import autoencoder_of, control_of, text_of, upscaler_of
from ldm.weights import checkpoint
from tests.methods.toy import randomise

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "v_prediction",
    "steps_offset": 1,
}
PLAN = {
    "in_channels": 7,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "only_cross_attention": [True, False],
    "norm_num_groups": 4,
    "use_linear_projection": True,
}
CONFIGS = {
    "unet": PLAN | {"out_channels": 4},
    "controlnet": PLAN | {"conditioning_embedding_out_channels": [4, 4, 8]},
    "vae": {"block_out_channels": [8, 8, 16], "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.5},
    "text_encoder": {
        "hidden_size": 8,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "vocab_size": 16,
    },
}
BUILDERS = {"unet": upscaler_of, "controlnet": control_of, "vae": autoencoder_of, "text_encoder": text_of}
FILES = {"text_encoder": "model.safetensors"}
VAE_NAMES = (  # ours, diffusers'
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
    ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
    ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
    ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
    ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
    ("nin_shortcut.", "conv_shortcut."),
    ("norm_out.", "conv_norm_out."),
)
TEXT_NAMES = (
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def vae_name(name: str, levels: int) -> str:
    """The name in a diffusers file of an entry of our autoencoder."""
    for own, other in VAE_NAMES:
        name = name.replace(own, other)
    for level in range(levels):
        name = name.replace(f"encoder.down.{level}.block.", f"encoder.down_blocks.{level}.resnets.")
        name = name.replace(f"encoder.down.{level}.downsample.", f"encoder.down_blocks.{level}.downsamplers.0.")
        name = name.replace(f"decoder.up.{level}.block.", f"decoder.up_blocks.{levels - 1 - level}.resnets.")
        name = name.replace(f"decoder.up.{level}.upsample.", f"decoder.up_blocks.{levels - 1 - level}.upsamplers.0.")
    return name


def diffusers_state(part: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The entries of one of our networks as diffusers' files hold them."""
    if part == "vae":
        levels = len(CONFIGS["vae"]["block_out_channels"])
        return {
            vae_name(name, levels): value.flatten(1) if ".attn_1." in name and value.ndim == 4 else value
            for name, value in state.items()
        }
    if part != "text_encoder":
        return state
    out = {}
    for name, value in state.items():
        for own, other in TEXT_NAMES:
            name = name.replace(own, other)
        block, stacked, leaf = name.partition(".attn.in_proj_")
        if stacked:
            out |= {f"{block}.self_attn.{k}_proj.{leaf}": v for k, v in zip("qkv", value.chunk(3), strict=True)}
        else:
            out[name] = value
    return out


def make_pipeline(folder: Path) -> Path:
    """Write the folder: weights, their config.json, and the scheduler's."""
    for seed, (part, build) in enumerate(BUILDERS.items()):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(CONFIGS[part]))
        state = randomise(build(CONFIGS[part]), seed).state_dict()
        file = folder / part / FILES.get(part, "diffusion_pytorch_model.safetensors")
        checkpoint.save(file, diffusers_state(part, state))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder
