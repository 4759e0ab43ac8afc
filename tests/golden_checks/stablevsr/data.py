"""Which frames the released data set reads, and how the released pipeline prepares pictures."""

from itertools import groupby
from random import Random

import torch

from basicsr_deg.reds import PARTITIONS
from ldm.ops.lanczos import floored_to_multiple
from ldm.ops.resize import resize
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.stablevsr.folder import INPUT


def recorded_choice(first: int, rng: Random, *, num_frame=3, interval_list=(1,), random_reverse=False) -> list[int]:
    """Frame numbers of a sample in a clip of 100 frames, with the random numbers in the order of the released data set.

    The training here draws the same kinds of numbers by address (`basicsr_deg.training_clips.TrainingClips`).
    """
    interval = rng.choice(list(interval_list))
    last = 100 - num_frame * interval
    start = first if first <= last else rng.randint(0, last)
    frames = list(range(start, start + num_frame * interval, interval))
    return frames[::-1] if random_reverse and rng.random() < 0.5 else frames


def check_index(case: Case) -> None:
    counts = {f"{number:03d}": 100 for number in range(case.meta["metadata_lines"])}
    for name, length in case.meta["length"].items():
        partition, _, mode = name.partition("/test_mode=")
        held_out = PARTITIONS[partition]
        assert sum(count for clip, count in counts.items() if (clip in held_out) == (mode == "True")) == length, name
    assert sorted(clip for clips in PARTITIONS.values() for clip in clips) == case.meta["clips_not_in_training"]
    keys = [(clip, frame) for clip in counts if clip not in PARTITIONS["REDS4"] for frame in range(counts[clip])]
    for (options, seed), items in groupby(
        case.meta["items"], lambda item: (item["options"], item["python_random_seed"])
    ):
        rng = Random(seed)
        for item in items:
            clip, first = keys[item["index"]]
            assert f"{clip}/{first:08d}" == item["key"]
            names = [f"{clip}/{frame:08d}.png" for frame in recorded_choice(first, rng, **options)]
            assert names == item["lq"] == item["gt"], f"{item['key']} with {options} and seed {seed}"


def check_preprocess(case: Case) -> None:
    for k, run in enumerate(case.meta["runs"]):
        frame = case.tensors[f"frame{k}"].numpy()
        assert list(frame.shape[:2]) == run["given"]
        floored = floored_to_multiple(frame)
        assert list(floored.shape[:2]) == run["used"]
        lr = torch.from_numpy(floored.copy()).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        assert_near(lr, case[f"lr{k}"], limit=INPUT, what=f"lr{k}")
        size = [4 * side for side in lr.shape[-2:]]
        assert_near(resize(lr, size), case[f"up{k}"], limit=INPUT, what=f"up{k}")


CHECKS = {"dataset_index": check_index, "preprocess": check_preprocess}
