"""Upscale-A-Video at toy width: a folder of weights as released, with the shipped configuration made small."""

from dataclasses import replace
from pathlib import Path

import torch

from ldm import config
from ldm.engine.assemble import CONFIGS
from ldm.methods.contract import Request
from ldm.streaming.pipeline import Frame
from ldm.weights import checkpoint
from tests.methods.toy import randomise

SIZE = (8, 12)  # of small clips
CARD = CONFIGS / "upscale_a_video" / "model.yaml"
VAE = {"block_out_channels": [8, 8, 32], "layers_per_block": 1, "norm_num_groups": 4}
UNET = {
    "block_out_channels": [32, 64], "layers_per_block": 1, "attention": [False, True], "num_heads": 2,
    "only_cross_attention": [True, False], "cross_attention_dim": 16, "num_class_embeds": 400, "norm_num_groups": 8,
    "down_temporal_idx": [0, 1], "up_temporal_idx": [0, 1],
}  # fmt: skip
SMALL = {
    "include": ["upscale_a_video/model.yaml"],
    "flow": "dis",
    "vaes": {"vae_3d": {"params": VAE}, "vae_video": {"params": VAE | {"condition_channels": 32}}},
    "networks": {"unet": {"params": UNET}, "text": {"params": {"width": 16, "layers": 1, "heads": 2}}},
    "method": {
        "params": {
            "scale_factor": 0.5,
            "sampling": {"params": {"steps": 2, "noise_level": 20, "context": 2}},
            "windows": {"params": {"n_frames": 3, "frame_overlap": 1, "tile": 16, "tile_overlap": 8}},
            "decoding": {
                "params": {"windows": {"params": {"n_frames": 3, "frame_overlap": 1, "tile": 16, "tile_overlap": 8}}}
            },
            "min_size": 8,
        }
    },
}
FILES = {"unet": "unet/unet_video", "vae_3d": "vae/vae_3d", "vae_video": "vae/vae_video", "text": "text_encoder/model"}


def transformers_names(state: dict) -> dict:
    """The text tower's weights as transformers' CLIPTextModel names them."""
    out = {}
    for name, value in state.items():
        name = name.replace("transformer.resblocks.", "encoder.layers.").replace("attn.out_proj", "self_attn.out_proj")
        name = name.replace("ln_final", "final_layer_norm").replace("ln_", "layer_norm")
        name = name.replace("mlp.c_fc", "mlp.fc1").replace("mlp.c_proj", "mlp.fc2")
        name = name.replace("token_embedding", "embeddings.token_embedding")
        name = name.replace("positional_embedding", "embeddings.position_embedding.weight")
        if ".attn.in_proj_" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                out[f"text_model.{name.replace('.attn.in_proj_', f'.self_attn.{letter}_proj.')}"] = part
        else:
            out[f"text_model.{name}"] = value
    return out


def write_weights(folder: Path, *, card: bool = True) -> Path:
    """A folder with the files of the release at toy width, random but for what must not be; with its `model.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save(SMALL, folder / "model.yaml")
    settings = config.load(folder / "model.yaml")
    nodes = {"unet": settings.networks.unet, "text": settings.networks.text, **settings.vaes}
    for seed, (name, file) in enumerate(FILES.items()):
        torch.manual_seed(seed)
        state = randomise(config.instantiate(nodes[name]), seed).state_dict()
        path = folder / f"{file}.safetensors"
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(path, transformers_names(state) if name == "text" else state)
    if not card:
        (folder / "model.yaml").unlink()
    return folder


def changed(method, *, kind=None, **settings):
    """The method with settings of `sampling` by name, and others of its own."""
    own = {name: getattr(method, name) for name in ("networks", "scale_factor", "windows", "decoding", "words")}
    sampling = replace(method.sampling, **settings.pop("sampling", {}))
    return (kind or type(method))(**own | {"min_size": 8, "sampling": sampling} | settings)


def restored(method, lq, **request):
    """Frames of any size, so that latents can be few."""
    run = method.stream(Request(tuple(lq.shape[-2:]), len(lq), **request))
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None]}))
    return torch.cat([frame["sr"] for frame in run.pull(finish=True)])


def stopped_everywhere(method, lq, *, seed):
    """As `restored`, by a new stream after every frame and, at the end, after every unit of work."""
    request, out = Request(tuple(lq.shape[-2:]), len(lq), seed=seed), []
    run = method.stream(request)
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None]}))
        out += list(run.pull())
        state, run = run.state(), method.stream(request)
        run.resume(state)
    for _ in range(9):
        out += list(run.pull(finish=True, units=1))
        if not run.frames_held:
            break
        state, run = run.state(), method.stream(request)
        run.resume(state)
    return torch.cat([frame["sr"] for frame in out])
