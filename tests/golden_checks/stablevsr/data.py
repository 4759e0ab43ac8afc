"""Which frames the released data set reads, and how the released pipeline prepares pictures."""

from itertools import groupby
from random import Random

import torch

from basicsr_deg.recurrent_clips import recurrent_frames, recurrent_keys
from basicsr_deg.reds import PARTITIONS
from ldm.ops.lanczos import floored_to_multiple
from ldm.ops.resize import resize
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.stablevsr.folder import INPUT


def check_index(case: Case) -> None:
    counts = {f"{number:03d}": 100 for number in range(case.meta["metadata_lines"])}
    for name, length in case.meta["length"].items():
        partition, _, mode = name.partition("/test_mode=")
        assert len(recurrent_keys(counts, partition=partition, held_out=mode == "True")) == length, name
    assert sorted(clip for clips in PARTITIONS.values() for clip in clips) == case.meta["clips_not_in_training"]
    keys = recurrent_keys(counts)
    for (options, seed), items in groupby(
        case.meta["items"], lambda item: (item["options"], item["python_random_seed"])
    ):
        rng = Random(seed)
        for item in items:
            key = keys[item["index"]]
            assert f"{key.clip}/{key.frame:08d}" == item["key"]
            names = [f"{key.clip}/{frame:08d}.png" for frame in recurrent_frames(key, rng, **options)]
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
