"""Shared by tests of methods and their assembly: toy networks with non-zero weights, and moving clips."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import config
from ldm.engine.assemble import CONFIGS
from ldm.nets.autoencoder import posterior
from ldm.streaming.pipeline import Frame

PLAIN = ("min_size", "precision", "scale_factor", "n_frames", "patch", "stride")  # below `method.params`
TOY = Path(__file__).with_name("toy.yaml")


def settings(*words: str, preset: str | None = None):
    """The toy configuration changed by overrides; `min_size=x` and `windows.x=y` stand for what is below `method`."""
    loaded = config.load(TOY)
    if preset:
        loaded = config.merge(loaded, CONFIGS / "mgldvsr" / "presets" / f"{preset}.yaml")
    return config.override(loaded, [full_word(word) for word in words])


def full_word(word: str) -> str:
    key, equals, value = word.partition("=")
    own = key.split(".")[0] in ("sampling", "windows", "decoding", *PLAIN)
    return f"+method.params.{key.replace('.', '.params.')}{equals}{value}" if own else word


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Initialise weights as in a trained network: no layer is zero, and each preserves the scale of its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("temporal_alpha"):
                weight.fill_(0.4)
            elif weight.ndim > 1:
                weight.copy_(noise / weight[0].numel() ** 0.5)
            else:
                weight.copy_(0.1 * noise + (name.endswith("weight")))
    return module


@lru_cache
def _networks() -> dict[str, nn.Module]:
    built = config.instantiate(settings().networks)
    return {name: randomise(module, seed) for seed, (name, module) in enumerate(sorted(built.items()))}


def method(*words: str, preset: str | None = None, **networks: nn.Module):
    """A toy method; `networks` replace those of the toy configuration."""
    return config.instantiate(settings(*words, preset=preset).method, networks=_networks() | networks)


def clip(frames: int = 5, h: int = 16, w: int = 16, *, seed: int = 0, step: int = 1) -> Tensor:
    """(T, 3, h, w) in [0, 1]: a smooth random image that moves `step` pixels to the left per frame."""
    coarse = torch.rand(1, 3, h // 4 + 2, (w + step * frames) // 4 + 2, generator=torch.Generator().manual_seed(seed))
    wide = F.interpolate(coarse, size=(h, w + step * frames), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return torch.stack([wide[..., step * i : step * i + w] for i in range(frames)])


class PixelUNet(nn.Module):
    """A pixelwise denoiser whose prediction depends on all its inputs."""

    downsampling = 1

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, t, context, maps, *, num_frames):
        assert len(x) % num_frames == 0
        return torch.tanh(self.gain * x + maps[0] * t / 1000)


class PixelStructure(nn.Module):
    def forward(self, x, t):
        return [x.flip(1)]


class BlockAutoencoder(nn.Module):
    """An autoencoder whose latents depend only on 2x2 pixels; the decoder inverts it and adds the LQ features."""

    downsampling = 2

    def __init__(self):
        super().__init__()
        self.post_quant_conv = nn.Conv2d(4, 4, 1)

    posterior = staticmethod(posterior)

    def moments(self, x):
        small = F.avg_pool2d(x, 2)
        return torch.cat([small, small.mean(1, keepdim=True), torch.full_like(small, -4), -4 + small[:, :1]], 1)


class ImageBlocks(BlockAutoencoder):
    def encode(self, x):
        return self.moments(x)


class ClipBlocks(BlockAutoencoder):
    def encode(self, x):
        return self.moments(x), [x]

    def decode(self, z, features, *, num_frames, fusion_w):
        return F.interpolate(z[:, :3], scale_factor=2, mode="nearest") + fusion_w * features[0]


def pixelwise(*words, preset=None):
    """The method with pixelwise networks, so that results must not depend on tiles and windows."""
    nets = {
        "unet": PixelUNet(),
        "structure": PixelStructure(),
        "autoencoder": ImageBlocks(),
        "sequence_decoder": ClipBlocks(),
    }
    return method(*words, preset=preset, **nets)


def scene_ends_of(run, lq):
    """Return the numbers of the frames with which scenes end, of a clip (T, 3, h, w) through a pipeline."""
    frames = []
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None]}))
        frames += run.pull()
    return [frame.number for frame in (*frames, *run.pull(finish=True)) if frame.last]
