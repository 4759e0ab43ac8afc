"""What the tests of scripts share: models with random weights in the released files' names, and small clips."""

import functools

import cv2
import numpy as np
import torch

from ldm import config, video
from ldm.methods.mgld.method import MGLD
from ldm.streaming.pipeline import Each, Pipeline
from ldm.weights import checkpoint
from tests.stage_one import STAGE_ONE

PLACE = "ldm.methods.mgld.settings"
NETWORKS = {
    "autoencoder": ("ldm.nets.autoencoder.AutoencoderKL", {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1}),
    "sequence_decoder": (
        "ldm.nets.sequence_decoder.SequenceAutoencoder",
        {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "num_fuse_block": 1},
    ),
    "unet": (
        "ldm.nets.unet.UNet",
        {
            "model_channels": 32,
            "channel_mult": [1, 1],
            "num_res_blocks": 1,
            "attention_resolutions": [2],
            "num_head_channels": 32,
            "context_dim": 8,
            "semb_channels": 32,
        },
    ),
    "structure": (
        "ldm.nets.structure.StructureEncoder",
        {
            "model_channels": 32,
            "out_channels": 32,
            "num_res_blocks": 1,
            "attention_resolutions": [2],
            "channel_mult": [1, 1],
            "num_heads": 2,
        },
    ),
    "text": ("ldm.nets.text.FixedContext", {"tokens": 1, "width": 8}),
}
FLOWS = {
    "dis": {"target": "ldm.ops.dis.DISFlow", "params": {"preset": "medium"}},
    "raft": {"target": "ldm.nets.raft.RAFT", "params": {"model": "small", "iterations": 1}},
}


def settings(flow="dis"):
    """A model's configuration like assets/tiny/model.yaml, but as narrow as the networks allow."""
    windows = {"n_frames": 4, "frame_overlap": 2, "tile": 16, "tile_overlap": 4}
    windows = {"target": "ldm.methods.windows.Windows", "params": windows}
    networks = {name: {"target": target, "params": dict(params)} for name, (target, params) in NETWORKS.items()}
    method = {
        "scale_factor": 0.5,
        "sampling": {
            "target": f"{PLACE}.Sampling",
            "params": {"steps": 2, "guidance": "paper", "guidance_scale": 0.01},
        },
        "windows": windows,
        "decoding": {"target": f"{PLACE}.Decoding", "params": {"windows": windows, "dec_w": 0.5, "color_fix": "adain"}},
        "min_size": 32,
        "precision": "fp32",
    }
    return {
        "family": "mgldvsr",
        "flags": {"vqgantile_size": {"divide": 4}, "vqgantile_stride": {"divide": 4}},
        "flow": flow,
        "flows": FLOWS,
        "networks": networks | {"flow": "${flows.${flow}}"},
        "method": {"target": "ldm.methods.mgld.method.MGLD", "params": method},
        "output": {"rounding": "nearest"},
    }


@functools.cache
def states(flow="dis"):
    """Random weights of both files, {name in the file: tensor}: not zero where training starts from zero."""
    torch.manual_seed(0)
    networks = config.instantiate(settings(flow)["networks"] | {"flow": FLOWS[flow]})
    one = {}
    for slot, prefixes in STAGE_ONE.slots.items():
        own = networks[slot].state_dict()
        one |= {prefix + name: value for prefix in prefixes for name, value in own.items()}
    for file in (one, two := networks["sequence_decoder"].state_dict()):
        for name, value in file.items():
            if not value.any() and name.endswith("weight"):
                file[name] = torch.randn_like(value) * 0.05
    return one, two


def make_model(folder, flow="dis"):
    """A folder of weights with its card, as --weights takes it."""
    folder.mkdir(parents=True)
    one, two = states(flow)
    checkpoint.save(folder / "mgldvsr_unet.safetensors", one)
    checkpoint.save(folder / "video_vae_cfw.safetensors", two)
    config.save(settings(flow), folder / "model.yaml")
    return folder


def make_frames(count, height=24, width=32):
    """A soft pattern that moves by two pixels a frame: (h, w, 3) uint8 each."""
    y, x = np.mgrid[:height, :width]
    waves = (np.stack([np.sin((x - 2 * t) / 5), np.cos(y / 4), np.sin((x + y - 2 * t) / 9)], -1) for t in range(count))
    return [np.uint8(127.5 + 100 * wave) for wave in waves]


def make_clip(path, count=6, rate=25, size=(24, 32)):
    """A video, or a folder of PNGs named 3.png, 4.png ..., at `path`."""
    names = [f"{number}.png" for number in range(3, count + 3)]
    with video.open_writer(path, size=size, rate=rate, names=None if path.suffix else names) as writer:
        for frame in make_frames(count, *size):
            writer.write(frame)
    return path


def make_mixed(path):
    """A folder of two PNGs of different size."""
    path.mkdir(parents=True)
    for width in (32, 36):
        assert cv2.imwrite(str(path / f"{width}.png"), np.zeros((24, width, 3), np.uint8))
    return path


def doubled(lq):
    """Values (1, 3, h, w) at twice the size, each pixel repeated."""
    return lq.repeat_interleave(2, -1).repeat_interleave(2, -2)


def without_networks(monkeypatch, result=doubled):
    """Put `result` of the LQ values in [0, 1] in place of the method's work, for tests of what surrounds it."""

    def stream(self, *args, **options):
        return Pipeline([Each(lambda frame: frame.put(sr=result(frame["lq"].float() / 255)))])

    monkeypatch.setattr(MGLD, "stream", stream)


def left_behind(folder):
    """Names of everything below a folder, what is hidden included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
