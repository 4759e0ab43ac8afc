"""What the video tests share: small clips, and ways to put them on disk."""

import cv2
import numpy as np

from ldm.video import open_writer


def frames_of(count, height=48, width=64, seed=0):
    """Smooth random frames, each clearly different from the others."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)
    return [cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) for image in small]


def write(path, frames, **options):
    with open_writer(path, size=frames[0].shape[:2], **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def leftovers(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name.startswith("."))
