"""Shared by the tests of trainings: both released commands at toy width, and the files of a run."""

import csv
from pathlib import Path

import cv2
import numpy as np
import torch

import main
from basicsr_deg.clips import RenderedScenes
from basicsr_deg.latent_clips import write_latent_clip

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TINY = CONFIGS / "tiny"
COMMANDS = {
    1: [CONFIGS / "mgldvsr/mgldvsr_512_realbasicvsr_deg.yaml", CONFIGS / "mgldvsr/toy_stage1.yaml"],
    2: [CONFIGS / "video_vae/video_autoencoder_kl_64x64x4_resi.yaml", CONFIGS / "video_vae/toy_stage2.yaml"],
}
NARROW = {  # the smallest networks that can be trained: one level, small clips, no pictures
    1: {
        "networks.unet.params": {"channel_mult": [1], "attention_resolutions": [1]},
        "networks.structure.params": {"channel_mult": [1], "attention_resolutions": [1]},
        "networks.autoencoder.params": {"ch_mult": [1, 1]},
        "pictures": {"every": 0},
    },
    2: {"networks.sequence_decoder.params": {"ch_mult": [1, 1]}, "pictures": {"every": 0}},
}
SHORT = {1: ["gt_size=32", "num_frames=2"], 2: ["num_frames=2"]}


def narrow(stage: int) -> list[str]:
    pairs = [(place, key, value) for place, group in NARROW[stage].items() for key, value in group.items()]
    return [f"{place}.{key}={value}" for place, key, value in pairs] + SHORT[stage]


def command(stage: int, data: list[str], *words: str, folder: Path, name: str = "toy") -> list[str]:
    """The released command of a stage, followed by overrides for toy size."""
    flags = ["--gpus", "", "--name", name, "--scale_lr", "False", "--logdir", str(folder / "logs")]
    return ["--train", "--base", *map(str, COMMANDS[stage]), *flags, *data, *words]


def train(stage: int, data: list[str], *words: str, folder: Path, name: str = "toy") -> Path:
    """Train the smallest networks to the end and return the run folder."""
    assert main.main(command(stage, data, *narrow(stage), *words, folder=folder, name=name)) == 0
    return run_of(folder, name)


def run_of(folder: Path, name: str = "toy") -> Path:
    (run,) = (folder / "logs").glob(f"*_{name}")
    return run


def rows(run: Path, file: str = "metrics.csv") -> list[dict[str, float]]:
    """Logged values, without empty ones and the epochs of Lightning."""
    read = csv.DictReader((run / file).read_text().splitlines())
    return [{key: float(value) for key, value in row.items() if value and key != "epoch"} for row in read]


def saved(run: Path, name: str = "last") -> dict:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def differing(a, b, place: str = "") -> list[str]:
    """Paths at which two trees of tensors and numbers are not bitwise equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for key in a for line in differing(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [line for k, pair in enumerate(zip(a, b, strict=True)) for line in differing(*pair, f"{place}.{k}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [place]


def learned(checkpoint: dict) -> dict:
    """The entries of a checkpoint that determine the next step."""
    names = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")
    return {name: checkpoint[name] for name in names if name in checkpoint}


def write_clips(root: Path, *, count: int = 3, frames: int = 3, size: int = 48) -> list[str]:
    """Write a folder of image clips; returns the overrides that train on it."""
    scenes = RenderedScenes(length=count, size=size)
    for number in range(count):
        folder = root / f"clip{number}"
        folder.mkdir(parents=True)
        for k, frame in enumerate(scenes.clip(number, np.random.default_rng(number), frames)):
            assert cv2.imwrite(str(folder / f"{k:08d}.png"), frame[..., ::-1])
    return [f"dataroot_gt={root}"]


def write_set(root: Path, *, count: int = 3, frames: int = 2, size: int = 32, shrink: int = 2) -> list[str]:
    """Write a stage-2 data set of noise, as scripts/make_latents.py does; returns the overrides that train on it."""
    rng = np.random.default_rng(0)
    for number in range(count):
        gt = rng.integers(0, 256, (frames, size, size, 3), np.uint8)
        latent = rng.normal(size=(frames, 4, size // shrink, size // shrink)).astype(np.float32)
        write_latent_clip(root, f"clip{number}", {"gt": gt, "lq": gt[:, ::4, ::4], "latent": latent})
    return [f"dataroot_{key}={root / kind}" for key, kind in (("gt", "gt"), ("lq", "lq"), ("lt", "latent"))]
