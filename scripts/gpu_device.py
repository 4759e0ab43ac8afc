"""The device that scripts/gpu_check.py measures, with networks of random weights."""

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
    """Sizes of the measurements; `tile` and `frame` in latent pixels, `clip` and `trained` in pixels."""

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
        """Networks of the method for inference, on the device."""
        with torch.device(self.device):
            built = {name: config.instantiate(node) for name, node in self.settings.networks.items()}
        return {name: channels_last(net.to(self.device)).eval().requires_grad_(False) for name, net in built.items()}

    @cached_property
    def bare_networks(self) -> dict[str, nn.Module]:
        """The same networks on the meta device, for counting FLOPs."""
        with torch.device("meta"):
            return {name: config.instantiate(node).to("meta") for name, node in self.settings.networks.items()}

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def random(self, *shape: int, device: Any = None) -> Tensor:
        """Return uniform random numbers in [0, 1), the same on every device."""
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.rand(*shape, generator=generator, device="cpu").to(device or self.device)

    def seconds(self, work: Callable[[], object], *, repeat: int = 3) -> float:
        """Return the shortest duration of `repeat` runs after a warm-up run; at toy size, that of a single run."""
        first = seconds_of(work, self.device)
        return min((seconds_of(work, self.device) for _ in range(min(repeat, self.size.repeat))), default=first)

    def measured(self, work: Callable[[], object], *, repeat: int = 3) -> dict:
        """Return {"seconds", "peak_bytes"} of `work()`."""
        peak = Peak(str(self.device))
        peak.reset()
        seconds = self.seconds(work, repeat=repeat)
        return {"seconds": seconds, "peak_bytes": peak.read()}


def each(items: Iterable[tuple[str, Callable[[], object]]]) -> dict:
    """Call each function and return the results by name; an error is recorded in place of a result."""
    found = {}
    for name, work in items:
        try:
            found[name] = work()
        except Exception as error:  # whatever a device raises is a result
            found[name] = {"error": f"{type(error).__name__}: {first_line(error)}"}
    return found


@contextlib.contextmanager
def inference(check: Check, precision: str):
    """Context in which the method runs its networks: no gradients, autocast to `precision`."""
    dtype = PRECISIONS[precision]
    with torch.no_grad(), torch.autocast(check.device.type, dtype, enabled=dtype is not None):
        yield


def moving_clip(check: Check, frames: int, h: int, w: int) -> Tensor:
    """Return a smooth picture that moves by one pixel per frame: (T, 3, h, w) in [0, 1] on the CPU."""
    wide = resize(check.random(1, 3, h // 4 + 2, (w + frames) // 4 + 2, device="cpu"), (h, w + frames))[0].clamp(0, 1)
    return torch.stack([wide[..., k : k + w] for k in range(frames)])
