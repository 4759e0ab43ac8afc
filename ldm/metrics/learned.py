"""Measures by networks and models of others, through packages that a user may install: none is required.

Each loads at its first frame and is kept for the clips that follow. Where a package or its weights are not there,
`Unavailable` says so.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ldm.metrics.look import Unavailable

Score = Callable[..., float]  # of a frame, (H, W, 3) uint8, and for some of another
NETS = ("alex", "vgg", "squeeze")  # of LPIPS


def version_of(package: str) -> str:
    """The version of an installed package. Raises Unavailable where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"{package} is not installed") from error


def lpips_score(net: str, device: str) -> Score:
    """LPIPS v0.1 (Zhang et al. 2018) between two frames by the package `lpips`: the networks' names are its own."""
    return lambda one, other: _value(_lpips, (net, device), one, other, device)


def dists_score(device: str) -> Score:
    """DISTS (Ding et al. 2020) between two frames by the package `DISTS-pytorch`."""
    return lambda one, other: _value(_dists, (device,), one, other, device)


def pyiqa_score(name: str, device: str) -> Score:
    """A measure without reference by the package `pyiqa`, under the name and with the defaults it has there."""
    return lambda frame: _value(_pyiqa, (name, device), frame, None, device)


def brisque_score() -> Score:
    """BRISQUE (Mittal et al. 2012) by the package `brisque`, with the model in its wheel; on the CPU."""

    def score(frame: np.ndarray) -> float:
        return _guarded("brisque", lambda: float(_brisque().score(frame)))

    return score


@cache
def _lpips(net: str, device: str):
    module = _package("lpips", "lpips")
    model = _guarded("lpips", lambda: module.LPIPS(net=net, verbose=False).to(device).eval())
    return lambda one, other: model(one, other, normalize=True)


@cache
def _dists(device: str):
    module = _package("DISTS_pytorch", "DISTS-pytorch")
    return _guarded("DISTS-pytorch", lambda: module.DISTS().to(device).eval())


@cache
def _pyiqa(name: str, device: str):
    module = _package("pyiqa", "pyiqa")
    return _guarded("pyiqa", lambda: module.create_metric(name, device=torch.device(device)))


@cache
def _brisque():
    module = _package("brisque", "brisque")
    model = _guarded("brisque", lambda: module.BRISQUE(url=False))
    features = model.calculate_brisque_features

    def as_numbers(*args, **settings) -> np.ndarray:
        """Version 0.2.0 returns arrays of one number among the numbers, which NumPy 2.4 no longer takes for numbers."""
        return np.array([np.ravel(value)[0] for value in features(*args, **settings)], dtype=np.float64)

    model.calculate_brisque_features = as_numbers
    return model


def _package(module: str, package: str):
    version_of(package)
    return _guarded(package, lambda: importlib.import_module(module))


def _guarded(package: str, act: Callable):
    """What a package does; whatever it fails with, from missing weights to a size it cannot take, is the reason."""
    try:
        return act()
    except Unavailable:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise Unavailable(f"{package} failed: {type(error).__name__}: {said}"[:160]) from error


def _value(load: Callable, settings: tuple, one: np.ndarray, other: np.ndarray | None, device: str) -> float:
    """The value of a model for one frame, or for two."""
    model = load(*settings)
    frames = [_batch(frame, device) for frame in (one, other) if frame is not None]

    def act() -> float:
        with torch.inference_mode():
            return float(model(*frames))

    return _guarded(load.__name__.lstrip("_"), act)


def _batch(frame: np.ndarray, device: str) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float().div(255).to(device)
