"""The U-Net, the control network and the autoencoder against recorded forwards; names of the full-size networks."""

import torch

from ldm import config
from ldm.engine.assemble import ROOT
from ldm.nets.autoencoder import AutoencoderKL, posterior
from ldm.nets.configurations import autoencoder_settings, control_settings, text_settings, upscaler_settings
from ldm.nets.control import TemporalConditioning
from ldm.nets.raft import RAFT
from ldm.nets.text import OpenCLIPText
from ldm.nets.upscaler import UpscalerUNet
from ldm.weights import checkpoint
from ldm.weights.names import autoencoder_state, flow_state, text_state
from tests.golden_checks.case import Case, assert_near
from tests.golden_checks.stablevsr.folder import NETWORK, TIGHT, limit, network, weight_file

FULL = {
    "unet": (lambda config: UpscalerUNet(**upscaler_settings(config)), dict),
    "controlnet_tcm": (lambda config: TemporalConditioning(**control_settings(config)), dict),
    "vae": (lambda config: AutoencoderKL(**autoencoder_settings(config)), autoencoder_state),
    "text_encoder": (lambda config: OpenCLIPText(**text_settings(config)), text_state),
    "raft_large_torchvision": (lambda config: RAFT(), flow_state),
}


def refused(config: dict) -> None:
    """The public upscaler, whose class embedding we do not have."""
    try:
        upscaler_settings(config)
    except ValueError as error:
        assert "num_class_embeds=1000" in str(error) and "public x4 upscaler" in str(error)
    else:
        raise AssertionError("the public upscaler's configuration was taken")


def check_full(case: Case) -> None:
    for name, component in case.meta["components"].items():
        if name == "unet_stabilityai_x4_upscaler":
            refused(component["config"])
            continue
        build, translate = FULL[name]
        with torch.device("meta"):
            net = build(component["config"])
            file = {
                key: torch.empty(shape, dtype=getattr(torch, dtype))
                for key, (dtype, shape) in component["state_dict"].items()
            }
        assert len(file) == component["tensors"]
        translated = {key: (tuple(value.shape), value.dtype) for key, value in translate(file).items()}
        own = {key: (tuple(value.shape), value.dtype) for key, value in net.state_dict().items()}
        assert own == translated, f"{name}: {sorted(own.items() ^ translated.items())[:4]}"
        assert sum(p.numel() for p in net.parameters()) == component["parameters"], name


def check_summary(case: Case) -> None:
    nets = {"unet": UpscalerUNet, "controlnet_tcm": TemporalConditioning}
    for name, build in nets.items():
        with torch.device("meta"):
            net = build()
        assert sum(p.numel() for p in net.parameters()) == case.meta[name]["parameters"]
        assert len(net.state_dict()) == case.meta[name]["tensors"]


@torch.no_grad()
def check_unet_tcm(case: Case) -> None:
    unet, control = network(case, "UNet2DConditionModel"), network(case, "ControlNetModel")
    inputs = case["sample"], case["timesteps"], case["encoder_hidden_states"]
    condition = case["controlnet_cond"]
    residuals = control(*inputs, condition, scale=case.meta.get("conditioning_scale", 1.0))
    found = {
        "cond_embedding": control.controlnet_cond_embedding(condition),
        "unet_out_without_tcm": unet(*inputs),
        "unet_out_with_tcm": unet(*inputs, residuals),
        "tcm_mid": residuals.middle,
    }
    found |= {f"tcm_down_{k:02d}": value for k, value in enumerate(residuals.skips)}
    recorded = {name for name in case.tensors if name.startswith(("tcm_", "unet_out", "cond_"))}
    assert recorded == found.keys(), recorded ^ found.keys()
    last = limit(case, "tcm_down_last", NETWORK)  # the name under which that of the last map is recorded
    bounds = {f"tcm_down_{len(residuals.skips) - 1:02d}": last}
    for name, value in found.items():
        assert_near(value, case[name], limit=limit(case, name, bounds.get(name, NETWORK)), what=name)


def check_tcm_init(case: Case) -> None:
    unet = network(case, "UNet2DConditionModel")
    settings = upscaler_settings(weight_file(case, "UNet2DConditionModel").meta["config"])
    widths = case.meta["conditioning_embedding_out_channels"]
    control = TemporalConditioning(in_channels=settings["in_channels"], condition_widths=widths, plan=settings["plan"])
    entry = config.load(ROOT / "configs" / "stablevsr" / "tcm.yaml").init[1]
    checkpoint.load(control, unet.state_dict(), tolerated_missing=entry.tolerate, ignored=entry.ignore)
    copied = control.state_dict().keys() & unet.state_dict().keys()
    assert sorted(copied) == sorted(case.meta["copied_keys"]) and len(copied) == case.meta["copied_from_unet"]
    state, source = control.state_dict(), unet.state_dict()
    assert all(torch.equal(state[name], source[name]) for name in copied)
    new = {name: value for name, value in state.items() if name not in copied}
    started = {k: [list(v.shape), "random" if v.abs().max() > 0 else "zero"] for k, v in new.items()}
    assert started == case.meta["new_keys"]


@torch.no_grad()
def check_vae(case: Case) -> None:
    vae, scale = network(case, "AutoencoderKL"), case.meta["scaling_factor"]
    moments = vae.encode(case["image"])
    code = posterior(moments)
    found = {
        "moments": moments,
        "mean": code.mean,
        "std": code.std,
        "latents_scaled": code.sample(case["noise"]) * scale,
        "decoded": vae.decode(case["z"] / scale),
    }
    for name, value in found.items():
        assert_near(value, case[name], limit=limit(case, name, TIGHT if name == "std" else NETWORK), what=name)


CHECKS = {
    "state_dicts_full": check_full,
    "state_dicts_summary": check_summary,
    "unet_tcm": check_unet_tcm,
    "tcm_init": check_tcm_init,
    "vae": check_vae,
}
