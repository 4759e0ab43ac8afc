"""Build networks on the meta device, without memory or random numbers, when a file holds all their weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

NORMAL = {torch.Tensor.normal_, nn.init.normal_, nn.init.kaiming_normal_, nn.init.xavier_normal_}


class _SkipNormalInit(TorchFunctionMode):
    """Skip normal initialisation on the meta device, since its first call imports torch._dynamo (seconds)."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.randn:
            func = torch.empty
        if func in NORMAL:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Create parameters and buffers on the meta device, without values."""
    with torch.device("meta"), _SkipNormalInit():
        yield
