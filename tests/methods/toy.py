"""What the tests of the method and of its assembly share: toy networks with weights that matter, and moving clips."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import config
from ldm.engine.assemble import PRESETS

TOY = Path(__file__).with_name("toy.yaml")


def settings(*words: str, preset: str | None = None):
    """The toy configuration changed by overrides; `min_size=x` and `windows.x=y` stand for what is below `method`."""
    loaded = config.load(TOY)
    if preset:
        loaded = config.merge(loaded, PRESETS / f"{preset}.yaml")
    return config.override(loaded, [full_word(word) for word in words])


def full_word(word: str) -> str:
    key, equals, value = word.partition("=")
    own = key.split(".")[0] in ("sampling", "windows", "decoding", "patches", "min_size", "precision", "scale_factor")
    return f"method.params.{key.replace('.', '.params.')}{equals}{value}" if own else word


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights as of a trained network: no layer is zero, each keeps the size of its input."""
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
    """(T, 3, h, w) in [0, 1]: a smooth random picture that moves `step` pixels to the left from frame to frame."""
    coarse = torch.rand(1, 3, h // 4 + 2, (w + step * frames) // 4 + 2, generator=torch.Generator().manual_seed(seed))
    wide = F.interpolate(coarse, size=(h, w + step * frames), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return torch.stack([wide[..., step * i : step * i + w] for i in range(frames)])
