"""Colour, flow and tiles: what happens before and after the networks."""

from ldm.ops.clip_flow import flow_chunks, resize_flow_released
from ldm.ops.color import adain_color_fix, wavelet_color_fix, wavelet_decompose
from ldm.ops.crop_tiles import MARGIN, released_tiles
from ldm.ops.resize import resize
from tests.golden_checks.case import assert_near
from tests.golden_checks.uav.case import UavCase

COLOR_LIMIT, FLOW_LIMIT = 1e-5, 1e-5  # where the recording states none; the second times the largest flow above 1


def check_color_fix(case: UavCase) -> None:
    assert case.meta["runs"]
    for run in case.meta["runs"]:
        k, tolerance = run["k"], run.get("tolerance", {})
        low, out = case[f"lr{k}"], case[f"output{k}"]
        source = resize(low, out.shape[-2:])
        results = {"adain": adain_color_fix(out, source), "wavelet": wavelet_color_fix(out, source)}
        for name, result in results.items():
            if f"{name}{k}" in case.tensors:
                limit = tolerance.get(name, {}).get("suggested_atol", COLOR_LIMIT)
                assert_near(result, case[f"{name}{k}"], limit=limit, what=f"{name}{k}")
        if f"low_frequency{k}" in case.tensors:
            limit = tolerance.get("wavelet", {}).get("suggested_atol", COLOR_LIMIT)
            assert_near(wavelet_decompose(out)[1], case[f"low_frequency{k}"], limit=limit, what=f"low_frequency{k}")


def check_flow_post(case: UavCase) -> None:
    for k, run in enumerate(case.meta["runs"]):
        if f"flow{k}" in case.tensors:
            resized = resize_flow_released(case[f"flow{k}"], size=tuple(run["wanted"]))
            expected = case[f"resized{k}"]
            limit = FLOW_LIMIT * max(1.0, expected.abs().max().item())
            assert_near(resized, expected, limit=limit, what=f"resized{k}")
    for words, plan in case.meta.get("chunk_plan", {}).items():
        frames, width = (int(part.split()[1]) for part in words.split(", "))
        chunks = flow_chunks(frames, width)
        assert [list(range(c.start, c.stop)) for c in chunks] == plan["chunks"], words


def check_tiles(case: UavCase) -> None:
    assert case.meta["runs"]
    for run in case.meta["runs"]:
        size = (run["height"], run["width"])
        tiles = released_tiles(size, run["tile_size"], margin=case.meta.get("overlap", MARGIN))
        if run.get("uncovered_output_pixels"):  # a bug that is not repeated (quirk 3): here all is covered
            assert sum((y.stop - y.start) * (x.stop - x.start) for (y, x), _ in tiles) == size[0] * size[1]
            continue
        plan = [
            {
                "input": [edge for side in cut for edge in (side.start, side.stop)],
                "output": [4 * edge for side in core for edge in (side.start, side.stop)],
            }
            for core, cut in tiles
        ]
        assert plan == run["tiles"], size


CHECKS = {"color_fix": check_color_fix, "flow_post": check_flow_post, "tiles": check_tiles}
