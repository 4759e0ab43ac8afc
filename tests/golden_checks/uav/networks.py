"""The networks: whole ones, single modules, names and shapes at full size."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.nets.clip_attention import RotaryPositions, RotaryTemporalAttention, relative_position_buckets
from ldm.nets.clip_layers import PlusBlock, TemporalModule, frame_block, time_block
from ldm.nets.raft import RAFT
from ldm.nets.text import OpenCLIPText
from ldm.nets.video_unet import UNetVideoModel
from ldm.nets.video_vae import AutoencoderKLVideo, ConditionFusion
from ldm.weights.names import text_state
from tests.golden_checks.case import assert_near
from tests.golden_checks.uav.case import UavCase, network
from tests.golden_checks.uav.configurations import unet_arguments, vae_arguments

SCALING_FACTOR = 0.08333


def check_weights(case: UavCase) -> None:
    state = network(case.folder, case.name).state_dict(keep_vars=True)
    count = sum({id(value): value.numel() for value in state.values()}.values())
    assert count == case.meta.get("parameters", count)


@torch.no_grad()
def check_unet(case: UavCase) -> None:
    unet = network(case.folder, case.meta["weights"])
    context, labels = case["encoder_hidden_states"], case.vector("class_labels")
    out = unet(case.clip("sample"), case.clip("low_res"), case.vector("timestep"), context, labels)
    assert_near(out, case.clip("out"), limit=case.limit("out"), what=case.name)


@torch.no_grad()
def check_vae(case: UavCase) -> None:
    vae = network(case.folder, case.meta["weights"])
    low_res = case.clip("low_res") if "low_res" in case.tensors else None
    assert not {"decoded", "moments"}.isdisjoint(case.tensors), f"{case.name}: neither decoded nor moments"
    if "decoded" in case.tensors:
        decoded = vae.decode(case.clip("z") / SCALING_FACTOR, low_res, weight=case.meta.get("w_lr", 1.0))
        case.near(decoded, "decoded", case.limit("decoded"))
    if "moments" in case.tensors:
        limit = case.limit("moments", case.limit("decoded") if "decoded" in case.tensors else None)
        case.near(vae.encode(case.clip("video")), "moments", limit)


def _resnet(weights: dict[str, Tensor], run: dict) -> nn.Module:
    out, channels = weights["conv1.weight"].shape[:2]
    emb = weights.get("time_emb_proj.weight")
    return frame_block(
        channels, out, groups=run["groups"], eps=run["eps"], emb_channels=None if emb is None else emb.shape[1]
    )


def _time_block(weights: dict[str, Tensor], run: dict) -> nn.Module:
    emb = weights.get("time_emb_proj.weight")
    channels, _, kernel = weights["conv1.weight"].shape[:3]
    return time_block(channels, kernel=kernel, emb_channels=None if emb is None else emb.shape[1])


def _attention(weights: dict[str, Tensor], run: dict) -> nn.Module:
    channels = weights["to_q.weight"].shape[1]
    return RotaryTemporalAttention(channels, heads=run["heads"], rotary=RotaryPositions())


def _plus(weights: dict[str, Tensor], run: dict) -> nn.Module:
    out, channels = weights["conv1.weight"].shape[:2]
    return PlusBlock(channels, out, groups=run["groups"], eps=run["eps"])


class ConditionPath(nn.ModuleList):
    """The two blocks in a row, as in the decoder."""

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        for block in self:
            x = block(x, num_frames)
        return x


def _condition(weights: dict[str, Tensor], run: dict) -> nn.Module:
    out, channels = weights["0.conv1.weight"].shape[:2]
    return ConditionPath(PlusBlock(width, out, groups=32, eps=1e-6) for width in (channels, out))


def _fusion(weights: dict[str, Tensor], run: dict) -> nn.Module:
    channels, both = weights["shared.0.conv1.weight"].shape[:2]
    return ConditionFusion(both - channels, channels)


def _temporal_module(weights: dict[str, Tensor], run: dict) -> nn.Module:
    emb = weights["resblocks_3d_temporal.time_emb_proj.weight"].shape[1]
    return TemporalModule(weights["shift_conv.weight"].shape[0], emb_channels=emb)


def _unknown(weights: dict[str, Tensor], run: dict) -> nn.Module:
    raise AssertionError(f"run {run['name']}: unknown module, expected one of {', '.join(filter(None, MODULES))}")


# start of a run's name -> build from weights and settings; the longest start that fits counts
MODULES: dict[str, Callable[[dict, dict], nn.Module]] = {
    "temporal_attention": _attention,
    "resnet3d": _resnet,
    "resnet3d_cnn": _time_block,
    "resnet3d_plus": _plus,
    "temporal_module": _temporal_module,
    "condition_in": _condition,
    "sft_fuse": _fusion,
    "": _unknown,
}


def _run_module(module: nn.Module, inputs: list[Tensor], run: dict) -> Tensor:
    """Clips (B, C, T, h, w) as frames; embeddings and tokens as they are."""
    if isinstance(module, RotaryTemporalAttention):
        return module(inputs[0])
    frames = inputs[0].shape[2]
    arguments = [x.transpose(1, 2).flatten(0, 1) if x.ndim == 5 else x for x in inputs]
    if isinstance(module, ConditionFusion):
        out = module(*arguments, frames, run.get("w", 1.0))
    else:
        out = module(arguments[0], frames, *arguments[1:])
    return out.unflatten(0, (-1, frames)).transpose(1, 2)


@torch.no_grad()
def check_modules(case: UavCase) -> None:
    assert case.meta["runs"]
    for run in case.meta["runs"]:
        name = run["name"]
        prefix = f"w.{name}."
        weights = {key.removeprefix(prefix): case[key] for key in case.tensors if key.startswith(prefix)}
        build = MODULES[max((start for start in MODULES if name.startswith(start)), key=len, default="")]
        module = build(weights, run).eval()
        module.load_state_dict(weights)
        inputs = [case[f"{name}.in{k}"] for k in range(3) if f"{name}.in{k}" in case.tensors]
        out = _run_module(module, inputs, run)
        limit = run.get("tolerance", {}).get("suggested_atol", case.limit(f"{name}.out"))
        assert_near(out, case[f"{name}.out"], limit=limit, what=name)


def check_buckets(case: UavCase) -> None:
    assert case.meta["tables"]
    for frames, table in case.meta["tables"].items():
        assert relative_position_buckets(int(frames)).tolist() == table, f"{frames} frames"


def _text_tower(config: dict) -> OpenCLIPText:
    return OpenCLIPText(
        width=config["hidden_size"],
        layers=config["num_hidden_layers"] + 1,  # the last of OpenCLIP's is not run
        heads=config["num_attention_heads"],
        vocab_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
    )


def _shapes(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in state.items()}


def full_size(name: str, config: dict) -> nn.Module | None:
    """A component of the released folder without memory for its weights; None for one that has none."""
    with torch.device("meta"):
        if name.startswith("unet"):
            return UNetVideoModel(**unet_arguments(config))
        if name.startswith("vae"):
            return AutoencoderKLVideo(**vae_arguments(config))
        if name == "text_encoder":
            return _text_tower(config)
        return RAFT() if name.startswith("raft") else None


def check_state_dicts(case: UavCase) -> None:
    """Names and shapes at full size; those of the text tower and of RAFT after renaming."""
    for name, part in case.meta["components"].items():
        expected = {key: shape for key, (_, shape) in part["state_dict"].items()}
        net = full_size(name, part["config"])
        built = _shapes(net.state_dict()) if net is not None else {}
        if name == "text_encoder":
            weights = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
            expected = _shapes(text_state(weights))
            last = f"transformer.resblocks.{part['config']['num_hidden_layers']}."
            not_run = ("text_projection", "logit_scale", last)
            built = {key: shape for key, shape in built.items() if not key.startswith(not_run)}
        elif name.startswith("raft"):  # the file names some tensors twice
            expected = {key.removeprefix("module."): shape for key, shape in expected.items()}
            expected = {key: shape for key, shape in expected.items() if key in built}
        assert built == expected, name
        if name.startswith(("unet", "vae")):
            check_counts(net, part)


def check_counts(net: nn.Module, recorded: dict) -> None:
    state = net.state_dict(keep_vars=True)
    own = {id(value): value.numel() for value in state.values()}
    counts = {"parameters": sum(own.values()), "tensors": len(state), "shared_aliases": len(state) - len(own)}
    assert counts == {key: recorded[key] for key in counts}


def check_summary(case: UavCase) -> None:
    """The released sizes that the default arguments give."""
    nets = {"unet_video.bin": (UNetVideoModel, {}), "vae_3d.bin": (AutoencoderKLVideo, {}),
            "vae_video.bin": (AutoencoderKLVideo, {"condition_channels": 128})}  # fmt: skip
    for name, (build, arguments) in nets.items():
        with torch.device("meta"):
            check_counts(build(**arguments), case.meta[name])


CHECKS = {
    "weights_": check_weights,
    "unet_": check_unet,
    "vae_": check_vae,
    "modules": check_modules,
    "relative_position_buckets": check_buckets,
    "state_dicts_full": check_state_dicts,
    "state_dicts_summary": check_summary,
}
