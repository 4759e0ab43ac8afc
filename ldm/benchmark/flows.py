"""RAFT (Teed and Deng, ECCV 2020), the optical flow of published warping errors."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldm.nets.raft import RAFT
from ldm.weights import checkpoint

ITERATIONS = 20  # in QuantVSR's and EvalCrafter's scripts


def paper_flow(file: Path, device: str) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return a description and RAFT for frames (1, 3, H, W) in [0, 1]; weights are loaded at the first call."""

    @functools.cache
    def network() -> RAFT:
        raft = RAFT(iterations=ITERATIONS)
        checkpoint.load(raft, checkpoint.read(file))
        return raft.to(device)

    @torch.inference_mode()
    def flow(one: Tensor, other: Tensor) -> Tensor:
        return network()(one.to(device), other.to(device)).cpu()

    return f"RAFT, {ITERATIONS} iterations, weights {checkpoint.sha256(file)[:8]}", flow
