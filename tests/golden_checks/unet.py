"""The denoiser against the recorded one: its output, its gradients, and the first inner module that differs."""

import inspect

import torch
from torch import Tensor, nn

from ldm.nets.unet import UNet
from tests.golden_checks.case import Case, assert_near


def build(cls: type[nn.Module], config: dict) -> nn.Module:
    """Construct from the part of a recorded configuration that the class knows."""
    known = inspect.signature(cls).parameters
    return cls(**{k: v for k, v in config.items() if k in known}).eval()


def maps_by_level(case: Case, prefix: str) -> dict[str, Tensor]:
    """The recorded maps keyed by width, widest (finest) first."""
    widths = [k.removeprefix(prefix) for k in case.tensors if k.startswith(prefix)]
    return {w: case[prefix + w] for w in sorted(filter(str.isdigit, widths), key=int, reverse=True)}


def watch(net: nn.Module, recorded: dict[str, dict]) -> list[str]:
    """Compare inner modules with their recorded statistics during the next forward; the list fills as it runs."""
    findings = []

    def hook_for(name: str, expected: dict):
        def hook(_module, _inputs, out: Tensor) -> None:
            flat = out.detach().flatten()
            seen = {"mean": flat.mean(), "std": flat.std(), "first": flat[0], "last": flat[-1]}
            off = {k: v.item() for k, v in seen.items() if abs(v - expected[k]) > 1e-4 * (1 + abs(expected[k]))}
            if list(out.shape) == expected["shape"] and off:
                findings.append(f"{name}: {off}, expected {expected}")

        return hook

    for name, module in net.named_modules():
        if name in recorded:
            module.register_forward_hook(hook_for(name, recorded[name]))
    return findings


def check_unet(case: Case) -> None:
    net = build(UNet, case.meta["config"])
    net.load_state_dict(case.weights(), strict=True)
    assert list(net.state_dict()) == list(case.meta["state_dict"]), "the order of registration differs"
    findings = watch(net, case.meta.get("modules", {}))
    x, maps = case["x"], maps_by_level(case, "struct_cond.")
    with_grad = "probe" in case.tensors
    for tensor in (x, *maps.values()):
        tensor.requires_grad_(with_grad)
    with torch.set_grad_enabled(with_grad):
        out = net(x, case["timesteps"], case["context"], list(maps.values()), num_frames=case.meta["frames"])
    assert_near(out, case["out"], limit=1e-5, what=f"out, first inner module that differs: {findings[:1]}")
    if with_grad:
        (out * case["probe"]).sum().backward()
        leaves = {"out.grad_x": x} | {f"out.grad_struct.{width}": m for width, m in maps.items()}
        for name in leaves.keys() & case.tensors.keys():
            expected = case[name]
            assert_near(leaves[name].grad, expected, limit=1e-4, relative_to=expected.abs().max().item(), what=name)


CHECKS = {"a_unet": check_unet}
