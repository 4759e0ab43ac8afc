"""The functions of StableVSR's stages for one clip: prepare, compare, visit, complete."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldm.diffusion.bidirectional import Unit, Visit, texture_guidance, visit_frame
from ldm.methods.progress import Tally
from ldm.methods.stablevsr.levers import SceneLevers
from ldm.methods.stablevsr.settings import BidirectionalSampling
from ldm.methods.stablevsr.sizes import Sizes
from ldm.nets.whole_frame import Cut, decode_frames
from ldm.ops.cuts import scene_ends
from ldm.ops.finite import checked_finite
from ldm.ops.flow import Motion, forward_backward_occlusion
from ldm.streaming.pipeline import Frame
from ldm.streaming.scene import BEFORE, Block

Draws = Callable[..., Tensor]  # (step, frame number, turn=, shape=) -> (1, *shape)
Watch = Callable[[Unit, Visit, Tensor | None], None]  # a unit, what it computed, and its condition
FLOWS = ("flow_to_prev", "flow_from_prev")  # at a frame to the one before, and at that one to this
KEPT = ("picture", "decoded")  # the last decoded picture of a frame, and its latents
HOST = (*FLOWS, "picture", "sr")  # values of the size of a restored frame, which stay on the CPU


class Guide(NamedTuple):
    """The frame that guides a visit, its place in the block (or `BEFORE`), and its clean estimate."""

    place: int
    frame: Frame
    x0: Tensor


def carried(step: int) -> str:
    """The name under which the clean estimate of a step is left for the next block."""
    return f"x0_{step}"


def unwatched(_unit: Unit, _visit: Visit, _condition: Tensor | None) -> None:
    """Looks at no visit."""


class FrameNetworks:
    """The networks for one frame: a prediction, and a picture of clean latents.

    Args:
        networks: as for `ldm.methods.stablevsr.method.StableVSR`.
        scale_factor: latents are this times those of the autoencoder.
        dtype: of autocast; None: none.
        levers: how decoding is cut.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], *, scale_factor: float, dtype: torch.dtype | None, levers: SceneLevers
    ) -> None:
        self.networks, self.scale_factor, self.dtype, self.levers = networks, scale_factor, dtype, levers
        self._context: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks["unet"].parameters()).device

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context that networks run in; everything else stays float32."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)

    def context(self, device: torch.device) -> Tensor:
        """The text context of the empty prompt, encoded once."""
        if self._context is None:
            self._context = self.networks["text"]()
        return self._context.to(device)

    def predict(self, z: Tensor, t: int, *, lr: Tensor, condition: Tensor | None, scale: float) -> Tensor:
        """The prediction for latents z (1, c, h, w); lr (1, 3, h, w) in [-1, 1], condition (1, 3, H, W) or None."""
        x, time, context = torch.cat([z, lr], dim=1), torch.full((1,), t, device=z.device), self.context(z.device)
        with self.autocast(z.device):
            residuals = None
            if condition is not None:
                residuals = self.networks["control"](x, time, context, condition, scale=scale)
            return self.networks["unet"](x, time, context, residuals).float()

    def decode(self, z: Tensor) -> Tensor:
        """Latents (1, c, h, w) -> picture (1, 3, H, W) around [-1, 1]; cut exactly where the levers say so."""
        autoencoder, z = self.networks["autoencoder"], z / self.scale_factor
        with self.autocast(z.device):
            if self.levers.whole:
                return autoencoder.decode(z).float()
            return decode_frames(autoencoder, z, cut=Cut(self.levers.tile, "frame", 0, self.levers.hold)).float()


