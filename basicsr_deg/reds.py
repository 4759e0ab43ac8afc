"""REDS (Nah et al., CVPR Workshops 2019): `train_sharp/CLIP/00000000.png`, the validation clips merged as 240-269."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from basicsr_deg.clips import Footage, Found, existing, find_clips
from ldm.video.folders import some

BUILDABLE = ("reds_clips",)  # what a configuration may name as a target

PARTITIONS: Mapping[str, tuple[str, ...]] = {  # clips held out from training
    "REDS4": ("000", "011", "015", "020"),
    "official": tuple(f"{number:03d}" for number in range(240, 270)),
}
META_LINE = re.compile(r"(\S+)\s+(\d+)\s+\(\d+,\s*\d+,\s*\d+\)")  # 000 100 (720,1280,3)


def reds_clips(root: str, *, train: bool = True, partition: str = "REDS4", meta: str | None = None) -> Footage:
    """Return the clips of REDS as a source.

    Args:
        root: the folder of the clips, or one that contains `train_sharp` or `train/train_sharp`.
        train: True for training clips, False for held-out clips.
        partition: name of the held-out clips in `PARTITIONS`.
        meta: a list such as meta_info_REDS_GT.txt; only its clips are used, and must be complete.

    Raises ValueError for an unknown partition, and at first use for missing clips.
    """
    if partition not in PARTITIONS:
        raise ValueError(f"got partition {partition!r}, expected one of {', '.join(PARTITIONS)}")
    return Footage(partial(find_reds, root, train=train, partition=partition, meta=meta))


def find_reds(root: str | Path, *, train: bool, partition: str, meta: str | Path | None) -> Found:
    """Return a description and the sequences of one side of a partition. Raises ValueError."""
    root = below_train(existing(root))
    _, sequences = find_clips(root)
    there = {sequence.name: sequence for sequence in sequences}
    if meta is not None:
        counts = read_meta(Path(meta))
        if wrong := [f"{name} ({count})" for name, count in counts.items() if len(there.get(name, ())) != count]:
            raise ValueError(f"{root}: got clips missing or of other length than {meta} says: {some(wrong)}")
        there = {name: there[name] for name in counts}
    held_out = PARTITIONS[partition]
    chosen = [sequence for name, sequence in there.items() if (name not in held_out) == train]
    side = "training" if train else "held out"
    if not chosen:
        raise ValueError(f"{root}: got no clips for {side} of {partition} among {some(there)}, expected REDS")
    lengths = sorted({len(sequence) for sequence in chosen})
    span = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    return f"{root}: REDS, {side} of {partition}: {len(chosen)} clips of {span} frames", chosen


def below_train(root: Path) -> Path:
    """Return the folder `train_sharp` of the official archives below `root`; otherwise `root` itself."""
    places = (root / "train" / "train_sharp", root / "REDS" / "train" / "train_sharp")
    return next((place for place in places if place.is_dir()), root)


def read_meta(path: Path) -> dict[str, int]:
    """Read {clip: frames} from lines such as `000 100 (720,1280,3)`. Raises ValueError for an invalid line."""
    counts = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"got the list {path}, which cannot be read ({type(error).__name__})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not (match := META_LINE.fullmatch(line.strip())):
            raise ValueError(f"{path} line {number}: got {line.strip()[:60]!r}, expected such as 000 100 (720,1280,3)")
        counts[match[1]] = int(match[2])
    if not counts:
        raise ValueError(f"got the list {path} without a clip, expected lines such as 000 100 (720,1280,3)")
    return counts
