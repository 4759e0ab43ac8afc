"""Autoencoders on frames that exceed memory: computed in tiles, with the result of the whole frame.

A network is divided into steps. Between steps, maps of at most `hold` bytes are kept for the whole frame. Steps on
them need a halo of one pixel, their norms use the whole map, and nothing is computed twice. Steps on larger maps are
chained on tiles with a halo of their total receptive field; to give their norms the statistics of the whole frame, the
tiles run once per norm, each time up to the next norm.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn

from ldm.nets.autoencoder import AutoencoderKL, beside_synthesis, check_image
from ldm.nets.frame_norms import FrameNorms
from ldm.nets.linear_path import from_blocks, to_blocks
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.nets.steps import State, Step, decoder_steps, down_steps, encoder_steps, reach_of
from ldm.nets.temporal import check_clips
from ldm.ops.tiling import Patch, pasted, patches

HOLD = 3 * 2**30
STATISTICS = ("frame", "shared", "tile")


@dataclass(frozen=True)
class Cut:
    """How frames are cut into tiles.

    Args:
        tile: side of a tile, halo included, in latent pixels; it bounds the size of a computation.
        norms: statistics of the norms of levels that are not held: "frame", those of the whole frame (exact); "shared",
            those of the whole frame from one pass in which each tile is normalised by itself (approximate, but without
            seams); "tile", those of each tile.
        attention: side of tiles for attention, of which the middle two thirds are used (approximate); 0 for attention
            over the whole frame (exact).
        hold: maximum bytes of a clip's maps at a level to hold them for the whole frame (two or three such maps exist);
            0 holds only the latent level.
    Raises:
        ValueError: for an unknown word, a tile below 1 or a negative number.
    """

    tile: int
    norms: str = "frame"
    attention: int = 0
    hold: int = HOLD

    def __post_init__(self):
        if self.tile < 1 or min(self.hold, self.attention) < 0:
            got = f"tile={self.tile}, hold={self.hold} and attention={self.attention}"
            raise ValueError(f"got {got}, expected at least 1, 0 and 0")
        if self.norms not in STATISTICS:
            raise ValueError(f"got norms {self.norms!r}, expected one of {', '.join(STATISTICS)}")


class Piecewise:
    """Run a network over the frames of one clip in tiles, with stored statistics of its norms.

    Args:
        net: AutoencoderKL or SequenceAutoencoder.
        cut: how to cut.
        frames: number of frames of the clip.
        size: rows and columns of a frame.
        itemsize: bytes per value of a map.
    """

    def __init__(self, net: nn.Module, cut: Cut, *, frames: int, size: tuple[int, int], itemsize: int) -> None:
        self.net, self.cut, self.frames, self.size, self.itemsize = net, cut, frames, size, itemsize
        self.norms = FrameNorms(net)
        self.last = len(net.decoder.up) - 1

    def holds(self, level: int, *, frames: int) -> bool:
        """Whether the maps of a level for so many frames are kept for the whole frame."""
        width = self.net.decoder.up[level].block[-1].conv2.out_channels
        values = frames * width * math.prod(self.size) // 4**level
        return level == self.last or values * self.itemsize <= self.cut.hold

    def segments(self, steps: Iterable[Step], *, frames: int) -> list[list[Step]]:
        """Group the steps between held maps into segments; attention forms its own segment.

        Raises ValueError if the halo of a segment is too large for the tile.
        """
        segments = [[]]
        for step in steps:
            if step.attends and segments[-1]:
                segments.append([])
            segments[-1].append(step)
            if step.attends or self.holds(step.level, frames=frames):
                segments.append([])
        segments = [segment for segment in segments if segment]
        for segment in segments:
            self.grid(segment)
        return segments

    def grid(self, segment: list[Step]) -> tuple[tuple[int, int], list[Patch]]:
        """Return rows and columns of the coarsest maps of a segment, and the tiles on them."""
        coarsest = max(max(step.source, step.level) for step in segment)
        size = tuple(side >> coarsest for side in self.size)
        scale = 2 ** (self.last - coarsest)
        tile, halo = self.cut.tile * scale, math.ceil(reach_of(segment) / 2 ** (coarsest - segment[0].source))
        if segment[0].attends:
            tile, halo = (self.cut.attention, self.cut.attention // 6) if self.cut.attention else (max(size), 0)
        if tile <= 2 * halo and max(size) > max(tile, 2 * (tile - halo)):
            least, pixels = 2 * halo // scale + 1, f"{halo / scale:g} latent pixels a side"
            raise ValueError(f"got tile={self.cut.tile} for a halo of {pixels}, expected at least {least} or more hold")
        return size, patches(size, tile=tile, halo=halo)

    def run(self, steps: Iterable[Step], states: list[State], *, frames: int = 1) -> list[State]:
        """Run the steps and return the states of all frames; `frames` of them are held at a time."""
        segments = self.segments(steps, frames=frames)
        for alone, chain in groupby(segments, lambda segment: all(step.alone for step in segment)):
            if alone:
                self._advance_each(list(chain), states)
                continue
            for segment in chain:
                states[:] = self._advance(segment, states, range(self.frames))
        return states

    def _advance_each(self, segments: list[list[Step]], states: list[State]) -> None:
        """Run all segments frame by frame, so that intermediate maps are held for one frame only."""
        for frame in range(self.frames):
            state, states[frame] = [states[frame]], ()  # so that its maps can be freed
            for segment in segments:
                state = self._advance(segment, state, [frame])
            states[frame] = state[0]

    def _advance(self, segment: list[Step], states: list[State], frames: Sequence[int]) -> list[State]:
        """Run a segment and return the states of the given frames."""
        maps = [x for state in states for x in state]
        fn = _on_stacks(segment, len(states))
        size, grid = self.grid(segment)
        if len(grid) == 1:
            results = fn(*maps)
        else:
            in_place = maps if len(segment) == 1 and not segment[0].alone else None  # temporal layers need no halo
            run = partial(pasted, maps=maps, size=size, grid=grid, out=in_place)
            results = self._settled(run, fn, frames, exact=self.cut.norms == "frame" or len(segment) == 1)
        count = len(results) // len(states)
        return [tuple(results[k * count : (k + 1) * count]) for k in range(len(states))]

    def _settled(self, run: Callable, fn: Callable, frames: Sequence[int], *, exact: bool) -> list[Tensor]:
        """Return run(fn) with the statistics of `cut.norms`."""
        if self.cut.norms == "tile" and not exact:
            return run(lambda *maps_and_patch: fn(*maps_and_patch[:-1]))
        if not exact:
            count = self.norms.piecewise(lambda *maps: fn(*maps) and None, frames, wait=False)
            run(count)
            self.norms.settle()
        piece = self.norms.piecewise(fn, frames, wait=True)
        while True:  # one iteration per norm, and a last one for the result
            results = run(piece)
            if not self.norms.settle():
                return results


def _on_stacks(segment: list[Step], frames: int) -> Callable[..., list[Tensor]]:
    """Return a segment as a function of the maps of all frames, those of the first frame first."""

    def fn(*maps: Tensor) -> list[Tensor]:
        entries = len(maps) // frames
        rows = [maps[k::entries] for k in range(entries)]
        stacks = state = [row[0] if frames == 1 else torch.cat(row) for row in rows]
        for step in segment:
            state = step.run(*state)
        ways = [next((k for k, stack in enumerate(stacks) if x is stack), None) for x in state]
        results = [x.split(1) if k is None else rows[k] for x, k in zip(state, ways, strict=True)]
        return [result[frame] for frame in range(frames) for result in results]

    return fn


def _itemsize(x: Tensor) -> int:
    """Return the bytes per value of the network's maps."""
    half = torch.is_autocast_enabled(x.device.type)
    return 2 if half else x.element_size()


