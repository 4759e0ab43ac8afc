"""The released image splitter, as starts and a flat window of the one tiler."""

import torch

from ldm.ops.tiling import Tile, flat_window, splitter_starts, tiled
from tests.golden_checks.case import Case, assert_near

LIMIT = 1e-6


def spans(first: list[int], patch: int, size: int) -> list[tuple[int, int]]:
    return [(k, min(k + patch, size)) for k in first]


def check_starts(recorded: dict) -> None:
    h, w, patch, scale = recorded["h"], recorded["w"], recorded["pch"], recorded["sf"]
    rows, columns = (splitter_starts(size, patch, recorded["stride"]) for size in (h, w))
    assert rows == recorded["height_starts"] and columns == recorded["width_starts"]
    # the recorded ends may lie beyond the picture, which slicing does not mind
    order = [[y * scale, x * scale] for x in columns for y in rows]
    assert order == [[index[0], index[2]] for index in recorded["index"]]
    if "patch_shapes" in recorded:
        shapes = [[b - a, d - c] for c, d in spans(columns, patch, w) for a, b in spans(rows, patch, h)]
        assert shapes == recorded["patch_shapes"]


def check_gather(recorded: dict, image: torch.Tensor, expected: torch.Tensor) -> None:
    patch, stride, scale = recorded["pch"], recorded["stride"], recorded["sf"]
    seen: list[Tile] = []

    def update(x: torch.Tensor, *, tiles: list[Tile]) -> torch.Tensor:
        (tile,), number = tiles, len(seen)
        seen.append(tile)
        large = x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        return 1.5 * large + 0.01 * tile.y.start * scale - 0.02 * tile.x.start * scale + 0.1 * number

    run = tiled(
        update,
        tile=(1, patch, patch),
        overlap=(0, patch - stride, patch - stride),
        window=flat_window,
        starts=lambda size, side, shared: splitter_starts(size, side, side - shared),
    )
    limit = LIMIT * expected.abs().max().item()
    assert_near(run(image[:, None])[:, 0], expected, limit=limit, what=f"gather of {recorded}")


def check(case: Case) -> None:
    for k, recorded in enumerate(case.meta["cases"]):
        check_starts(recorded)
        if f"out.gather.{k}" in case.tensors:
            check_gather(recorded, case[f"im.{k}"], case[f"out.gather.{k}"])


CHECKS = {"g_split": check}
