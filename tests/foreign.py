"""A method that the project does not know, as somebody would write it: one convolution over enlarged frames."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from ldm.methods.contract import Request, no_progress
from ldm.streaming.pipeline import Each, Frame, Pipeline


@dataclass(frozen=True)
class Rows:
    """How many rows are restored at once."""

    rows: int


@dataclass(frozen=True)
class Soften:
    """Enlarge a frame and convolve it, `rows` at a time."""

    networks: Mapping[str, nn.Module]
    gain: float = 1.0

    @property
    def device(self):
        return self.networks["net"].weight.device

    def stream(self, request: Request, levers: Rows | None = None, progress=no_progress) -> Pipeline:
        size = tuple(int(side * request.upscale) for side in request.size)

        def restore(frame: Frame) -> Frame:
            progress("softening", frame.number + 1, request.frames)
            large = F.interpolate(frame["lq"].float() / 255, size, mode="bilinear", align_corners=False)
            return frame.put(sr=(self.gain * self.networks["net"](large)).clamp(0, 1)).without("lq")

        return Pipeline([Each(restore).with_label("softening")], device=self.device)

    def levers(self):
        return [Rows(64), Rows(32)]

    def probes(self, levers):
        return {"net": lambda side: self.networks["net"](torch.zeros(1, 3, side, side)) is None or 4 * 3 * side**2}

    def peak(self, request, levers, costs):
        return int(costs["net"][1] * levers.rows * request.size[1] * request.upscale)


CARD = {
    "networks": {
        "net": {"target": "torch.nn.Conv2d", "params": {"in_channels": 3, "out_channels": 3, "kernel_size": 1}}
    },
    "method": {"target": "tests.foreign.Soften", "params": {"gain": 1.0}},
    "weights": {"soft": {"files": ["soft"], "fills": {"net": ""}, "has": ["weight", "bias"]}},
    "flags": {"dec_w": {"key": "method.params.gain", "type": "number"}},
    "output": {"rounding": "nearest"},
}
