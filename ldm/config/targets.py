"""Find the class or function that a `target:` names, if a configuration may build it.

A module of this project lists the names of its targets in `BUILDABLE`. Of other libraries, only the layers of
`torch.nn` and `pytorch_lightning.Trainer` can be built. Modules that the user trusts (`--trust MODULE`) may define any
target.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from ldm.config.errors import ConfigError, brief, first_line, nearest

OWN = ("ldm", "basicsr_deg")  # the packages of this project
TRAINER = "pytorch_lightning.Trainer"
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
EXAMPLE = "a dotted name such as ldm.nets.unet.UNet"


def find_target(target: Any, place: str, trust: Iterable[str] = ()) -> Callable:
    """Return the class or function that `target` names. Raises ConfigError if a configuration may not build it.

    `trust` are modules that the user trusts, including their submodules.
    """
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        raise ConfigError(f"{place}.target: got {brief(target)}, expected {EXAMPLE}")
    module, _, name = target.rpartition(".")
    if module == "torch.nn":
        return _layer(name, place)
    if target == TRAINER:
        return importlib.import_module(module).Trainer
    trusted = _is_below(module, trust)
    if not trusted and not _is_below(module, OWN):
        ours = nearest(target, [TRAINER, "torch.nn", *OWN]) if target.count(".") == 1 else ""
        what = f"{brief(target)} is not a class of this project{ours}"
        raise ConfigError(f"{place}.target: {what}; code of your own needs --trust MODULE, which lets it run")
    home = _imported(module, place)
    return _defined(home, name, place) if trusted else _declared(home, name, place)


def _is_below(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _layer(name: str, place: str) -> type:
    """Return a layer of torch.nn. Raises ConfigError."""
    nn = importlib.import_module("torch.nn")
    layers = {
        key: found
        for key, found in vars(nn).items()
        if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("torch.nn.modules.")
    }
    if name not in layers:
        raise ConfigError(
            f"{place}.target: torch.nn has no layer {brief(name)}{nearest(name, layers, prefix='torch.nn.')}"
        )
    return layers[name]


def _imported(name: str, place: str) -> ModuleType:
    """Import a module of this project, or a trusted one. Raises ConfigError."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = getattr(error, "name", None) or ""
        if not (name == missing or name.startswith(f"{missing}.")):
            raise ConfigError(f"{place}.target: {name} cannot be imported: {first_line(error)}") from error
        above, _, leaf = missing.rpartition(".")
        if not above:
            raise ConfigError(f"{place}.target: there is no module {missing!r}") from error
        parent = importlib.import_module(above)
        known = [found.name for found in pkgutil.iter_modules(getattr(parent, "__path__", ()))]
        where = nearest(leaf, known, prefix=f"{above}.")
        raise ConfigError(f"{place}.target: {above} has no {leaf!r}{where}") from error


def _declared(module: ModuleType, name: str, place: str) -> Callable:
    """Return a target that a module of this project declares buildable. Raises ConfigError."""
    buildable = getattr(module, "BUILDABLE", ())
    if name in buildable:
        return _defined(module, name, place)
    elsewhere = getattr(vars(module).get(name), "__module__", module.__name__)
    if elsewhere != module.__name__ and name in getattr(importlib.import_module(elsewhere), "BUILDABLE", ()):
        where = f"; it is defined in {elsewhere}: write {elsewhere}.{name}"
    else:
        where = nearest(name, buildable, prefix=f"{module.__name__}.")
    raise ConfigError(f"{place}.target: {module.__name__} has no {name!r} that can be built{where}")


def _defined(module: ModuleType, name: str, place: str) -> Callable:
    """Return a class or function that is defined in a module. Raises ConfigError."""
    found = vars(module).get(name)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = nearest(name, known, prefix=f"{module.__name__}.")
        raise ConfigError(f"{place}.target: {module.__name__} has no class or function {name!r}{near}")
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
    if home != f"{module.__name__}.{name}":
        raise ConfigError(f"{place}.target: {module.__name__}.{name} is defined as {home}; name it so")
    return found
