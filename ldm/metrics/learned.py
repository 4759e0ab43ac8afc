"""Metrics computed by models of optional packages.

A model is loaded with the first frame and cached for the following clips. If it cannot be loaded, the reason is cached
instead, since packages may wait long for the network when they download their weights. `Unavailable` has the reason.
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
from ldm.metrics.scored_frame import Unavailable

Score = Callable[..., float]  # of a frame (H, W, 3) uint8, or of two
NETS = ("alex", "vgg", "squeeze")  # of LPIPS
TIMEOUT = 10  # seconds without data from a connection, for each address of a host
HUB = "https://huggingface.co"
REMEDIES = {"pkg_resources": "pip install 'setuptools<82'"}  # for modules whose package has another name
_models: dict[tuple, object] = {}  # loaded models, or the reason (text) why one cannot be loaded


def version_of(package: str, *, pinned: str = "") -> str:
    """Return the version of an installed package.

    Raises Unavailable where it is not installed; the message names `pinned`, such as "==0.0.2", if one is needed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"{package} is not installed: pip install {package}{pinned}") from error


def lpips_score(net: str, device: str) -> Score:
    """LPIPS v0.1 (Zhang et al. 2018) between two frames by the package `lpips`; `net` is one of `NETS`."""

    def load(module):
        model = module.LPIPS(net=net, verbose=False).to(device).eval()
        return lambda one, other: model(one, other, normalize=True)

    return _score("lpips", "lpips", load, key=net, device=device)


def dists_score(device: str) -> Score:
    """DISTS (Ding et al. 2020) between two frames by the package `DISTS-pytorch`."""
    return _score("DISTS-pytorch", "DISTS_pytorch", lambda module: module.DISTS().to(device).eval(), device=device)


def pyiqa_score(name: str, device: str) -> Score:
    """No-reference metric of the package `pyiqa`, by its name there and with its defaults."""

    def load(module):
        return module.create_metric(name, device=torch.device(device))

    return _score("pyiqa", "pyiqa", load, key=name, device=device)


def brisque_score() -> Score:
    """BRISQUE (Mittal et al. 2012) by the package `brisque`, with the model in its wheel; on the CPU."""

    def load(module):
        model = module.BRISQUE(url=False)
        features = model.calculate_brisque_features

        def as_numbers(*args, **settings) -> np.ndarray:
            """Features as numbers; version 0.2.0 mixes them with arrays of length 1, which NumPy 2.4 refuses."""
            return np.array([np.ravel(value)[0] for value in features(*args, **settings)], dtype=np.float64)

        model.calculate_brisque_features = as_numbers
        return model.score

    return _score("brisque", "brisque", load, vision=False)


@cache
def hub_is_reachable() -> bool:
    """Whether the Hugging Face Hub, or the mirror in HF_ENDPOINT, can be reached."""
    asked = urllib.request.Request(os.environ.get("HF_ENDPOINT") or HUB, method="HEAD")
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT / 3):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def _score(package: str, module: str, load: Callable, *, key: str = "", device: str = "", vision: bool = True) -> Score:
    """Return the score of a package's model, built by `load(module)` at the first call.

    With a `device`, the model takes tensors (1, 3, H, W) in [0, 1]; without one, arrays (H, W, 3) uint8.
    """

    def score(*frames: np.ndarray) -> float:
        model = _cached((package, key, device), lambda: _load(package, module, load, vision))
        inputs = [unit_batch(frame).to(device) for frame in frames] if device else frames
        with torch.inference_mode():
            value = _run(package, lambda: float(model(*inputs)))
        if not math.isfinite(value):  # leaving the frame out would bias the mean
            raise Unavailable(f"{package} gave {value} for a frame")
        return value

    return score


def _cached(key: tuple, load: Callable):
    """Return the model of a key, which is loaded once. Raises Unavailable with the same reason at every call."""
    if key not in _models:
        try:
            _models[key] = load()
        except Unavailable as error:
            _models[key] = str(error)
    if isinstance(_models[key], str):
        raise Unavailable(_models[key])
    return _models[key]


def _load(package: str, module: str, load: Callable, vision: bool):
    """Load a model with a time limit for downloads; its output is printed to stderr."""
    version_of(package)
    if vision:
        _cached(("torchvision",), _import_torchvision)
    if package == "pyiqa" and "HF_HUB_OFFLINE" not in os.environ and not hub_is_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read at import; without it each file is requested six times
    with _time_limit(), contextlib.redirect_stdout(sys.stderr):
        return _run(package, lambda: load(importlib.import_module(module)))


def _import_torchvision():
    """Import torchvision, which most packages need. Raises Unavailable if it cannot be imported."""
    try:
        return importlib.import_module("torchvision")
    except Exception as error:
        fix = "take the torchvision build of your torch (docs/METRICS.md)"
        raise Unavailable(f"torchvision does not import, {fix}: {_line(error)}") from error


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Set a timeout for connections, since the packages set none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _run(package: str, act: Callable):
    """Return the result of a package's code. Raises Unavailable with the message of any error."""
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
