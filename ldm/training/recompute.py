"""Gradient checkpointing (Chen et al. 2016): activations of blocks are recomputed in the backward pass."""

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.nets.attention import AttentionBlock, SpatialTransformer
from ldm.nets.autoencoder import ResnetBlock
from ldm.nets.clip_attention import ClipTransformer
from ldm.nets.clip_layers import ClipResBlock
from ldm.nets.layers import ResBlock
from ldm.nets.upscaler import TimedResnetBlock

BLOCKS = (
    ResBlock,
    ResnetBlock,
    TimedResnetBlock,
    SpatialTransformer,
    AttentionBlock,
    ClipResBlock,
    ClipTransformer,
)


def recompute_blocks(model: nn.Module) -> int:
    """Enable checkpointing of the residual and attention blocks of a model, in place; returns the number of blocks.

    Names of weights and results do not change, since blocks draw no random numbers.
    """
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)
