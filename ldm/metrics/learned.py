"""Metrics by networks and models of optional packages.

A model loads at its first frame and is kept for the following clips; so is the reason why it cannot be had, because
the packages fetch their weights from the network and may wait for long. `Unavailable` states the reason.
"""

import contextlib
import importlib
import importlib.metadata
import math
import os
import socket
import sys
import textwrap
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ldm.metrics.fidelity import unit_batch
from ldm.metrics.look import Unavailable

Score = Callable[..., float]  # of a frame, (H, W, 3) uint8, and for some of another
NETS = ("alex", "vgg", "squeeze")  # of LPIPS
PATIENCE = 10  # seconds that a connection may be silent, for each address of a host
HUB = "https://huggingface.co"
REMEDIES = {"pkg_resources": "pip install 'setuptools<82'"}  # for modules whose package has another name
_models: dict[tuple, object] = {}  # loaded models, or the reason (text) why one cannot be had


def version_of(package: str, *, pinned: str = "") -> str:
    """Return the version of an installed package.

    Raises Unavailable where it is not installed; the message names `pinned`, such as "==0.0.2", if one is needed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"{package} is not installed: pip install {package}{pinned}") from error


def lpips_score(net: str, device: str) -> Score:
    """LPIPS v0.1 (Zhang et al. 2018) between two frames by the package `lpips`, which names its networks."""

    def load(module):
        model = module.LPIPS(net=net, verbose=False).to(device).eval()
        return lambda one, other: model(one, other, normalize=True)

    return _score("lpips", "lpips", load, key=net, device=device)


def dists_score(device: str) -> Score:
    """DISTS (Ding et al. 2020) between two frames by the package `DISTS-pytorch`."""
    return _score("DISTS-pytorch", "DISTS_pytorch", lambda module: module.DISTS().to(device).eval(), device=device)


def pyiqa_score(name: str, device: str) -> Score:
    """A metric without reference by the package `pyiqa`, with its name and defaults."""

    def load(module):
        return module.create_metric(name, device=torch.device(device))

    return _score("pyiqa", "pyiqa", load, key=name, device=device)


def brisque_score() -> Score:
    """BRISQUE (Mittal et al. 2012) by the package `brisque`, with the model in its wheel; on the CPU."""

    def load(module):
        model = module.BRISQUE(url=False)
        features = model.calculate_brisque_features

        def as_numbers(*args, **settings) -> np.ndarray:
            """Version 0.2.0 mixes numbers and arrays of one number, which NumPy 2.4 refuses."""
            return np.array([np.ravel(value)[0] for value in features(*args, **settings)], dtype=np.float64)

        model.calculate_brisque_features = as_numbers
        return model.score

    return _score("brisque", "brisque", load, vision=False)


def forget() -> None:
    """Drop all models and reasons."""
    _models.clear()


@cache
def hub_answers() -> bool:
    """Whether the Hugging Face Hub, or the mirror that HF_ENDPOINT names, can be reached."""
    asked = urllib.request.Request(os.environ.get("HF_ENDPOINT") or HUB, method="HEAD")
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE / 3):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _score(package: str, module: str, load: Callable, *, key: str = "", device: str = "", vision: bool = True) -> Score:
    """A function of frames; `load(module)` gives the model of tensors, or of arrays without a `device`."""

    def score(*frames: np.ndarray) -> float:
        model = _kept((package, key, device), lambda: _load(package, module, load, vision))
        inputs = [unit_batch(frame).to(device) for frame in frames] if device else frames
        with torch.inference_mode():
            value = _guarded(package, lambda: float(model(*inputs)))
        if not math.isfinite(value):  # leaving the frame out would bias the mean
            raise Unavailable(f"{package} gave {value} for a frame")
        return value

    return score


def _kept(key: tuple, load: Callable):
    """The model of a key, loaded once. Raises Unavailable with the same reason every time."""
    if key not in _models:
        try:
            _models[key] = load()
        except Unavailable as error:
            _models[key] = str(error)
    if isinstance(_models[key], str):
        raise Unavailable(_models[key])
    return _models[key]


def _load(package: str, module: str, load: Callable, vision: bool):
    """A model; its weights are fetched with little patience, and what it prints goes to stderr."""
    version_of(package)
    if vision:
        _kept(("torchvision",), _import_torchvision)
    if package == "pyiqa" and "HF_HUB_OFFLINE" not in os.environ and not hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read at the import; without it each file is asked for six times
    with _patient(), contextlib.redirect_stdout(sys.stderr):
        return _guarded(package, lambda: load(importlib.import_module(module)))


def _import_torchvision():
    """Raises Unavailable where torchvision, which most packages need, cannot be imported."""
    try:
        return importlib.import_module("torchvision")
    except Exception as error:
        fix = "take the torchvision build of your torch (docs/METRICS.md)"
        raise Unavailable(f"torchvision does not import, {fix}: {_line(error)}") from error


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """A time limit for silent connections: the packages set none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _guarded(package: str, act: Callable):
    """The result of a package's code; any error becomes the reason of an `Unavailable`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the packages' own code
            return act()
    except Unavailable:
        raise
    except Exception as error:
        folder = str(torch.hub.get_dir()).replace(str(Path.home()), "~", 1)
        hint = REMEDIES.get(getattr(error, "name", None))
        if hint is None and isinstance(error, OSError | EOFError):
            hint = f"it looks for its weights in {folder} and the Hugging Face cache, and fetches them at first use"
        raise Unavailable(f"{package} failed: {_line(error)}" + (f"; {hint}" if hint else "")) from error


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return textwrap.shorten(f"{type(error).__name__}: {lines[0]}", 120, placeholder=" ...")
