"""Which frames the released StableVSR trains on: the random choices of its REDSRecurrentDataset, draw by draw."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

from basicsr_deg.reds import PARTITIONS


class Key(NamedTuple):
    """A frame of the list: every frame of every clip is a sample of its own."""

    clip: str
    frame: int


def recurrent_keys(counts: Mapping[str, int], *, partition: str = "REDS4", held_out: bool = False) -> list[Key]:
    """The samples of clips with so many frames each; `partition` is kept for testing (`held_out`: only that).

    Raises ValueError for a partition that is not known.
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
    """The frame numbers of a sample: from the key's frame on, or from a random start where they would leave the clip.

    Draws as released: one choice of the interval even where there is one, a start only where needed, and one number for
    the direction only where `random_reverse` is on. `length` is the clip's; the released code takes 100 for all. Raises
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
    """Which neighbour of the middle frame of three guides it: 0 or 2, from a uniform number."""
    return 2 * round(draw)
