"""Contact sheets of a degradation: the output of every stage side by side, with the parameters that were drawn."""

import textwrap
from collections.abc import Iterator, Mapping

import cv2
import numpy as np

from basicsr_deg.compression import as_bytes

FONT, LETTERS, LINE, LINES = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 14, 5  # font scale, height of a line, lines of text
INK, PAPER = (235, 235, 235), 24
STORED = [cv2.IMWRITE_JPEG_QUALITY, 95]


class Panels:
    """Collect frames as the `trace` of a Degradation, at most `most` per stage, and arrange them in pictures.

    A panel is a picture `width` pixels wide, with the aspect ratio of the first frame, enlarged without smoothing or
    shrunk, and with text below it. Panels are held as JPEGs, since stages reach a frame at different times.
    """

    def __init__(self, *, width: int = 320, most: int = 100):
        self.width, self.height, self.most = width, 0, most
        self.stages: dict[str, list[bytes]] = {}

    def __call__(self, name: str, notes: Mapping, frame: np.ndarray) -> None:
        panels = self.stages.setdefault(name, [])
        self.height = self.height or min(max(round(self.width * frame.shape[0] / frame.shape[1]), 1), 2 * self.width)
        if len(panels) < self.most:
            drawn = self._panel(f"{name}  {frame.shape[1]}x{frame.shape[0]}", notes, as_bytes(frame))
            panels.append(cv2.imencode(".jpg", drawn[..., ::-1], STORED)[1].tobytes())

    def pictures(self) -> Iterator[np.ndarray]:
        """Generate a picture (H, W, 3) uint8 RGB for every frame that has passed all stages, with stages in a grid."""
        columns = int(np.ceil(np.sqrt(len(self.stages))))
        blank = self._paper()
        through = min(map(len, self.stages.values()), default=0)
        for panels in zip(*(drawn[:through] for drawn in self.stages.values()), strict=True):
            cells = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for data in panels]
            cells += [blank] * (-len(cells) % columns)
            rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
            yield np.ascontiguousarray(np.vstack(rows))

    def _paper(self) -> np.ndarray:
        return np.full((self.height + LINE * (LINES + 1), self.width, 3), PAPER, np.uint8)

    def _panel(self, title: str, notes: Mapping, frame: np.ndarray) -> np.ndarray:
        height, width = self.height, self.width
        ratio = min(height / frame.shape[0], width / frame.shape[1])
        h, w = (max(round(side * ratio), 1) for side in frame.shape[:2])
        how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_NEAREST
        panel = self._paper()
        panel[:h, (width - w) // 2 : (width - w) // 2 + w] = cv2.resize(frame, (w, h), interpolation=how)
        for k, line in enumerate([title, *textwrap.wrap(describe(notes), width // 7)][:LINES]):
            cv2.putText(panel, line, (4, height + LINE * (k + 1)), FONT, LETTERS, INK, 1, cv2.LINE_AA)
        return panel


def describe(notes: Mapping) -> str:
    """Describe the drawn parameters in a line; of lists (one value per frame), the last value is used."""
    latest = {name: value[-1] if isinstance(value, list) else value for name, value in notes.items()}
    numbers = (float, np.floating)
    words = (f"{k} {v:.3g}" if isinstance(v, numbers) else f"{k} {str(v).lower()}" for k, v in latest.items())
    return ", ".join(words)