@dataclass(frozen=True)
class SceneRestoration:
    """One clip. Frames carry "lr", "z", "x0" of the frame visited last, their flows, and in the end "sr".

    Args:
        model: the networks.
        flow: flow(img1, img2), pictures (1, 3, H, W) in [0, 1] -> (1, 2, H, W).
        sizes: of frames and latents.
        sampling: how latents are sampled.
        noise: source of standard normal noise, such as `settings.AddressedDraws`.
        tally: counts calls of networks.
        scene_cut: see `ldm.methods.stablevsr.method.StableVSR`.
        on_visit: is given each unit, what it computed, and its condition.
    """

    model: FrameNetworks
    flow: Callable[[Tensor, Tensor], Tensor]
    sizes: Sizes
    sampling: BidirectionalSampling
    noise: Draws
    tally: Tally
    scene_cut: float | None = None
    on_visit: Watch = unwatched

    # ---- before sampling

    def prepare(self, frame: Frame) -> Frame:
        """Add the networks' input "lr", and "large" for the flow."""
        lr = self.sizes.fitted(frame["lq"])
        return frame.without("lq").put(lr=lr, large=self.sizes.enlarged(lr))

    def compare(self, before: Frame, frame: Frame) -> tuple[bool, Frame]:
        """Whether a scene ends between two frames, and the second one with both flows where none does."""
        to_prev = self.flow(frame["large"], before["large"])
        from_prev = self.flow(before["large"], frame["large"])
        for flow in (to_prev, from_prev):
            checked_finite(flow, lambda: f"the flow between frames {before.number} and {frame.number} is not finite")
        if self.scene_cut is not None:
            masks = forward_backward_occlusion(from_prev, to_prev)
            motion = Motion(*(value[:, None] for value in (from_prev, to_prev, *masks)))
            if scene_ends(before["large"], frame["large"], motion, unmatched=self.scene_cut):
                return True, frame
        dtype = torch.float16 if self.model.levers.half_flows else torch.float32
        return False, frame.put(flow_to_prev=to_prev.to(dtype), flow_from_prev=from_prev.to(dtype))

    # ---- sampling

    def units(self, frames: int) -> int:
        """Visits of a block of so many frames."""
        return frames * len(self.sampling.schedule)

    def visit(self, block: Block, k: int) -> dict[int, Frame]:
        """Unit k of a block: one denoising step of one frame. Returns the frames that it changes, by place."""
        unit = self.sampling.unit(k, len(block))
        if not self.sampling.needed(unit, block.kept):
            return {}
        i, scale = len(self.sampling.schedule) - 1 - unit.step, self.sampling.scales[unit.step]
        frame, changed = self._begun(block, unit), {}
        guide = guide_of(block, unit)
        condition = None if guide is None else self._guidance(block, unit, guide, changed)
        visit = visit_frame(
            frame["z"],
            partial(self.model.predict, lr=frame["lr"], condition=condition, scale=scale),
            scheduler=self.sampling.scheduler,
            schedule=self.sampling.schedule,
            i=i,
            noise=partial(self._drawn, i, frame, len(block) + k),
        )
        self.on_visit(unit, visit, condition)
        self.tally("sampling")
        changed[unit.frame] = frame.put(z=visit.latent, x0=visit.x0)
        if i == 0 and guide is not None:
            self._drop_flows(block, max(unit.frame, guide.place), changed)
        if not block[-1].last and unit.frame == block.kept - 1 and self.sampling.forward(unit.step):
            left = block.before or Frame(frame.number, {})
            changed[BEFORE] = left.put(**{carried(unit.step): visit.x0})
        return changed

    def _begun(self, block: Block, unit: Unit) -> Frame:
        """The frame of a unit; in the first step, with its initial latents and without what another block left."""
        frame = block[unit.frame]
        if unit.step > 0:
            return frame
        return frame.without("x0", *KEPT).put(z=self._drawn("start", frame, unit.frame))

    def _guidance(self, block: Block, unit: Unit, guide: Guide, changed: dict[int, Frame]) -> Tensor | None:
        """The condition (1, 3, H, W) of a visit; None where the control network is off. Adds to the changed frames."""
        scale, own = self.sampling.scales[unit.step], guide.place != BEFORE
        last = unit.step == len(self.sampling.schedule) - 1
        result = last and self.sampling.ends_clean and own and guide.place < block.kept
        before = guide.frame.without("x0") if own else None
        picture = None
        if scale or result:
            fresh = last or not own or self._due(guide, unit.step)
            picture = self.model.decode(guide.x0) if fresh else guide.frame["picture"].to(guide.x0)
            if own and fresh and self.sampling.decoder.keeps:
                before = before.put(picture=picture, decoded=guide.x0)
        if result:
            before = before.without("z", "lr", *KEPT).put(sr=picture)
        if own:
            changed[guide.place] = before
        if not scale:
            return None
        flow = flow_to_previous(block, unit).to(picture)
        return texture_guidance(picture, flow, grid=self.sampling.grid)

    def _due(self, guide: Guide, step: int) -> bool:
        """Whether the picture of a guiding frame is decoded."""
        values = guide.frame.values
        return "picture" not in values or self.sampling.decoder.due(step, guide.x0, values["decoded"])

    def _drop_flows(self, block: Block, owner: int, changed: dict[int, Frame]) -> None:
        """Remove the flows of a frame of the block that no later visit reads."""
        if owner < block.kept:
            changed[owner] = changed.get(owner, block[owner]).without(*FLOWS)

    def _drawn(self, step: int | str, frame: Frame, turn: int) -> Tensor:
        """Noise (1, c, h, w) for the latents of a frame."""
        channels = self.model.networks["unet"].conv_out.out_channels
        return self.noise(step, frame.number, turn=turn, shape=(channels, *self.sizes.latent)).to(frame["lr"])

    # ---- after sampling

    def complete(self, frame: Frame) -> Frame:
        """The frame with "sr", decoded unless the last step left its picture, in [0, 1] and the size asked for."""
        sr = frame["sr"].to(self.model.device) if "sr" in frame.values else self.model.decode(frame["z"])
        self.tally("decoding")
        return frame.without("z", "x0", "lr", *FLOWS, *KEPT).put(sr=self.sizes.finished(sr))


def guide_of(block: Block, unit: Unit) -> Guide | None:
    """The frame that guides a visit; in a forward pass, the last one of the block before guides the first."""
    if unit.previous is not None:
        frame = block[unit.previous]
        return Guide(unit.previous, frame, frame["x0"])
    if unit.frame == 0 and block.before is not None and carried(unit.step) in block.before.values:
        return Guide(BEFORE, block.before, block.before[carried(unit.step)])
    return None


def flow_to_previous(frames: Sequence[Frame], unit: Unit) -> Tensor:
    """The flow (1, 2, H, W) at the frame of a unit to the frame visited before it."""
    if unit.previous is None or unit.previous < unit.frame:
        return frames[unit.frame]["flow_to_prev"]
    return frames[unit.previous]["flow_from_prev"]
