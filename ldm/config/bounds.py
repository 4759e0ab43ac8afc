"""Limits on the size of what a configuration builds, since a file may ask for a million blocks."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules import module as registration

from ldm.config.errors import ConfigError
from ldm.memory import free_host_memory

MOST_MODULES = 10_000  # in what is built at once; the largest published networks have some 5,000
MOST_VALUES = 10**11  # of weights, wherever they are


@contextlib.contextmanager
def bounded(place: str) -> Iterator[None]:
    """Raise ConfigError as soon as networks built in this block have more modules or weights than fit.

    Weights on the meta device take no memory; the others must fit into the free memory, if the system reports it.
    """
    count = _Count(place)
    hooks = (
        registration.register_module_module_registration_hook(count.module),
        registration.register_module_parameter_registration_hook(count.parameter),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Count:
    def __init__(self, place: str) -> None:
        self.place, self.free = place, free_host_memory()
        self.modules = self.values = self.bytes = 0

    def module(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        self.modules += 1
        if self.modules > MOST_MODULES:
            raise ConfigError(f"{self.place}: has more than {MOST_MODULES} layers")

    def parameter(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is None or nn.parameter.is_lazy(parameter):
            return
        if parameter.numel() == 0:
            what = f"has a {type(module).__name__} of {list(parameter.shape)} weights"
            raise ConfigError(f"{self.place}: {what}, expected sizes of 1 and more")
        self.values += parameter.numel()
        self.bytes += 0 if parameter.is_meta else parameter.numel() * parameter.element_size()
        if self.values > MOST_VALUES or self.bytes > (self.free or self.bytes):
            raise ConfigError(f"{self.place}: has {self.values} weights or more, which do not fit into memory")
