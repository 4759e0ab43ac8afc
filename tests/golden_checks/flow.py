"""Flow networks and flow helpers against the recordings (cases d_*)."""

import torch
from torch import nn

from ldm.nets.raft import RAFT
from ldm.nets.spynet import SpyNet
from ldm.ops.flow import flow_warp, forward_backward_occlusion, resize_flow, warp_validity
from tests.golden_checks.case import Case, assert_near

CLEAR = 1e-4  # occlusion is compared where the criterion is further than this from its threshold


def load(net: nn.Module, case: Case) -> nn.Module:
    """Weights of the case, strictly; constants (mean, std) are never drawn by recipe."""
    state = net.state_dict()
    constants = {k: state[k] for k in net.constant_buffers}
    stored = case.stored_weights()
    net.load_state_dict(constants | stored if stored else case.recipe_weights() | constants, strict=True)
    assert set(state) == set(case.meta.get("state_dict", state))
    count = sum(p.numel() for p in net.parameters())
    assert count == case.meta.get("n_params", count)
    return net


def compare_flows(net: nn.Module, case: Case, *, limit: float, **options) -> None:
    """Every flow that the case holds, one direction or both."""
    img1, img2 = case["img1"], case["img2"]
    pairs = {"out.flow_12": (img1, img2), "out.flow_21": (img2, img1)}
    present = [name for name in pairs if name in case.tensors]
    assert present, f"{case.name}: no flow to compare among {sorted(case.tensors)}"
    for name in present:
        with torch.no_grad():
            flow = net(*pairs[name], **options)
        assert_near(flow, case[name], limit=limit, what=f"{case.name} {name}")


def raft(case: Case) -> None:
    names = case.meta.get("state_dict") or case.stored_weights()
    small = "cnet.layer1.0.conv3.weight" in names
    args = case.meta.get("args", {})
    options = {"iterations": args["iters"]} if "iters" in args else {}
    if args.get("flow_init"):
        named = args["flow_init"]
        options["flow_init"] = case[named if isinstance(named, str) else "flow_init"]
    net = load(RAFT(model="small" if small else "normal", scaling="released"), case)
    limit = 2e-3 if small else 5e-4
    compare_flows(net, case, limit=limit, **options)
    if "out.flow_12_rescaled_input" in case.tensors:
        net.scaling = "trained"
        with torch.no_grad():
            flow = net(case["img1"], case["img2"], **options)
        assert_near(flow, case["out.flow_12_rescaled_input"], limit=limit, what=f"{case.name} mapped to [-1, 1]")


def spynet(case: Case) -> None:
    compare_flows(load(SpyNet(), case), case, limit=2e-4)


def relative(actual: torch.Tensor, case: Case, name: str) -> None:
    expected = case[name]
    scale = expected.abs().max().item() or 1.0
    assert_near(actual, expected, limit=1e-6, relative_to=scale, what=f"{case.name} {name}")


def warps(case: Case) -> None:
    x, flow = case["x"], case["flow"]
    for name in case.tensors:
        kind, _, rest = name.removeprefix("out.").partition("_")
        if kind == "warp" and not rest.startswith("mask"):
            mode, padding = rest.split("_")
            relative(flow_warp(x, flow, mode=mode, padding=padding), case, name)
    if "out.warp_mask" in case.tensors:
        assert torch.equal(warp_validity(flow).expand_as(x), case["out.warp_mask"]), f"{case.name}: validity"
        relative(flow_warp(x, flow), case, "out.warp_mask_value")


def gradients(case: Case) -> None:
    x, flow = case["x"].clone().requires_grad_(), case["flow"].clone().requires_grad_()
    (flow_warp(x, flow) * case["probe"]).sum().backward()
    for name, grad in (("out.grad_x", x.grad), ("out.grad_flow", flow.grad.movedim(1, -1))):
        if name in case.tensors:
            relative(grad, case, name)


def resizing(case: Case) -> None:
    for k, form in enumerate(case.meta["resize"]):
        size = tuple(form["sizes"])
        if form["size_type"] == "ratio":  # truncated, as released
            size = tuple(int(side * ratio) for side, ratio in zip(case["flow"].shape[-2:], size, strict=True))
        relative(resize_flow(case["flow"], size=size), case, f"out.resize_{k}")


def threshold(case: Case, alpha: float, beta: float) -> torch.Tensor:
    return alpha * (case["flow"].norm(dim=1) + case["flow_back"].norm(dim=1)) + beta


def occlusions(case: Case) -> None:
    plain = (0.01, 0.5)  # the one whose margins (criterion minus threshold) are recorded
    for suffix, limits in {"": plain, "_a": (0.1, 1.5)}.items():
        masks = forward_backward_occlusion(case["flow"], case["flow_back"], alpha=limits[0], beta=limits[1])
        for mask, name in zip(masks, ("fwd", "bwd"), strict=True):
            expected = case[f"out.{name}_occ{suffix}"]
            margin = case[f"margin_{name}"] + threshold(case, *plain) - threshold(case, *limits)
            clear = margin.abs() > CLEAR
            assert torch.equal((margin > 0)[clear], expected.bool()[clear]), f"{case.name}: margins and bits disagree"
            assert torch.equal(mask[:, 0][clear], expected[clear]), f"{case.name} {name}{suffix}"


def helpers(case: Case) -> None:
    warps(case)
    gradients(case)
    resizing(case)
    occlusions(case)


CHECKS = {"d_raft": raft, "d_spynet": spynet, "d_flow_helpers": helpers}
