"""k_*: the released tiled script end to end, reproduced by the preset `released`."""

import argparse

import torch
from torch import nn

from ldm import config
from ldm.engine.assemble import CONFIGS
from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.raft import RAFT
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.nets.structure import StructureEncoder
from ldm.nets.unet import UNet
from ldm.weights import checkpoint
from tests.golden_checks.case import DEVICE, Case, recipe_normal
from tests.golden_checks.unet import build
from tests.stage_one import STAGE_ONE

MEAN_LIMIT, WITHIN_ONE = 0.1, 0.999


class RecordedContext(nn.Module):
    """The stand-in for the text tower that the recording names: fixed numbers by recipe."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.context = recipe_normal("cond.emb", (1, 77, width), seed)

    def forward(self):
        return self.context


def parse(words: list[str]) -> argparse.Namespace:
    """The recorded command line, as far as it decides the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ddpm_steps", type=int, default=1000)
    parser.add_argument("--dec_w", type=float, default=0.5)
    parser.add_argument("--colorfix_type", default="nofix")
    parser.add_argument("--vqgantile_size", type=int, default=960)
    parser.add_argument("--vqgantile_stride", type=int, default=750)
    parser.add_argument("--tile_overlap", type=int, default=32)
    parser.add_argument("--upscale", type=float, default=4.0)
    parser.add_argument("--n_frames", type=int, default=5)
    return parser.parse_known_args(words)[0]


def networks(case: Case) -> dict[str, nn.Module]:
    meta = case.meta["diffusion"]
    built = {
        "unet": build(UNet, meta["unet"]),
        "structure": build(StructureEncoder, meta["struct"]),
        "autoencoder": build(AutoencoderKL, meta["vae"]),
        "flow": RAFT(model="small" if "small" in meta["flownet"] else "normal", scaling="released"),
    }
    for slot, network in built.items():
        (prefix,) = STAGE_ONE.slots[slot]
        weights = case.recipe_weights(case.meta["state_dict_diffusion"], prefix)
        checkpoint.load(network, weights, tolerated_missing=getattr(network, "constant_buffers", ()))
    built["sequence_decoder"] = build(SequenceAutoencoder, case.meta["video_vae"])
    checkpoint.load(built["sequence_decoder"], case.recipe_weights(case.meta["state_dict_video_vae"]))
    words = meta["cond"].replace(":", " ").split()
    built["text"] = RecordedContext(int(words[words.index("dim") + 1]), int(words[words.index("seed") + 1]))
    return built


def check(case: Case) -> None:
    args = parse(case.meta["args"])
    family = CONFIGS / "mgldvsr"
    settings = config.merge(config.load(family / "model.yaml"), family / "presets" / "released.yaml")
    place = "method.params"
    settings = config.override(
        settings,
        [
            f"{place}.sampling.params.steps={args.ddpm_steps}",
            f"{place}.sampling.params.guidance_scale={case.meta['guidance']}",
            f"{place}.windows.params.tile={case.meta['sample_kw']['tile_size']}",
            f"{place}.windows.params.tile_overlap={args.tile_overlap}",
            f"{place}.windows.params.n_frames={args.n_frames}",
            f"{place}.n_frames={args.n_frames}",
            f"{place}.patch={args.vqgantile_size}",
            f"{place}.stride={args.vqgantile_stride}",
            f"{place}.decoding.params.dec_w={args.dec_w}",
            f"{place}.decoding.params.color_fix={args.colorfix_type}",
        ],
    )
    assert settings.output.rounding == "truncate"
    method = config.instantiate(
        settings.method, networks={name: net.to(DEVICE) for name, net in networks(case).items()}
    )
    lq = case.tensors["frames"].cpu().permute(0, 3, 1, 2).float() / 255
    sr = method.restore(lq, upscale=args.upscale, seed=case.meta["seed_noise"])
    frames = (sr * 255).to(torch.uint8).permute(0, 2, 3, 1)  # cut off, not rounded, as released
    assert list(frames.shape) == case.meta["out_shape"]
    compare(frames, case)


def compare(frames: torch.Tensor, case: Case) -> None:
    """uint8 frames (T, H, W, 3): the recorded crop pixel by pixel, the whole picture by means of 8x8 blocks."""
    middle = [side // 2 for side in frames.shape[1:3]]
    recorded = case.tensors["out.frames_crop"].cpu()
    half = [side // 2 for side in recorded.shape[1:3]]
    crop = frames[:, middle[0] - half[0] : middle[0] + half[0], middle[1] - half[1] : middle[1] + half[1]]
    difference = (crop.int() - recorded.int()).abs().float()
    assert difference.mean() < MEAN_LIMIT, f"mean difference {difference.mean():.4f} grey levels"
    assert (difference <= 1).float().mean() >= WITHIN_ONE, f"{(difference <= 1).float().mean():.5f} within 1"
    blocks = torch.nn.functional.avg_pool2d(frames.permute(0, 3, 1, 2).float(), 8).permute(0, 2, 3, 1)
    worst = (blocks - case["out.frames_block8"].cpu()).abs()
    assert worst.mean() < MEAN_LIMIT, f"mean difference of block means {worst.mean():.4f} grey levels"


CHECKS = {"k_": check}