@torch.no_grad()
def encode_frames(net: AutoencoderKL | SequenceAutoencoder, frames: Tensor, cut: Cut) -> Tensor:
    """Encode frames (n, 3, H, W) in [-1, 1] to moments (n, 2 * embed_dim, H / f, W / f), as `net.encode`.

    Raises ValueError for sides that are not multiples of f, or a halo that is too large for the tile.
    """
    check_image(frames, downsampling=net.downsampling)
    blocks = to_blocks(frames, net.patch)
    if net.linear is not None:
        return net.linear.moments(blocks)
    pieces = Piecewise(net, cut, frames=len(blocks), size=blocks.shape[-2:], itemsize=_itemsize(blocks))
    with pieces.norms.installed():
        states = pieces.run(encoder_steps(net), [(x,) for x in blocks.split(1)])
    return torch.cat([state[-1] for state in states])


@torch.no_grad()
def decode_frames(
    net: AutoencoderKL | SequenceAutoencoder,
    z: Tensor,
    lq: Tensor | None = None,
    *,
    cut: Cut,
    num_frames: int = 1,
    fusion_w: float = 1.0,
) -> Tensor:
    """Decode latents (b*num_frames, embed_dim, h, w) to frames (b*num_frames, 3, H, W), about [-1, 1].

    Args:
        net: an image autoencoder decodes frames one by one, for any `num_frames`.
        z: clip after clip, not multiplied by the scale factor.
        lq: LQ frames (b*num_frames, 3, H, W) in [-1, 1] whose features a sequence decoder fuses; None without fusion.
        cut: how to cut.
        num_frames: frames per clip.
        fusion_w: weight of the features; with 0 they are not computed.
    Raises:
        ValueError: incomplete clips, frames that do not match the latents, or a halo that is too large for the tile.
    """
    check_clips(z, num_frames=num_frames)
    fused = getattr(net.decoder, "fused_levels", ()) if fusion_w != 0 else ()
    size = tuple(side * net.downsampling for side in z.shape[-2:])
    if fused and (lq is None or (len(lq), *lq.shape[-2:]) != (len(z), *size)):
        got = None if lq is None else tuple(lq.shape)
        raise ValueError(f"got lq {got}, expected ({len(z)}, 3, {size[0]}, {size[1]}) for these latents, or fusion_w=0")
    clips, size = [], tuple(side // net.patch for side in size)
    for k in range(0, len(z), num_frames):
        pieces = Piecewise(net, cut, frames=num_frames, size=size, itemsize=_itemsize(z))
        clip = to_blocks(lq[k : k + num_frames], net.patch) if fused else None
        with pieces.norms.installed():
            decoded = _decode_clip(pieces, z[k : k + num_frames], clip, fused=fused, fusion_w=fusion_w)
        clips.append(from_blocks(beside_synthesis(net, decoded, z[k : k + num_frames]), net.patch))
    return torch.cat(clips)


def _decode_clip(pieces: Piecewise, z: Tensor, lq: Tensor | None, *, fused: tuple[int, ...], fusion_w: float) -> Tensor:
    """Decode one clip."""
    held = [level for level in fused if _must_hold(pieces, level)]
    sources = {level: _held_features() if level in held else _features_of(pieces.net, level) for level in fused}
    steps = list(decoder_steps(pieces.net, sources, fusion_w))
    pieces.segments(steps, frames=pieces.frames)  # raises if the tile is too small
    states = [()] * pieces.frames
    if lq is not None:
        states = _with_features(pieces, lq, fused=fused, held=held)
    states = [(*state, x) for state, x in zip(states, z.split(1), strict=True)]
    return torch.cat([state[-1] for state in pieces.run(steps, states, frames=pieces.frames)])


def _must_hold(pieces: Piecewise, level: int) -> bool:
    """Whether features are computed for whole frames: if they can be held, or depend on attention."""
    attention = any(len(stage.attn) for stage in pieces.net.encoder.down[: level + 1])
    return attention or pieces.holds(level, frames=pieces.frames)


def _held_features() -> tuple[Callable, int]:
    """Return a source that takes the features before the current map in the state."""
    return lambda *state: ((*state[:-2], state[-1]), state[-2]), 0


def _features_of(net: nn.Module, level: int) -> tuple[Callable, int]:
    """Return a source that computes features from the tile of the frame, the first map of the state."""
    reach = reach_of(list(down_steps(net.encoder, range(level + 1))))
    return lambda *state: (state, net.encoder.features(state[0], keep=(level,))[0]), math.ceil(reach / 2**level)


def _with_features(pieces: Piecewise, lq: Tensor, *, fused: tuple[int, ...], held: list[int]) -> list[State]:
    """Return (lq if features remain to be computed, features of the levels in `held`, finest first) for each frame.

    Afterwards the norms of the encoder have their statistics.
    """
    encoder, frames = pieces.net.encoder, lq.split(1)
    fronts = [(x,) if len(held) < len(fused) else () for x in frames]
    states, start = [(x,) for x in frames], 0
    for level in held:
        pieces.run(down_steps(encoder, range(start, level + 1)), states)
        fronts = [(*front, state[-1]) for front, state in zip(fronts, states, strict=True)]
        start = level + 1
    if not held:
        forget = Step(lambda *state: (), fused[-1], fused[-1])
        pieces.run([*down_steps(encoder, range(fused[-1] + 1)), forget], states)
    return fronts
