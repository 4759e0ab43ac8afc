"""Measures by networks and models of others, through packages that a user may install: none is required.

Each loads at its first frame and is kept for the clips that follow; so is the reason why one cannot be had, for the
packages fetch their weights from the network and may wait long for it. `Unavailable` says what is missing.
"""

import contextlib
import importlib
import importlib.metadata
import math
import os
import socket
import sys
import textwrap
import traceback
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.metrics.look import Unavailable

Score = Callable[..., float]  # of a frame, (H, W, 3) uint8, and for some of another
NETS = ("alex", "vgg", "squeeze")  # of LPIPS
PATIENCE = 10  # seconds without a word from the network, for each address of a host
HUB = "https://huggingface.co"
REMEDIES = {"pkg_resources": "pip install 'setuptools<82'"}  # for modules whose package has another name


def version_of(package: str) -> str:
    """The version of an installed package. Raises Unavailable where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise Unavailable(f"{package} is not installed: pip install {package}") from error


def lpips_score(net: str, device: str) -> Score:
    """LPIPS v0.1 (Zhang et al. 2018) between two frames by the package `lpips`: the networks' names are its own."""
    return lambda one, other: _value(_lpips, "lpips", (net, device), (one, other), device)


def dists_score(device: str) -> Score:
    """DISTS (Ding et al. 2020) between two frames by the package `DISTS-pytorch`."""
    return lambda one, other: _value(_dists, "DISTS-pytorch", (device,), (one, other), device)


def pyiqa_score(name: str, device: str) -> Score:
    """A measure without reference by the package `pyiqa`, under the name and with the defaults it has there."""
    return lambda frame: _value(_pyiqa, "pyiqa", (name, device), (frame,), device)


def brisque_score() -> Score:
    """BRISQUE (Mittal et al. 2012) by the package `brisque`, with the model in its wheel; on the CPU."""

    def score(frame: np.ndarray) -> float:
        model = _brisque()
        return _finite(_guarded("brisque", lambda: float(model.score(frame))), "brisque")

    return score


def _kept(load: Callable) -> Callable:
    """A loader that tries once for each of its settings, and keeps the model or the reason why there is none."""

    @cache
    def tried(*settings) -> tuple:
        try:
            return load(*settings), None
        except Unavailable as error:
            return None, str(error)

    def kept(*settings):
        model, reason = tried(*settings)
        if reason is not None:
            raise Unavailable(reason)
        return model

    kept.forget = tried.cache_clear
    return kept


@_kept
def _lpips(net: str, device: str):
    module = _package("lpips", "lpips")
    model = _loaded("lpips", lambda: module.LPIPS(net=net, verbose=False).to(device).eval())
    return lambda one, other: model(one, other, normalize=True)


@_kept
def _dists(device: str):
    module = _package("DISTS_pytorch", "DISTS-pytorch")
    return _loaded("DISTS-pytorch", lambda: module.DISTS().to(device).eval())


@_kept
def _pyiqa(name: str, device: str):
    if "HF_HUB_OFFLINE" not in os.environ and not _hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read at the import below; else its client tries each file six times
    module = _package("pyiqa", "pyiqa")
    return _loaded("pyiqa", lambda: module.create_metric(name, device=torch.device(device)))


@_kept
def _brisque():
    module = _package("brisque", "brisque", vision=False)
    model = _loaded("brisque", lambda: module.BRISQUE(url=False))
    features = model.calculate_brisque_features

    def as_numbers(*args, **settings) -> np.ndarray:
        """Version 0.2.0 returns arrays of one number among the numbers, which NumPy 2.4 no longer takes for numbers."""
        return np.array([np.ravel(value)[0] for value in features(*args, **settings)], dtype=np.float64)

    model.calculate_brisque_features = as_numbers
    return model


@cache
def _hub_answers() -> bool:
    """Whether the Hugging Face Hub, or the mirror that HF_ENDPOINT names, can be reached."""
    asked = urllib.request.Request(os.environ.get("HF_ENDPOINT") or HUB, method="HEAD")
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE / 3):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


@_kept
def _vision() -> None:
    """Raises Unavailable where torchvision, which most packages need, does not import."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        what = "take the torchvision build of your torch (docs/METRICS.md)"
        raise Unavailable(f"torchvision does not import, {what}: {_said(error)}") from error


def _package(module: str, package: str, *, vision: bool = True):
    version_of(package)
    if vision:
        _vision()
    return _loaded(package, lambda: importlib.import_module(module))


def _loaded(package: str, act: Callable):
    """What a package loads; its weights are fetched with little patience, and what it prints goes to stderr."""
    with _patient(), contextlib.redirect_stdout(sys.stderr):
        return _guarded(package, act)


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """A limit to how long a connection may be silent: the packages set none, and a firewall can hold them for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _guarded(package: str, act: Callable):
    """What a package does; whatever it fails with, from missing weights to a size it cannot take, is the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the packages' own code
            return act()
    except Unavailable:
        raise
    except Exception as error:
        raise Unavailable(f"{package} {_failure(error)}") from error


def _failure(error: Exception) -> str:
    """What failed and what to do. Errors seldom name the file of weights; the calls they rose through know it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        known = frame.f_locals
        if isinstance(known.get("repo_id"), str) and known.get("cache_dir"):
            return f"needs {known['repo_id']} of {HUB} in {_short(known['cache_dir'])}: {_said(error)}"
        for value in known.values():
            if isinstance(value, str) and value.startswith(torch.hub.get_dir()) and Path(value).suffix:
                path = Path(value)
                if path.is_file():
                    return f"cannot read {_short(path)}, remove it if it is not whole: {_said(error)}"
                return f"needs {path.name} in {_short(path.parent)}: {_said(error)}"
    remedy = REMEDIES.get(getattr(error, "name", None))
    return f"failed: {_said(error)}" + (f"; {remedy}" if remedy else "")


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return textwrap.shorten(f"{type(error).__name__}: {lines[0]}", 120, placeholder=" ...")


def _short(path: str | Path) -> str:
    """A path as people write it."""
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if str(path).startswith(home) else str(path)


def _value(load: Callable, package: str, settings: tuple, frames: tuple, device: str) -> float:
    """The value of a model for one frame, or for two. Raises Unavailable where it is not a finite number."""
    model = load(*settings)

    def act() -> float:
        with torch.inference_mode():
            return float(model(*(_batch(frame, device) for frame in frames)))

    return _finite(_guarded(package, act), package)


def _finite(value: float, package: str) -> float:
    """The value. Left out of a mean, a frame without one would make a clip look measured that is not."""
    if not math.isfinite(value):
        raise Unavailable(f"{package} gave {value} for a frame")
    return value


def _batch(frame: np.ndarray, device: str) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float().div(255).to(device)
