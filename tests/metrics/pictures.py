"""Pictures with recorded figures: two of scikit-image (CC0 and public domain) and distorted copies of them.

The figures in tests/golden/metrics/values.json were computed by the packages that they are named after.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from skimage import data

FOLDER = Path(__file__).parents[1] / "golden" / "metrics"
VALUES = json.loads((FOLDER / "values.json").read_text(encoding="utf-8"))
DISTORTED = {"chelsea": "chelsea_x4.png", "rocket": "rocket_jpeg15.png"}


def original(name: str) -> np.ndarray:
    """(h, w, 3) uint8, with sides that are multiples of 4."""
    frame = getattr(data, name)()
    return frame[: frame.shape[0] // 4 * 4, : frame.shape[1] // 4 * 4]


def recorded_pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray, dict]]:
    """The name, the distorted picture, the original and the recorded figures of each pair."""
    for name, file in DISTORTED.items():
        yield name, cv2.imread(str(FOLDER / file))[..., ::-1], original(name), VALUES["full_reference"][name]
