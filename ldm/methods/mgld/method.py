"""MGLD-VSR over built networks, frames to frames."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ldm.diffusion.noise import FrameNoise
from ldm.methods import contract
from ldm.methods.contract import Costs, Progress, Request, silent
from ldm.methods.geometry import Geometry
from ldm.methods.mgld import levers as memory
from ldm.methods.mgld.codec import Codec
from ldm.methods.mgld.levers import TileLevers
from ldm.methods.mgld.restoration import Restoration
from ldm.methods.mgld.settings import PRECISIONS, Decoding, Sampling, Windows, choose
from ldm.methods.progress import Tally
from ldm.nets.layers import channels_last
from ldm.ops.padding import pad_to_multiple
from ldm.streaming.pipeline import Each, Frame, Pipeline, Scenes, run_all

BUILDABLE = ("MGLD",)
NETWORKS = ("unet", "structure", "autoencoder", "sequence_decoder", "text", "flow")


@dataclass(frozen=True, kw_only=True)
class MGLD:
    """Motion-guided latent diffusion with overlapping temporal windows, scene by scene.

    Args:
        networks: modules by the names of `NETWORKS`; `flow(img1, img2)` may be any estimator of `ldm.nets` or
            `ldm.ops.dis`. They are set to evaluation and channels-last.
        scale_factor: latents are this times the sample of the autoencoder's posterior.
        sampling, windows, decoding: how latents are sampled, cut into windows and tiles, and decoded.
        min_size: frames are enlarged until their short side has this many pixels before they are restored.
        precision: "fp32", or "bf16" or "fp16" for the networks alone.
        compiled: run the networks by torch.compile.

    Raises ValueError for a missing network, an unknown word, or a tile that the U-Net cannot halve.
    """

    networks: Mapping[str, nn.Module]
    scale_factor: float = 0.18215
    sampling: Sampling
    windows: Windows
    decoding: Decoding
    min_size: int = 512
    precision: str = "fp32"
    compiled: bool = False

    def __post_init__(self):
        for name in NETWORKS:
            if name not in self.networks:
                raise ValueError(f"got networks {sorted(self.networks)}, expected {name} among them")
        choose(PRECISIONS, self.precision, "precision")
        step = self.networks["unet"].downsampling
        if self.windows.tile % step:
            raise ValueError(f"got tile {self.windows.tile}, expected a multiple of {step}")
        for network in self.networks.values():
            channels_last(network).eval().requires_grad_(False)
        if self.compiled:
            compile_networks(self.networks)

    # ---- the contract

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks["unet"].parameters()).device

    def stream(self, request: Request, levers: TileLevers | None = None, progress: Progress = silent) -> Pipeline:
        """The stages that restore a clip; see `ldm.methods.contract.Method.stream`.

        Each sampling step waits for a window of frames, so frames come out late. The noise of a frame depends on its
        number and the seed alone.
        """
        levers, geometry = levers or self.levers()[0], self.geometry(request.size, request.upscale)
        calls = self.calls(request.frames, geometry.latent, levers) if request.frames else {}
        run = self.restoration(levers, seed=request.seed, tally=Tally(progress, calls))
        enlarge = Each(lambda frame: frame.put(picture=geometry.enlarge(frame["lq"]))).labelled("enlarging")
        kept = memory.keeps_pictures(self, request)
        stages = [
            enlarge,
            Each(partial(run.encode, size=geometry.latent)).labelled("encoding"),
            Scenes(run.compare, spent=("small", "lq" if kept else "picture")).labelled("flow"),
            *run.sampling_stages(),
            *([] if kept else [enlarge]),
            run.decoding_stage(),
            Each(run.fix_colors).labelled("colours"),
            Each(lambda frame: frame.put(sr=geometry.finish(frame["sr"])).without("lq", "picture")).labelled("colours"),
        ]
        return Pipeline(stages, device=self.device)

    def levers(self) -> list[TileLevers]:
        """Tiles and norms from those of the settings down to the least memory."""
        return memory.ladder(self.windows, self.decoding, step=self.networks["unet"].downsampling)

    def probes(self, levers: TileLevers) -> dict[str, Callable[[int], int | None]]:
        """A window of each stage, and the bytes of the maps of the structure encoder for one frame ("maps")."""
        run, codec = self.restoration(levers, seed=0, tally=Tally(silent, {})), self.codec(levers)

        def latents(frames: int, side: int) -> Tensor:
            return torch.zeros(1, frames, self.channels, side, side, device=self.device)

        def pictures(frames: int, side: int) -> Tensor:
            side *= codec.downsampling
            return torch.zeros(1, frames, 3, side, side, device=self.device)

        @torch.no_grad()
        def sampling(side: int) -> None:
            values = {"x": latents(1, side)[:, 0], "z": latents(1, side)[:, 0]}
            run.denoise([Frame(k, values) for k in range(self.windows.n_frames)], i=0)

        @torch.no_grad()
        def encoding(side: int) -> None:
            codec.encode(pictures(1, side), latents(1, side))

        @torch.no_grad()
        def decoding(side: int) -> None:
            count = self.decoding.windows.n_frames
            codec.decode(latents(count, side), pictures(count, side))

        @torch.no_grad()
        def maps(side: int) -> int:
            z = latents(1, side)
            with codec.autocast():
                made = self.networks["structure"](z[:, 0], torch.zeros(1, dtype=torch.long, device=self.device))
            return sum(value.nbytes for value in (z, *made))

        return {"sampling": sampling, "encoding": encoding, "decoding": decoding, "maps": maps}

    def peak(self, request: Request, levers: TileLevers, costs: Costs) -> int:
        """Bytes that restoring takes at most; see `ldm.methods.contract.Method.peak`."""
        return memory.peak(self, request, levers, costs)

    # ---- more than the contract

    def restore(self, lq: Tensor, *, upscale: float = 4.0, seed: int = 42, progress: Progress = silent) -> Tensor:
        """Restore frames (T, 3, h, w) or clips (B, T, 3, h, w) in [0, 1] -> the same `upscale` times as large.

        Any number of frames, any sides from 16 pixels. The same seed gives every clip of a batch the same noise. Raises
        as `ldm.methods.contract.restore_clip`.
        """
        if lq.ndim == 5 and len(lq):
            return torch.stack([self.restore(clip, upscale=upscale, seed=seed, progress=progress) for clip in lq])
        return contract.restore_clip(self, lq, Request(tuple(lq.shape[-2:]), len(lq), upscale, seed), progress)

    def latents(self, pictures: Tensor, *, seed: int = 42) -> list[Frame]:
        """The frames of a clip (T, 3, H, W) in [0, 1] of the final size, padded, with their sampled latents "x".

        Also the latents of the input "z", both (1, c, h, w), and the motion (`restoration.motion_between`).
        """
        run = self.restoration(self.levers()[0], seed=seed, tally=Tally(silent, {}))
        f = self.networks["autoencoder"].downsampling
        size = (pictures.shape[-2] // f, pictures.shape[-1] // f)
        stages = [Each(partial(run.encode, size=size)), Scenes(run.compare, spent=("small", "picture"))]
        frames = [Frame(number, {"picture": frame[None]}) for number, frame in enumerate(pictures)]
        return run_all([*stages, *run.sampling_stages()], frames, device=self.device)

    def restoration(self, levers: TileLevers, *, seed: int, tally: Tally) -> Restoration:
        """The functions of the stages for one clip, with noise that has an address."""
        return Restoration(
            self.networks,
            codec=self.codec(levers),
            sampling=self.sampling,
            windows=levers.sampling_windows(self.windows),
            noise=FrameNoise(seed),
            tally=tally,
        )

    def codec(self, levers: TileLevers) -> Codec:
        """The autoencoders, cut as `levers` say."""
        return Codec(
            self.networks["autoencoder"],
            self.networks["sequence_decoder"],
            levers.decoding(self.decoding),
            scale_factor=self.scale_factor,
            dtype=PRECISIONS[self.precision],
        )

    def geometry(self, size: tuple[int, int], upscale: float) -> Geometry:
        """The sizes that frames of `size` (h, w) go through."""
        f = self.networks["autoencoder"].downsampling
        pad = partial(pad_to_multiple, multiple=f * self.networks["unet"].downsampling)
        return Geometry(size, upscale=upscale, min_size=self.min_size, pad=pad, downsampling=f)

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.networks["autoencoder"].post_quant_conv.in_channels

    @property
    def frames_held(self) -> int:
        """Frames that a stream holds at most."""
        return memory.frames_held(
            len(self.sampling.schedule),
            windows=self.windows,
            reach=self.sampling.reach,
            decoding=self.decoding.windows,
        )

    def calls(self, frames: int, size: tuple[int, int], levers: TileLevers) -> dict[str, int]:
        """Calls of networks by stage for one scene of so many frames whose latents have `size` (h, w)."""
        codec = self.codec(levers)
        sampling = levers.sampling_windows(self.windows).calls(frames, *size) * len(self.sampling.schedule)
        tiles = codec.decoding.windows
        decoding = tiles.calls(frames, 1, 1) if codec.cut_of(size) else tiles.calls(frames, *size)
        return {"sampling": sampling, "decoding": decoding}


def compile_networks(networks: Mapping[str, nn.Module]) -> None:
    """Have torch.compile work on what takes the time; on encoder and decoder only where they run by tiles."""
    parts = networks["autoencoder"].encoder, networks["sequence_decoder"].decoder
    for network in (networks["unet"], networks["structure"], *parts):
        network.compile()
