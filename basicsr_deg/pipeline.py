"""A degradation: named stages that turn a good clip into a bad one, one after the other."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

BUILDABLE = ("Degradation",)  # what a configuration may name as a target

Op = Callable[..., Iterator[np.ndarray]]
Trace = Callable[[str, dict, np.ndarray], None]


class Degradation:
    """Degrade clips by `stages` (name -> op, None: left out), in the order in which they are given.

    An op is called `op(frames, rng, notes=dict, size=(h, w))`: an iterable of frames (h, w, 3) RGB of grey levels
    0..255, uint8 or float32, in, an iterator of such out; `size` is that of the degraded clip, `notes` takes what was
    drawn. It is applied where a uniform number is at most its `prob`. Frames stream through the stages one by one.

    Sides of the degraded clip: those of the input by `scale`, rounded down, or `size` (h, w) where that is given
    (released: 128x128, that is 4 for the released crops of 512x512).
    """

    def __init__(self, stages: Mapping[str, Op | None], *, scale: float = 4.0, size: list | None = None):
        if not isinstance(stages, Mapping):
            raise ValueError(f"stages: got {type(stages).__name__}, expected a mapping of names to ops")
        if not scale > 0:
            raise ValueError(f"scale: got {scale}, expected more than 0")
        if size is not None and (len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size)):
            raise ValueError(f"size: got {size}, expected [height, width] or null")
        self.stages = {name: op for name, op in stages.items() if op is not None}
        self.scale, self.size = scale, tuple(size) if size else None

    def __call__(self, clip: np.ndarray, rng: np.random.Generator, *, trace: Trace | None = None) -> np.ndarray:
        """Degrade a clip (T, H, W, 3) uint8 RGB: (T, h, w, 3) float32 in [0, 1], not rounded to grey levels.

        `trace(name, notes, frame)` sees every frame (h, w, 3) behind every stage that is applied. Raises ValueError.
        """
        if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or not len(clip):
            raise ValueError(f"got a clip {clip.shape} of {clip.dtype}, expected (T, H, W, 3) of uint8, T at least 1")
        size = self.output_size(*clip.shape[1:3])
        return np.stack(list(self.stream(clip, rng, size=size, trace=trace)))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The sides (h, w) of the degraded clip, at least one pixel each."""
        return self.size or tuple(max(int(side / self.scale), 1) for side in (height, width))

    def stream(
        self,
        frames: Iterable[np.ndarray],
        rng: np.random.Generator,
        *,
        size: tuple[int, int],
        trace: Trace | None = None,
    ) -> Iterator[np.ndarray]:
        """Degraded frames (h, w, 3) float32 in [0, 1], one by one; only a codec holds more than one, and compressed.

        Every stage has a generator of its own, seeded by one draw of `rng` and the stage's name: what a stage draws
        depends neither on the other stages nor on how many frames were asked for. Raises ValueError.
        """
        seed = int(rng.integers(2**63))
        for name, op in self.stages.items():
            own = np.random.default_rng([seed, zlib.crc32(name.encode())])
            if own.uniform() <= op.prob:
                notes = {}
                frames = op(frames, own, notes=notes, size=size)
                frames = frames if trace is None else _traced(frames, name, notes, trace)
        for frame in frames:
            if frame.shape[:2] != tuple(size):
                got, want = ("{1}x{0}".format(*sides) for sides in (frame.shape, size))
                raise ValueError(f"got {got} from the last stage, expected {want}; add a stage basicsr_deg.resize.Fit")
            yield np.clip(frame, 0, 255).astype(np.float32) / 255


def _traced(frames: Iterable[np.ndarray], name: str, notes: dict, trace: Trace) -> Iterator[np.ndarray]:
    for frame in frames:
        trace(name, notes, frame)
        yield frame
