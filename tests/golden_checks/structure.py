"""The condition encoder against the recorded one: every level's map and the gradient of the latents."""

import torch

from ldm.nets.structure import StructureEncoder
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.unet import build, maps_by_level


def check_structure(case: Case) -> None:
    net = build(StructureEncoder, case.meta["config"])
    net.load_state_dict(case.weights(), strict=True)
    assert list(net.state_dict()) == list(case.meta["state_dict"]), "the order of registration differs"
    x, probes = case["x"], maps_by_level(case, "probe.")
    with torch.set_grad_enabled(bool(probes)):
        out = net(x.requires_grad_(bool(probes)), case["timesteps"])
    recorded = maps_by_level(case, "out.")
    assert len(out) == len(recorded), f"{len(out)} maps, expected {len(recorded)}"
    for (width, expected), level in zip(recorded.items(), out, strict=True):
        assert_near(level, expected, limit=2e-5, what=f"map of width {width}")
    if probes:
        sum((level * probe).sum() for level, probe in zip(out, probes.values(), strict=True)).backward()
        expected = case["out.grad_x"]
        assert_near(x.grad, expected, limit=1e-4, relative_to=expected.abs().max().item(), what="out.grad_x")


CHECKS = {"b_struct": check_structure}
