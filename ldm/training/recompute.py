"""Gradient checkpointing (Chen et al. 2016): blocks that are run again in the backward pass instead of remembered."""

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
    """Have the residual and attention blocks of all networks in `model` recomputed; says how many there are.

    Names of weights stay as they are, and so do results: nothing random happens inside a block.
    """
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)
