"""Gradient checkpointing (Chen et al. 2016) and the memory layout of networks in training."""

from functools import partial

from pytorch_lightning import LightningModule
from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm.nets.attention import AttentionBlock, SpatialTransformer
from ldm.nets.autoencoder import ResnetBlock
from ldm.nets.clip_attention import ClipTransformer
from ldm.nets.clip_layers import ClipResBlock
from ldm.nets.layers import ResBlock, channels_last
from ldm.nets.upscaler import TimedResnetBlock

BLOCKS = (ResBlock, ResnetBlock, TimedResnetBlock, SpatialTransformer, AttentionBlock, ClipResBlock, ClipTransformer)


def recompute_blocks(model: nn.Module) -> int:
    """Enable checkpointing of the residual and attention blocks of a model, in place; returns the number of blocks.

    Names of weights and results do not change, since blocks draw no random numbers.
    """
    blocks = [module for module in model.modules() if isinstance(module, BLOCKS)]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)


def prepare_training(model: LightningModule, *, recompute: bool, last: bool) -> None:
    """Add the layers of `configure_model` to a model with loaded weights, and set checkpointing and memory layout.

    Args:
        recompute: whether activations of blocks are computed again in the backward pass instead of stored.
        last: whether feature maps are in channels-last layout, which is faster on a CPU.
    """
    model.configure_model()  # Lightning calls it again
    if recompute:
        recompute_blocks(model)
    if last:
        channels_last(model)
