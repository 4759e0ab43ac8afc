"""The MGLD-VSR method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ldm.diffusion.noise import FrameNoise
from ldm.methods import contract
from ldm.methods.contract import Costs, Progress, Request, no_progress
from ldm.methods.geometry import Geometry
from ldm.methods.mgld import levers as memory
from ldm.methods.mgld.codec import Codec
from ldm.methods.mgld.conditions import dtype_of
from ldm.methods.mgld.levers import TileLevers
from ldm.methods.mgld.restoration import Restoration
from ldm.methods.mgld.settings import Decoding, Sampling
from ldm.methods.progress import Tally
from ldm.methods.windows import Windows
from ldm.methods.words import PRECISIONS, precision_on
from ldm.nets.layers import channels_last, compile_once, half_weights
from ldm.ops.padding import pad_to_multiple
from ldm.streaming.pipeline import Each, Frame, Pipeline, Scenes, run_all

BUILDABLE = ("MGLD",)
NETWORKS = ("unet", "structure", "autoencoder", "sequence_decoder", "text", "flow")
HALVED = ("unet", "structure", "autoencoder", "sequence_decoder")  # run under autocast


@dataclass(frozen=True, kw_only=True)
class MGLD:
    """Motion-guided latent diffusion with overlapping temporal windows, scene by scene.

    Args:
        networks: modules by the names of `NETWORKS`; `flow(img1, img2)` may be any estimator of `ldm.nets` or
            `ldm.ops.dis`. They are set to evaluation mode and channels-last.
        scale_factor: latents are samples of the autoencoder's posterior times this factor.
        sampling, windows, decoding: settings of the sampler, of windows and tiles, and of the decoder.
        min_size: minimum short side, in pixels, to which frames are enlarged before restoration.
        precision: dtype of the networks: "fp32", "bf16", "fp16", or "auto" (`ldm.methods.words.precision_on`). Off the
            CPU, the weights of convolutions and linear layers are converted in place.
        compiled: compile the networks with torch.compile.

    Raises ValueError for a missing network, an unknown word, or a tile that the U-Net cannot downsample.
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
        precision_on(self.device, self.precision)  # raises for an unknown word
        step = self.networks["unet"].downsampling
        if self.windows.tile % step:
            raise ValueError(f"got tile {self.windows.tile}, expected a multiple of {step}")
        for network in self.networks.values():
            channels_last(network).eval().requires_grad_(False)
        if self.dtype is not None and self.device.type != "cpu":
            for name in HALVED:
                half_weights(self.networks[name], self.dtype)

    # ---- the contract

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.networks["unet"].parameters()).device

    def stream(self, request: Request, levers: TileLevers | None = None, progress: Progress = no_progress) -> Pipeline:
        """Return a pipeline that restores a clip; see `ldm.methods.contract.Method.stream`.

        Each sampling step waits for a window of frames, so results are delayed. The noise of a frame depends on its
        number and the seed alone.
        """
        if self.compiled:
            compile_networks(self.networks)  # not before: memory is probed on other sizes
        levers, geometry = levers or self.levers()[0], self.geometry(request.size, request.upscale)
        calls = self.calls(request.frames, geometry.latent, levers) if request.frames else {}
        run = self.restoration(levers, seed=request.seed, tally=Tally(progress, calls))
        enlarge = Each(lambda frame: frame.put(picture=geometry.enlarge(frame["lq"]))).with_label("enlarging")
        kept, compare = memory.caches_pictures(self, request), partial(run.compare, size=geometry.latent)
        stages = [
            enlarge,
            Each(partial(run.encode, size=geometry.latent)).with_label("encoding"),
            Scenes(compare, drop=("small", "lq" if kept else "picture")).with_label("flow"),
            *run.sampling_stages(),
            *([] if kept else [enlarge]),
            run.decoding_stage(),
            Each(run.fix_colors).with_label("colours"),
            Each(lambda frame: frame.put(sr=geometry.finish(frame["sr"])).without("lq", "picture")).with_label(
                "colours"
            ),
        ]
        return Pipeline(stages, device=self.device)

    def find_scenes(self, request: Request) -> Pipeline | None:
        """Return a pipeline that finds the scenes of a clip; see `ldm.methods.contract.SceneMethod.find_scenes`."""
        geometry = self.geometry(request.size, request.upscale)
        run = self.restoration(self.levers()[0], seed=request.seed, tally=Tally(no_progress, {}))
        shrink = Each(lambda frame: run.shrink(frame.put(picture=geometry.enlarge(frame["lq"]))).without("picture"))
        return Pipeline([shrink, Scenes(partial(run.compare, size=geometry.latent))], device=self.device)

    def levers(self) -> list[TileLevers]:
        """Return tiles and norms from those of the settings down to the least memory."""
        step, on_cpu = self.networks["unet"].downsampling, self.device.type == "cpu"
        return memory.ladder(self.windows, self.decoding, step=step, on_cpu=on_cpu)

    def probes(self, levers: TileLevers) -> dict[str, Callable[[int], int | None]]:
        """Return runs of one window per stage, and the bytes of the structure encoder's maps of a frame ("maps")."""
        run, codec = self.restoration(levers, seed=0, tally=Tally(no_progress, {})), self.codec(levers)

        def latents(frames: int, side: int) -> Tensor:
            return torch.zeros(1, frames, self.channels, side, side, device=self.device)

        def pictures(frames: int, side: int) -> Tensor:
            side *= codec.downsampling
            return torch.zeros(1, frames, 3, side, side, device=self.device)

        @torch.no_grad()
        def sampling(side: int) -> None:
            values = {"x": latents(1, side)[:, 0], "z": latents(1, side)[:, 0]}
            run.window_step([Frame(k, values) for k in range(self.windows.n_frames)], i=0)

        @torch.no_grad()
        def encoding(side: int) -> None:
            codec.encode(pictures(1, side), latents(1, side))

        @torch.no_grad()
        def decoding(side: int) -> None:
            count = self.decoding.windows.n_frames
            codec.decode(latents(count, side), pictures(count, side))

        @torch.no_grad()
        def maps(side: int) -> int:
            z = latents(1, side).to(dtype_of(self.networks["structure"], torch.float32))
            with codec.autocast():
                made = self.networks["structure"](z[:, 0], torch.zeros(1, dtype=torch.long, device=self.device))
            return sum(value.nbytes for value in made)

        return {"sampling": sampling, "encoding": encoding, "decoding": decoding, "maps": maps}

    def peak(self, request: Request, levers: TileLevers, costs: Costs) -> int:
        """Predict the peak in bytes; see `ldm.methods.contract.Method.peak`."""
        return memory.peak(self, request, levers, costs)

    # ---- beyond the contract

    def restore(self, lq: Tensor, *, upscale: float = 4.0, seed: int = 42, progress: Progress = no_progress) -> Tensor:
        """Restore frames (T, 3, h, w) or clips (B, T, 3, h, w) in [0, 1], enlarged by `upscale`.

        T is at least 1; sides are at least 16 pixels. All clips of a batch have the same noise. Raises the errors of
        `ldm.methods.contract.restore_clip`.
        """
        if lq.ndim == 5 and len(lq):
            return torch.stack([self.restore(clip, upscale=upscale, seed=seed, progress=progress) for clip in lq])
        return contract.restore_clip(self, lq, Request(tuple(lq.shape[-2:]), len(lq), upscale, seed), progress)

    def latents(self, pictures: Tensor, *, seed: int = 42) -> list[Frame]:
        """Sample the latents of a clip (T, 3, H, W) in [0, 1] that already has its padded output size.

        Returns frames with the sampled latents "x" and the LQ latents "z", both (1, c, h, w), and their motion
        (`restoration.motion_between`).
        """
        run = self.restoration(self.levers()[0], seed=seed, tally=Tally(no_progress, {}))
        f = self.networks["autoencoder"].downsampling
        size = (pictures.shape[-2] // f, pictures.shape[-1] // f)
        compare = partial(run.compare, size=size)
        stages = [Each(partial(run.encode, size=size)), Scenes(compare, drop=("small", "picture"))]
        frames = [Frame(number, {"picture": frame[None]}) for number, frame in enumerate(pictures)]
        return run_all([*stages, *run.sampling_stages()], frames, device=self.device)

    def restoration(self, levers: TileLevers, *, seed: int, tally: Tally) -> Restoration:
        """Return the operations on one clip, with noise that depends on seed, step and frame number alone."""
        return Restoration(
            self.networks,
            codec=self.codec(levers),
            sampling=self.sampling,
            windows=levers.sampling_windows(self.windows),
            noise=FrameNoise(seed),
            tally=tally,
            cached=levers.cached,
        )

    def codec(self, levers: TileLevers) -> Codec:
        """Return the autoencoders with the tiles and norms of `levers`."""
        return Codec(
            self.networks["autoencoder"],
            self.networks["sequence_decoder"],
            levers.decoding(self.decoding),
            scale_factor=self.scale_factor,
            dtype=self.dtype,
        )

    def geometry(self, size: tuple[int, int], upscale: float) -> Geometry:
        """Return the sizes for input frames of `size` (h, w)."""
        f = self.networks["autoencoder"].downsampling
        pad = partial(pad_to_multiple, multiple=f * self.networks["unet"].downsampling)
        return Geometry(size, upscale=upscale, min_size=self.min_size, pad=pad, downsampling=f)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of autocast; None disables it."""
        return PRECISIONS[precision_on(self.device, self.precision)]

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return self.networks["autoencoder"].post_quant_conv.in_channels

    @property
    def frames_held(self) -> int:
        """Maximum number of frames that a stream holds."""
        return memory.frames_held(
            len(self.sampling.schedule),
            windows=self.windows,
            reach=self.sampling.reach,
            decoding=self.decoding.windows,
        )

    def calls(self, frames: int, size: tuple[int, int], levers: TileLevers) -> dict[str, int]:
        """Return the network calls by stage for a scene of so many frames with latents of `size` (h, w)."""
        codec = self.codec(levers)
        sampling = levers.sampling_windows(self.windows).calls(frames, *size, steps=len(self.sampling.schedule))
        tiles = codec.decoding.windows
        decoding = tiles.calls(frames, 1, 1) if codec.cut_of(size) else tiles.calls(frames, *size)
        return {"sampling": sampling, "decoding": decoding}


def compile_networks(networks: Mapping[str, nn.Module]) -> None:
    """Compile the slow networks in place, for fixed shapes. Encoder and decoder run compiled only on blended tiles."""
    parts = networks["autoencoder"].encoder, networks["sequence_decoder"].decoder
    for network in (networks["unet"], networks["structure"], *parts):
        compile_once(network)
