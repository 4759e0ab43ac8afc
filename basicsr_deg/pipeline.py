"""Degradation pipeline: named stages that are applied to a clip in order."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from basicsr_deg.walk import pick, read_weights

BUILDABLE = ("Degradation", "Mixture")  # what a configuration may name as a target

Op = Callable[..., Iterator[np.ndarray]]
Trace = Callable[[str, dict, np.ndarray], None]


class Degradation:
    """Degrade clips by a sequence of stages; frames are streamed through the stages one by one.

    A stage is an op called as `op(frames, rng, notes=dict, size=(h, w))`. It takes an iterable of RGB frames (h, w, 3)
    with grey levels 0..255, uint8 or float32, and returns an iterator of such frames. `size` is the size of the
    degraded clip, and the op records the drawn parameters in `notes`. It is applied with probability `op.prob`.

    Args:
        stages: name -> op, in order; None skips a stage.
        scale: ratio of the input sides to the degraded sides, which are rounded down.
        size: degraded size (h, w), in place of `scale`. The released code uses 128x128 for crops of 512x512.
    Raises:
        ValueError: an argument of another type or out of range.
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
        """Degrade a clip (T, H, W, 3) uint8 RGB to (T, h, w, 3) float32 in [0, 1], not rounded to grey levels.

        `trace(name, notes, frame)` is called with every frame (h, w, 3) after every stage that is applied.

        Raises:
            ValueError: another shape or dtype, or a stage that fails.
        """
        if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8 or not len(clip):
            raise ValueError(f"got a clip {clip.shape} of {clip.dtype}, expected (T, H, W, 3) of uint8, T at least 1")
        size = self.output_size(*clip.shape[1:3])
        return np.stack(list(self.stream(clip, rng, size=size, trace=trace)))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Size (h, w) of the degraded clip, at least one pixel per side."""
        return self.size or tuple(max(int(side / self.scale), 1) for side in (height, width))

    def stream(
        self,
        frames: Iterable[np.ndarray],
        rng: np.random.Generator,
        *,
        size: tuple[int, int],
        trace: Trace | None = None,
    ) -> Iterator[np.ndarray]:
        """Generate degraded frames (h, w, 3) float32 in [0, 1]; only a codec holds several frames, in compressed form.

        Every stage has its own generator, seeded by one draw of `rng` and the name of the stage. Its draws therefore
        depend neither on the other stages nor on the number of frames.

        Raises:
            ValueError: the last stage does not give frames of `size`, or a stage fails.
        """
        seed = int(rng.integers(2**63))
        for name, op in self.stages.items():
            own = np.random.default_rng([seed, zlib.crc32(name.encode())])
            if own.uniform() <= op.prob:
                notes = {}
                frames = op(frames, own, notes=notes, size=size)
                frames = frames if trace is None else traced(frames, name, notes, trace)
        for frame in frames:
            if frame.shape[:2] != tuple(size):
                got, want = ("{1}x{0}".format(*sides) for sides in (frame.shape, size))
                raise ValueError(f"got {got} from the last stage, expected {want}; add a stage basicsr_deg.resize.Fit")
            yield np.clip(frame, 0, 255).astype(np.float32) / 255


class Mixture:
    """Degrade each clip by one of several degradations.

    Args:
        degradations: name -> {degradation, weight}; weights need not sum to 1.
    Raises:
        ValueError: no degradation, or one of another form.
    """

    def __init__(self, degradations: Mapping[str, Mapping]):
        if not isinstance(degradations, Mapping) or not degradations:
            raise ValueError(f"degradations: got {degradations!r}, expected a mapping of names")
        for name, entry in degradations.items():
            if not isinstance(entry, Mapping) or set(entry) != {"degradation", "weight"}:
                raise ValueError(f"degradations.{name}: got {entry!r}, expected a degradation and a weight")
        self.degradations = {name: entry["degradation"] for name, entry in degradations.items()}
        weights = {name: entry["weight"] for name, entry in degradations.items()}
        self.weights = read_weights(weights, list(weights), "degradations")

    def __call__(self, clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Degrade a clip as `Degradation` does."""
        return self.degradations[pick(self.weights, rng)](clip, rng)


def traced(frames: Iterable[np.ndarray], name: str, notes: dict, trace: Trace) -> Iterator[np.ndarray]:
    """Iterate over frames and call `trace(name, notes, frame)` with each."""
    for frame in frames:
        trace(name, notes, frame)
        yield frame
