"""The device that scripts/gpu_check.py measures, and the networks with random weights on it."""

import contextlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm import config
from ldm.engine.device import Peak, exact_float32, seconds_of, usable_device
from ldm.methods.words import PRECISIONS
from ldm.nets.layers import channels_last
from ldm.ops.resize import resize
from scripts.clip_flops import SIZES
from scripts.command import first_line


class Size(NamedTuple):
    """How large everything is: sides in latent pixels for `tile` and `frame`, in pixels for the others."""

    tile: int
    frame: tuple[int, int]
    clip: tuple[int, int]
    frames: int
    trained: tuple[int, int]  # frames, side
    product: int
    copied: int
    golden: tuple[str, ...]
    precisions: tuple[str, ...]
    repeat: int


CHECKS = {
    "full": Size(64, (96, 160), (180, 320), 8, (5, 512), 8192, 2**30, (), ("fp32", "bf16", "fp16"), 3),
    "toy": Size(16, (16, 16), (16, 16), 3, (2, 64), 64, 2**16, ("-k", "f_tile_weights"), ("fp32",), 0),
}


class Check:
    """A device, the size of the networks, and the networks with random weights."""

    def __init__(self, device: str | None, size: str) -> None:
        exact_float32()
        self.device, self.networks_size, self.size = torch.device(usable_device(device)), size, CHECKS[size]
        self.settings = config.load(SIZES[size])

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """The networks of the method, on the device, for inference."""
        with torch.device(self.device):
            built = {name: config.instantiate(node) for name, node in self.settings.networks.items()}
        return {name: channels_last(net.to(self.device)).eval().requires_grad_(False) for name, net in built.items()}

    @cached_property
    def bare_networks(self) -> dict[str, nn.Module]:
        """The same without values, to count their arithmetic."""
        with torch.device("meta"):
            return {name: config.instantiate(node).to("meta") for name, node in self.settings.networks.items()}

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def random(self, *shape: int, device: Any = None) -> Tensor:
        """Numbers in [0, 1), the same on every device."""
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.rand(*shape, generator=generator, device="cpu").to(device or self.device)

    def seconds(self, work: Callable[[], object], *, repeat: int = 3) -> float:
        """The best of up to `repeat` runs, after one that warms up; of one run at toy size."""
        first = seconds_of(work, self.device)
        return min((seconds_of(work, self.device) for _ in range(min(repeat, self.size.repeat))), default=first)

    def measured(self, work: Callable[[], object], *, repeat: int = 3) -> dict:
        """Seconds and peak memory of some work."""
        peak = Peak(str(self.device))
        peak.reset()
        seconds = self.seconds(work, repeat=repeat)
        return {"seconds": seconds, "peak_bytes": peak.read()}


def each(items: Iterable[tuple[str, Callable[[], object]]]) -> dict:
    """The results by name; an error is recorded in the place of a result."""
    found = {}
    for name, work in items:
        try:
            found[name] = work()
        except Exception as error:  # whatever a device raises is a result
            found[name] = {"error": f"{type(error).__name__}: {first_line(error)}"}
    return found


@contextlib.contextmanager
def inference(check: Check, precision: str):
    """As the method runs its networks."""
    dtype = PRECISIONS[precision]
    with torch.no_grad(), torch.autocast(check.device.type, dtype, enabled=dtype is not None):
        yield


def moving_clip(check: Check, frames: int, h: int, w: int) -> Tensor:
    """(T, 3, h, w) in [0, 1] on the CPU: a smooth picture that moves a pixel per frame."""
    wide = resize(check.random(1, 3, h // 4 + 2, (w + frames) // 4 + 2, device="cpu"), (h, w + frames))[0].clamp(0, 1)
    return torch.stack([wide[..., k : k + w] for k in range(frames)])
