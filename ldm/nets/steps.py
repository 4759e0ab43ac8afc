"""The autoencoders as steps, each small enough to run tile by tile, in the order of their forwards."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.nets.autoencoder import ResnetBlock, VAEAttention, VAEMiddle, norm_silu
from ldm.nets.sequence_decoder import FuseBlock

State = tuple[Tensor, ...]  # maps (n, c, h, w) of the same frames, the current one last


class Step(NamedTuple):
    """A piece of a network from maps of one level to maps of another: run(*state) -> state.

    `reach`: pixels it reads beyond each one, on the finer of the two grids. `alone`: no frame sees another.
    """

    run: Callable[..., State]
    source: int
    level: int
    reach: int = 0
    alone: bool = True
    attends: bool = False


def _reach(*modules: nn.Module) -> int:
    """Pixels that convolutions one after another read beyond each pixel."""
    convs = (m for module in modules for m in module.modules() if isinstance(m, nn.Conv2d))
    return sum(conv.kernel_size[0] // 2 for conv in convs)


def reach_of(steps: Sequence[Step]) -> int:
    """Pixels of the first step's input that steps one after another read beyond each pixel of their result."""
    reach = 0
    for step in reversed(steps):
        if step.level > step.source:
            reach = 2 * reach + step.reach
        elif step.level < step.source:
            reach = math.ceil((reach + step.reach) / 2)
        else:
            reach += step.reach
    return reach


def _on_last(fn: Callable[[Tensor], Tensor]) -> Callable[..., State]:
    """A map's function as one of states; the maps before the last stay."""
    return lambda *state: (*state[:-1], fn(state[-1]))


def _plain(layer: nn.Module, source: int, level: int) -> Step:
    return Step(_on_last(layer), source, level, _reach(layer))


def _residual(block: ResnetBlock, level: int) -> Iterator[Step]:
    """The halves of a residual block, each a norm and a convolution: (x) -> (skip, h) -> (x)."""
    yield Step(lambda *s: (*s[:-1], block.skip(s[-1]), block.first(s[-1])), level, level, _reach(block.conv1))
    yield Step(lambda *s: (*s[:-2], block.second(s[-1]).add_(s[-2])), level, level, _reach(block.conv2))


def _head(net: nn.Module, level: int, *last: nn.Module) -> Step:
    """Norm, SiLU, convolution, and what follows."""
    tail = nn.Sequential(net.conv_out, *last)
    return Step(_on_last(lambda x: tail(norm_silu(net.norm_out, x))), level, level, _reach(tail))


def _middle(middle: VAEMiddle, level: int, *, mixing: Iterable[Step] = ()) -> Iterator[Step]:
    yield from _residual(middle.block_1, level)
    yield from mixing
    if not isinstance(middle.attn_1, nn.Identity):
        yield _attention(middle.attn_1, level)
    yield from _residual(middle.block_2, level)


def _attention(layer: VAEAttention, level: int) -> Step:
    return Step(_on_last(layer), level, level, attends=True)


def _mixing(layer: nn.Module, level: int) -> Step:
    """A temporal layer; its state holds all frames of the clip."""
    return Step(_on_last(lambda x: layer(x, x.shape[0])), level, level, alone=False)


def down_steps(encoder: nn.Module, levels: range) -> Iterator[Step]:
    """From frames, or from the map of the level before, to the map of the last of `levels`."""
    for level in levels:
        stage = encoder.down[level]
        if level == 0:
            yield _plain(encoder.conv_in, 0, 0)
        else:
            yield _plain(encoder.down[level - 1].downsample, level - 1, level)
        for k, block in enumerate(stage.block):
            yield from _residual(block, level)
            if stage.attn:
                yield _attention(stage.attn[k], level)


def encoder_steps(net: nn.Module) -> Iterator[Step]:
    last = len(net.encoder.down) - 1
    yield from down_steps(net.encoder, range(last + 1))
    yield from _middle(net.encoder.mid, last)
    yield _head(net.encoder, last, net.quant_conv)


def _fusion_steps(block: FuseBlock, level: int, weight: float, source: tuple[Callable, int]) -> Iterator[Step]:
    """(..., x) -> (..., x) with the features that source[0](*state) takes out of the state: (state, features)."""
    take, reach = source

    def join(*state: Tensor) -> State:
        (*rest, x), feature = take(*state)
        both = torch.cat([feature, x], dim=1)
        return (*rest, x, block.encode_enc_1.skip(both), block.encode_enc_1.first(both))

    first, dense, last = block.encode_enc_1, block.encode_enc_2, block.encode_enc_3
    yield Step(join, level, level, max(_reach(first.conv1), reach))
    yield Step(lambda *s: (*s[:-2], first.second(s[-1]).add_(s[-2])), level, level, _reach(first.conv2))
    yield _plain(dense, level, level)
    yield from _residual(last, level)
    yield Step(lambda *s: (*s[:-2], torch.add(s[-2], s[-1], alpha=weight)), level, level)


def decoder_steps(net: nn.Module, sources: dict[int, tuple[Callable, int]], fusion_w: float) -> Iterator[Step]:
    """From latents to frames; `sources` gives features for the levels that are fused."""
    decoder, top = net.decoder, len(net.decoder.up) - 1
    mixed = hasattr(decoder, "temporal_mixing")
    yield Step(_on_last(lambda z: decoder.conv_in(net.post_quant_conv(z))), top, top, _reach(decoder.conv_in))
    yield from _middle(decoder.mid, top, mixing=[_mixing(decoder.temporal_mixing, top)] if mixed else [])
    for level in reversed(range(top + 1)):
        stage = decoder.up[level]
        for k, block in enumerate(stage.block):
            yield from _residual(block, level)
            if mixed:
                yield _mixing(stage.temporal_mixing[k], level)
            if stage.attn:
                yield _attention(stage.attn[k], level)
        if level in sources:
            yield from _fusion_steps(getattr(decoder, f"fusion_layer_{level}"), level, fusion_w, sources[level])
        if level > 0:
            yield _plain(stage.upsample, level, level - 1)
    yield _head(decoder, 0)
