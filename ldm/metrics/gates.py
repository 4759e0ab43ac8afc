"""Quality of an autoencoder's reconstructions, compared with the best linear code of the same size.

Frames are (H, W, 3) uint8 RGB, clips lists of them. Values are means over frames.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from ldm.metrics.fidelity import psnr
from ldm.metrics.sharpness import edge_sharpness

BLOCK = 16  # side in pixels of a block, whose mean has the low frequencies
Frames = Sequence[np.ndarray]


def block_means(frame: np.ndarray) -> np.ndarray:
    """Means of blocks of 16x16 pixels: (H, W, 3) -> (H // 16, W // 16, 3) float32.

    Pixels beyond the last complete block are ignored. Raises ValueError for a frame smaller than a block.
    """
    height, width = (length // BLOCK * BLOCK for length in frame.shape[:2])
    if not height or not width:
        raise ValueError(f"got a frame of {frame.shape[1]}x{frame.shape[0]}, expected at least {BLOCK} pixels a side")
    size = (width // BLOCK, height // BLOCK)
    return cv2.resize(frame[:height, :width].astype(np.float32), size, interpolation=cv2.INTER_AREA)


def low_frequency_part(frame: np.ndarray, truth: np.ndarray) -> float:
    """Fraction of the squared error that is in the means of 16x16 blocks, 0 to 1: a shift of colour or brightness.

    It is 0 for equal frames. Raises ValueError for frames smaller than a block.
    """
    error = frame.astype(np.float32) - truth.astype(np.float32)
    total = float(np.square(error).mean(dtype=np.float64))
    return float(np.square(block_means(error)).mean(dtype=np.float64)) / total if total else 0.0


class LinearCode:
    """Principal component analysis of the blocks of frames (Pearson 1901), the best linear code of its size.

    Args:
        frames: frames to which the code is fitted.
        numbers: coefficients per block.
        side: side of a block in pixels.
    """

    def __init__(self, frames: Frames, *, numbers: int, side: int) -> None:
        self.side = side
        blocks = np.concatenate([self._blocks(frame).reshape(-1, side * side * 3) for frame in frames])
        self.mean = blocks.mean(0)
        _, axes = np.linalg.eigh(np.cov((blocks - self.mean).T))
        self.axes = axes[:, -numbers:]

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Encode and decode a frame. Raises ValueError for sides that are not multiples of the block's."""
        blocks = self._blocks(frame)
        coded = (blocks - self.mean) @ self.axes @ self.axes.T + self.mean
        rows, columns = blocks.shape[:2]
        picture = coded.reshape(rows, columns, self.side, self.side, 3).swapaxes(1, 2)
        return np.rint(picture.reshape(frame.shape).clip(0, 255)).astype(np.uint8)

    def _blocks(self, frame: np.ndarray) -> np.ndarray:
        """(rows, columns, numbers of a block) float64."""
        height, width = frame.shape[:2]
        if height % self.side or width % self.side:
            raise ValueError(f"got a frame of {width}x{height}, expected multiples of {self.side}; crop it")
        parts = frame.reshape(height // self.side, self.side, width // self.side, self.side, 3).swapaxes(1, 2)
        return parts.reshape(*parts.shape[:2], -1).astype(np.float64)


def kept(code: Callable[[np.ndarray], np.ndarray], frames: Frames) -> dict[str, float]:
    """Return `psnr` (dB), `sharpness` and `low_frequency` of frames that are encoded and decoded by `code`."""
    pairs = [(code(frame), frame) for frame in frames]
    figures = {"psnr": psnr, "sharpness": edge_sharpness, "low_frequency": low_frequency_part}
    return {name: float(np.mean([figure(*pair) for pair in pairs])) for name, figure in figures.items()}
