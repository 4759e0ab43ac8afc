"""StableVSR over built networks, frames to frames."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.methods.contract import Costs, Progress, Request, no_progress
from ldm.methods.progress import Tally
from ldm.methods.stablevsr import levers as memory
from ldm.methods.stablevsr.levers import SceneLevers
from ldm.methods.stablevsr.restoration import HOST, Draws, FrameNetworks, SceneRestoration, Watch, unwatched
from ldm.methods.stablevsr.settings import DRAWS, BidirectionalSampling
from ldm.methods.stablevsr.sizes import Sizes
from ldm.methods.words import PRECISIONS, choose, precision_on
from ldm.nets.layers import channels_last
from ldm.streaming.pipeline import Each, Pipeline, Scenes, Stage
from ldm.streaming.scene import WholeScene

BUILDABLE = ("StableVSR",)
SCENES = {"whole": False, "blocks": True}
NETWORKS = ("unet", "control", "autoencoder", "text", "flow")


@dataclass(frozen=True, kw_only=True)
class StableVSR:
    """Frame-wise bidirectional sampling with texture guidance, scene by scene.

    Args:
        networks: modules by the names of `NETWORKS`; `flow(img1, img2)` may be any estimator of `ldm.nets` or
            `ldm.ops.dis`. They are set to evaluation and channels-last.
        sampling: how latents are sampled.
        scale_factor: latents are this times those of the autoencoder.
        scene_cut: a scene ends where more than this part of the pixels has no match in the neighbouring frame, in
            either direction (`ldm.ops.cuts.scene_ends`); None: never, as released.
        fit: how sides become multiples of 4: "padded" or "floored" (`ldm.methods.stablevsr.sizes.Sizes`).
        precision: "fp32", "bf16" or "fp16" for the networks alone, or "auto" (`ldm.methods.words.precision_on`).
        scenes: "whole", or "blocks" for memory that does not grow with a scene. In blocks, forward passes continue over
            the end of a block, backward passes start `ahead` frames after it: exact where one block holds the scene, or
            without backward passes. Little memory also leads to blocks.
        block, ahead: frames of a block, and frames after it that are processed with it and again in the next one.

    Raises ValueError for a missing network, an unknown word, a number out of range, or networks that do not go
    together.
    """

    networks: Mapping[str, nn.Module]
    sampling: BidirectionalSampling
    scale_factor: float = 0.08333
    scene_cut: float | None = 0.85
    fit: str = "padded"
    precision: str = "fp32"
    scenes: str = "whole"
    block: int = 32
    ahead: int = 8

    def __post_init__(self):
        for name in NETWORKS:
            if name not in self.networks:
                raise ValueError(f"got networks {sorted(self.networks)}, expected {name} among them")
        precision_on(self.device, self.precision)  # raises for an unknown word
        self._check_scenes()
        self.sizes((16, 16), 4)  # raises for an unknown fit
        if not self.scale_factor > 0 or not (self.scene_cut is None or 0 < self.scene_cut < 1):
            got = f"scale_factor {self.scale_factor} and scene_cut {self.scene_cut}"
            raise ValueError(f"got {got}, expected a number above 0, and null or a part between 0 and 1")
        enlarging = self.networks["autoencoder"].downsampling, self.networks["control"].upscaling
        if len(set(enlarging)) > 1:
            got = f"an autoencoder that enlarges {enlarging[0]} times and a control network for {enlarging[1]}"
            raise ValueError(f"got {got}, expected one factor")
        for network in self.networks.values():
            channels_last(network).eval().requires_grad_(False)

    def _check_scenes(self) -> None:
        choose(SCENES, self.scenes, "scenes")
        if self.block < 1 or self.ahead < 0:
            raise ValueError(f"got block {self.block} and ahead {self.ahead}, expected at least 1 and 0")
        if self.scenes == "blocks" and not self.sampling.addressed:
            raise ValueError("got scenes: blocks with draws: sequential, expected draws: addressed, or scenes: whole")

    # ---- the contract

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks["unet"].parameters()).device

    def stream(self, request: Request, levers: SceneLevers | None = None, progress: Progress = no_progress) -> Pipeline:
        """The stages that restore a clip; see `ldm.methods.contract.Method.stream`.

        The frames of a scene, or of a block, are returned when all of them were sampled.
        """
        run = self.restoration(request, levers or self.levers()[0], progress=progress)
        return Pipeline(self.stages(run), device=self.device)

    def find_scenes(self, request: Request) -> Pipeline | None:
        """The stages up to the scenes; None with sequential draws, which continue from scene to scene."""
        if not self.sampling.addressed:
            return None
        return Pipeline(self.stages(self.restoration(request, self.levers()[0]))[:2], device=self.device)

    def levers(self) -> list[SceneLevers]:
        """From whole scenes (or the blocks that the settings name), decoded in one piece, down to the least memory."""
        ahead = self.ahead if self.sampling.looks_ahead else 0
        block = self.block if SCENES[self.scenes] else 0
        return memory.scene_ladder(block=block, ahead=ahead, blocks=self.sampling.addressed)

    def probes(self, levers: SceneLevers) -> dict[str, Callable[[int], int | None]]:
        """A visit with guidance, the decoding of a frame, and a flow."""
        model, flow = self.model(levers), self.networks["flow"]

        def zeros(channels: int, side: int) -> Tensor:
            return torch.zeros(1, channels, side, side, device=self.device)

        @torch.no_grad()
        def sampling(side: int) -> None:
            condition = zeros(3, side * self.factor)
            model.predict(zeros(self.channels, side), 1, lr=zeros(3, side), condition=condition, scale=1.0)

        @torch.no_grad()
        def decoding(side: int) -> None:
            model.decode(zeros(self.channels, side))

        @torch.no_grad()
        def moving(side: int) -> None:
            flow(zeros(3, side * self.factor), zeros(3, side * self.factor))

        return {"sampling": sampling, "decoding": decoding, "flow": moving}

    def peak(self, request: Request, levers: SceneLevers, costs: Costs) -> int | None:
        """Bytes that restoring takes at most; see `ldm.methods.contract.Method.peak`."""
        return memory.scene_peak(self, request, levers, costs)

    # ---- more than the contract

    def stages(self, run: SceneRestoration) -> list[Stage]:
        """The stages of a clip, from "lq" to "sr"."""
        levers = run.model.levers
        blocks = {"block": levers.block or None, "ahead": levers.ahead, "host": HOST}
        return [
            Each(run.prepare).with_label("enlarging"),
            Scenes(run.compare, drop=("large",)).with_label("flow"),
            WholeScene(run.units, run.visit, **blocks).with_label("sampling"),
            Each(run.complete).with_label("decoding"),
        ]

    def restoration(
        self,
        request: Request,
        levers: SceneLevers,
        *,
        noise: Draws | None = None,
        flow: Callable[[Tensor, Tensor], Tensor] | None = None,
        on_visit: Watch = unwatched,
        progress: Progress = no_progress,
    ) -> SceneRestoration:
        """The functions of the stages for one clip; `noise` and `flow` replace the method's own."""
        totals = {}
        if request.frames:
            totals = {"sampling": request.frames * len(self.sampling.schedule), "decoding": request.frames}
        return SceneRestoration(
            self.model(levers),
            flow=flow or self.networks["flow"],
            sizes=self.sizes(request.size, request.upscale),
            sampling=self.sampling,
            noise=noise or DRAWS[self.sampling.draws](request.seed),
            tally=Tally(progress, totals),
            scene_cut=self.scene_cut,
            on_visit=on_visit,
        )

    def model(self, levers: SceneLevers) -> FrameNetworks:
        """The networks for one frame, cut as `levers` say."""
        return FrameNetworks(self.networks, scale_factor=self.scale_factor, dtype=self.dtype, levers=levers)

    def sizes(self, size: tuple[int, int], upscale: float) -> Sizes:
        """The sizes that frames of `size` (h, w) go through."""
        return Sizes(size, upscale=upscale, factor=self.factor, fit=self.fit)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of autocast."""
        return PRECISIONS[precision_on(self.device, self.precision)]

    @property
    def factor(self) -> int:
        """Side of an enlarged frame over that of its latents."""
        return self.networks["autoencoder"].downsampling

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.networks["unet"].conv_out.out_channels
