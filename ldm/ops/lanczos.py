"""Pillow's Lanczos resampling of 8-bit pictures."""

import numpy as np
from PIL import Image


def floored_to_multiple(frame: np.ndarray, *, multiple: int = 4) -> np.ndarray:
    """A frame (H, W, 3) uint8 shrunk by Lanczos to the largest sides that `multiple` divides; itself where they fit.

    As the image processor of diffusers does with the frames of the released StableVSR. Raises ValueError for sides
    below `multiple`.
    """
    height, width = frame.shape[:2]
    size = (width - width % multiple, height - height % multiple)
    if not all(size):
        raise ValueError(f"got a frame of {width}x{height}, expected at least {multiple} pixels a side")
    if size == (width, height):
        return frame
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
