"""RAFT (Teed and Deng, ECCV 2020), the optical flow of published temporal metrics."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldm.nets.raft import RAFT
from ldm.weights import checkpoint
from ldm.weights.fill import convert_names

Flow = Callable[[Tensor, Tensor], Tensor]
ITERATIONS = 20  # in QuantVSR's and EvalCrafter's scripts
STABLEVSR_ITERATIONS = 12  # torchvision's default


def paper_flow(file: Path, device: str) -> tuple[str, Flow]:
    """Return a description and RAFT, frames (1, 3, H, W) in [0, 1] -> (1, 2, H, W), loaded at the first call."""
    flow = _loaded_at_first_use(lambda: RAFT(iterations=ITERATIONS), file, device, names="")
    return f"RAFT, {ITERATIONS} iterations, weights {checkpoint.sha256(file)[:8]}", flow


def stablevsr_flow(file: Path, device: str) -> tuple[str, Flow]:
    """Return the same for torchvision's raft_large as in StableVSR's eval.py.

    There, frames are not mapped to [-1, 1], and batch norms use the statistics of the batch.
    """
    build = lambda: RAFT(iterations=STABLEVSR_ITERATIONS, scaling="released", statistics="released")  # noqa: E731
    about = f"torchvision's RAFT, {STABLEVSR_ITERATIONS} iterations, pictures and norms as released"
    flow = _loaded_at_first_use(build, file, device, names="torchvision_raft")
    return f"{about}, weights {checkpoint.sha256(file)[:8]}", flow


def _loaded_at_first_use(build: Callable[[], RAFT], file: Path, device: str, *, names: str) -> Flow:
    @functools.cache
    def network() -> RAFT:
        raft = build()
        checkpoint.load(raft, convert_names(checkpoint.read(file), names))
        return raft.to(device)

    @torch.inference_mode()
    def flow(one: Tensor, other: Tensor) -> Tensor:
        return network()(one.to(device), other.to(device)).cpu()

    return flow
