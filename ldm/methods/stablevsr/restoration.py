"""The functions of StableVSR's stages for one clip: prepare, compare, visit, complete."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ldm.diffusion.bidirectional import Unit, Visit, texture_guidance, unit_at, visit_frame
from ldm.methods.progress import Tally
from ldm.methods.stablevsr.levers import SceneLevers
from ldm.methods.stablevsr.settings import BidirectionalSampling
from ldm.methods.stablevsr.sizes import Sizes
from ldm.nets.whole_frame import Cut, decode_frames
from ldm.ops.cuts import scene_ends
from ldm.ops.flow import Motion, forward_backward_occlusion
from ldm.streaming.pipeline import Frame

Draws = Callable[..., Tensor]  # (step, frame number, turn=, shape=) -> (1, *shape)
Watch = Callable[[Unit, Visit, Tensor | None], None]  # a unit, what it computed, and its condition
FLOWS = ("flow_to_prev", "flow_from_prev")  # at a frame to the one before, and at that one to this


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
        x, time, context = torch.cat([z, lr], dim=1), torch.tensor([t], device=z.device), self.context(z.device)
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
        levers = self.model.levers
        if levers.frames and frame.number % levers.frames == 0:
            return True, frame
        to_prev = self.flow(frame["large"], before["large"])
        from_prev = self.flow(before["large"], frame["large"])
        for flow in (to_prev, from_prev):
            if not torch.isfinite(flow).all():
                raise FloatingPointError(f"the flow between frames {before.number} and {frame.number} is not finite")
        if self.scene_cut is not None:
            masks = forward_backward_occlusion(from_prev, to_prev)
            motion = Motion(*(value[:, None] for value in (from_prev, to_prev, *masks)))
            if scene_ends(before["large"], frame["large"], motion, unmatched=self.scene_cut):
                return True, frame
        dtype = torch.float16 if levers.half_flows else torch.float32
        return False, frame.put(flow_to_prev=to_prev.to(dtype), flow_from_prev=from_prev.to(dtype))

    # ---- sampling

    def units(self, frames: int) -> int:
        """Visits of a scene of so many frames."""
        return frames * len(self.sampling.schedule)

    def visit(self, frames: Sequence[Frame], k: int) -> dict[int, Frame]:
        """Unit k of a scene: one denoising step of one frame. Returns the frames that it changes, by place."""
        unit, changed = unit_at(k, len(frames)), {}
        if k == 0:
            changed = {place: self._started(frame, place) for place, frame in enumerate(frames)}
        i, scale = len(self.sampling.schedule) - 1 - unit.step, self.sampling.scales[unit.step]
        frame, condition = changed.get(unit.frame, frames[unit.frame]), None
        final = i == 0 and self.sampling.ends_clean
        if unit.previous is not None:
            before = frames[unit.previous]
            changed[unit.previous] = before.without("x0")
            if scale or final:
                picture = self.model.decode(before["x0"])
            if scale:
                flow = flow_to_previous(frames, unit).to(picture)
                condition = texture_guidance(picture, flow, grid=self.sampling.grid)
            if final:
                changed[unit.previous] = before.without("x0", "z", "lr").put(sr=picture)
        visit = visit_frame(
            frame["z"],
            partial(self.model.predict, lr=frame["lr"], condition=condition, scale=scale),
            scheduler=self.sampling.scheduler,
            schedule=self.sampling.schedule,
            i=i,
            noise=partial(self._drawn, i, frame, len(frames) + k),
        )
        self.on_visit(unit, visit, condition)
        self.tally("sampling")
        changed[unit.frame] = frame.put(z=visit.latent, x0=visit.x0)
        if i == 0 and unit.previous is not None:
            owner = max(unit.frame, unit.previous)
            changed[owner] = changed[owner].without(*FLOWS)
        return changed

    def _started(self, frame: Frame, place: int) -> Frame:
        """The frame with its initial latents."""
        return frame.put(z=self._drawn("start", frame, place))

    def _drawn(self, step: int | str, frame: Frame, turn: int) -> Tensor:
        """Noise (1, c, h, w) for the latents of a frame."""
        channels = self.model.networks["unet"].conv_out.out_channels
        return self.noise(step, frame.number, turn=turn, shape=(channels, *self.sizes.latent)).to(frame["lr"])

    # ---- after sampling

    def complete(self, frame: Frame) -> Frame:
        """The frame with "sr", decoded unless the last step left its picture, in [0, 1] and the size asked for."""
        sr = frame["sr"] if "sr" in frame.values else self.model.decode(frame["z"])
        self.tally("decoding")
        return frame.without("z", "x0", "lr", *FLOWS).put(sr=self.sizes.finished(sr))


def flow_to_previous(frames: Sequence[Frame], unit: Unit) -> Tensor:
    """The flow (1, 2, H, W) at the frame of a unit to the frame visited before it."""
    if unit.previous < unit.frame:
        return frames[unit.frame]["flow_to_prev"]
    return frames[unit.previous]["flow_from_prev"]
