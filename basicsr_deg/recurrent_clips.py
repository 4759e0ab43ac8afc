"""Training frames of the released StableVSR: the random choices of its REDSRecurrentDataset, in the same order."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

from basicsr_deg.reds import PARTITIONS


class Key(NamedTuple):
    """A sample: every frame of every clip is one."""

    clip: str
    frame: int


def recurrent_keys(counts: Mapping[str, int], *, partition: str = "REDS4", held_out: bool = False) -> list[Key]:
    """Return the samples of clips with the given numbers of frames, without the held-out `partition` or only that.

    Raises ValueError for an unknown partition.
    """
    if partition not in PARTITIONS:
        raise ValueError(f"got partition {partition!r}, expected one of {', '.join(PARTITIONS)}")
    kept = set(PARTITIONS[partition])
    return [Key(clip, frame) for clip, count in counts.items() if (clip in kept) == held_out for frame in range(count)]


def recurrent_frames(
    key: Key,
    rng: Random,
    *,
    num_frame: int = 3,
    interval_list: Sequence[int] = (1,),
    random_reverse: bool = False,
    length: int = 100,
) -> list[int]:
    """Return the frame numbers of a sample, from the key's frame on, or from a random start at the end of a clip.

    Draws as released: one choice of the interval even if there is only one, a start only if needed, and a number for
    the direction only with `random_reverse`. `length` is that of the clip; the released code assumes 100. Raises
    ValueError for a clip that is too short.
    """
    interval = rng.choice(list(interval_list))
    last = length - num_frame * interval
    if last < 0:
        raise ValueError(f"got clip {key.clip} of {length} frames, expected {num_frame * interval}; leave it out")
    start = key.frame if key.frame <= last else rng.randint(0, last)
    frames = list(range(start, start + num_frame * interval, interval))
    return frames[::-1] if random_reverse and rng.random() < 0.5 else frames


def neighbour_index(draw: float) -> int:
    """Return the neighbour (0 or 2) that guides the middle frame of three, from a uniform number in [0, 1)."""
    return 2 * round(draw)
