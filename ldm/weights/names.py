"""Rename the weights in files of diffusers, transformers and torchvision to the names of the networks here.

A table is a list of regular expressions and their replacements; all that match a name are applied, in order. Names that
match none are kept. The x4 upscaler's U-Net and the control network have the names of diffusers.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str]]

# diffusers' AutoencoderKL without its levels; query, key, value and proj_attn are what versions before 0.18 wrote
DIFFUSERS_VAE: Rules = (
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"\bmid_block\.attentions\.0\.(?:to_q|query)\.", "mid.attn_1.q."),
    (r"\bmid_block\.attentions\.0\.(?:to_k|key)\.", "mid.attn_1.k."),
    (r"\bmid_block\.attentions\.0\.(?:to_v|value)\.", "mid.attn_1.v."),
    (r"\bmid_block\.attentions\.0\.(?:to_out\.0|proj_attn)\.", "mid.attn_1.proj_out."),
    (r"\bdown_blocks\.(\d+)\.resnets\.(\d+)\.", r"down.\1.block.\2."),
    (r"\bdown_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"\bconv_shortcut\.", "nin_shortcut."),
    (r"\bconv_norm_out\.", "norm_out."),
)
# transformers' CLIPTextModel; q, k and v are stacked afterwards
TRANSFORMERS_TEXT: Rules = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
TEXT_BUFFERS = ("text_model.embeddings.position_ids", "embeddings.position_ids")  # counted by versions before 4.31
# torchvision's raft_large
TORCHVISION_RAFT: Rules = (
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"\.convnormrelu\.0\.", ".conv1."),
    (r"\.convnormrelu\.1\.", ".norm1."),
    (r"\.convnormrelu([12])\.0\.", r".conv\1."),
    (r"\.convnormrelu([12])\.1\.", r".norm\1."),
    (r"^([fc])net\.conv\.", r"\1net.conv2."),
    (r"\.motion_encoder\.convcorr([12])\.0\.", r".encoder.convc\1."),
    (r"\.motion_encoder\.convflow([12])\.0\.", r".encoder.convf\1."),
    (r"\.motion_encoder\.conv\.0\.", ".encoder.conv."),
    (r"\.recurrent_block\.convgru([12])\.conv([zrq])\.", r".gru.conv\2\1."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.0."),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


def vae_levels(levels: int) -> Rules:
    """Return the rules for the decoder's levels; diffusers counts them from the coarsest, latent diffusion from the
    finest."""
    rules = []
    for k in range(levels):
        ours = f"up.{levels - 1 - k}"
        rules.append((rf"\bup_blocks\.{k}\.resnets\.(\d+)\.", rf"{ours}.block.\1."))
        rules.append((rf"\bup_blocks\.{k}\.upsamplers\.0\.", f"{ours}.upsample."))
    return rules


def renamed_by_rules(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Return the renamed entries in their order. Raises ValueError if two have the same new name."""
    out = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name in out:
            raise ValueError(f"got two entries for {name}, expected one; the file mixes old and new names")
        out[name] = value
    return out


def autoencoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the entries of a VAE of diffusers to those of `ldm.nets.autoencoder.AutoencoderKL`.

    The four matrices of each attention are (c, c) there and 1x1 convolutions here.
    """
    levels = 1 + max((int(number) for number in re.findall(r"\bup_blocks\.(\d+)\.", "\n".join(state))), default=-1)
    out = renamed_by_rules(state, (*DIFFUSERS_VAE, *vae_levels(levels)))
    return {
        name: value[..., None, None] if value.ndim == 2 and ".attn_1." in name else value for name, value in out.items()
    }


def text_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the entries of transformers' CLIPTextModel to those of `ldm.nets.text.OpenCLIPText`: q, k, v stacked."""
    out = renamed_by_rules({k: v for k, v in state.items() if k not in TEXT_BUFFERS}, TRANSFORMERS_TEXT)
    for name in [name for name in out if ".self_attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if missing := [part for part in parts if part not in out]:
            raise ValueError(f"got no entry {missing[0]}, expected one beside {name}; the file is incomplete")
        block, _, leaf = name.partition(".self_attn.q_proj.")
        out[f"{block}.attn.in_proj_{leaf}"] = torch.cat([out.pop(part) for part in parts])
    return out


def flow_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the entries of torchvision's raft_large to those of `ldm.nets.raft.RAFT`: one norm has two names here."""
    out = renamed_by_rules(state, TORCHVISION_RAFT)
    for name in [name for name in out if name.startswith("cnet.") and ".downsample.1." in name]:
        out[name.replace(".downsample.1.", ".norm3.")] = out[name]
    return out


# Values of `names:` in an entry of `weights:`
CONVERTERS: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "diffusers_autoencoder": autoencoder_state,
    "transformers_text": text_state,
    "torchvision_raft": flow_state,
}
