"""Low-rank changes of trained weights: W + B A (LoRA, Hu et al. 2022), merged into W when a training is over."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LowRank(nn.Module):
    """weight -> weight + up @ down, reshaped; `up` starts as zero, so that a fresh change is none.

    Args:
        weight: of a linear layer (out, in) or a convolution (out, in, ...).
        rank: of the change; no more than the sides of the matrix (out, rest).
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out, rest = len(weight), weight[0].numel()
        rank = min(rank, out, rest)
        self.up = nn.Parameter(weight.new_zeros(out, rank))
        self.down = nn.Parameter(torch.empty(rank, rest, dtype=weight.dtype, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_low_rank(network: nn.Module, *, rank: int, whole: Sequence[str] = ()) -> int:
    """Freeze a network but for low-rank changes of its linear layers and convolutions; how many were added.

    Layers whose name contains a word of `whole` are trained as they are. Raises ValueError for a rank below 1, or where
    no layer is left to change.
    """
    if rank < 1:
        raise ValueError(f"got rank {rank}, expected at least 1")
    network.requires_grad_(False)
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, KINDS)]
    changed = [layer for name, layer in layers if not any(word in name for word in whole)]
    if not changed:
        raise ValueError("got a network without a layer to change, expected linear layers or convolutions")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(word in name for word in whole))
    for layer in changed:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return len(changed)


def merge_low_rank(network: nn.Module) -> None:
    """Add the changes to the weights and remove them: the names are those from before `add_low_rank`."""
    for layer in list(network.modules()):
        if isinstance(layer, KINDS) and parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
