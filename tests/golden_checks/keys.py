"""The full-size networks hold exactly the released files' entries, without any weight being made."""

import torch

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.discriminator import PatchGAN
from ldm.nets.perceptual import LPIPS
from ldm.nets.raft import RAFT
from ldm.nets.sequence_decoder import SequenceAutoencoder
from ldm.nets.spynet import SpyNet
from ldm.nets.structure import StructureEncoder
from ldm.nets.text import OpenCLIPText
from ldm.nets.unet import UNet
from tests.golden_checks.case import Case

BOTH_FILES = 1_564_655_313  # parameters; the model size the DOVE paper prints for MGLD-VSR
SCHEDULE = (
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2"
).split()


def stage1() -> dict[str, torch.nn.Module]:
    return {
        "model.diffusion_model.": UNet(),
        "first_stage_model.": AutoencoderKL(),
        "cond_stage_model.model.": OpenCLIPText(),
        "structcond_stage_model.": StructureEncoder(),
        "flownet_model.": RAFT(model="normal"),
    }


def stage2() -> dict[str, torch.nn.Module]:
    return {
        "": SequenceAutoencoder(),
        "loss.perceptual_loss.": LPIPS(),
        "loss.flownet.": SpyNet(),
        "loss.discriminator.": PatchGAN(),
    }


def entries(parts: dict[str, torch.nn.Module]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for prefix, net in parts.items() for name, value in net.state_dict().items()}


def buffer_names(parts: dict[str, torch.nn.Module]) -> set[str]:
    return {prefix + name for prefix, net in parts.items() for name, _ in net.named_buffers(remove_duplicate=False)}


def parameter_count(parts: dict[str, torch.nn.Module]) -> int:
    return sum(p.numel() for net in parts.values() for p in net.parameters())


def check_keys(case: Case) -> None:
    first = case.name.startswith("j_stage1")
    with torch.device("meta"):
        parts, others = (stage1(), stage2()) if first else (stage2(), stage1())
        own = {name: torch.empty(1000) for name in SCHEDULE} if first else {"loss.logvar": torch.empty(())}
    built = entries(parts) | own
    expected = {name: (tuple(shape), f"torch.{dtype}") for name, shape, dtype, *_ in case.meta["entries"]}
    actual = {name: (tuple(value.shape), str(value.dtype)) for name, value in built.items()}
    assert sorted(actual.items() - expected.items()) == [], "entries the released file does not have"
    assert sorted(expected.items() - actual.items()) == [], "entries of the released file that are missing"
    buffers = {name for name, _, _, kind, *_ in case.meta["entries"] if kind == "buffer"}
    assert buffer_names(parts) == buffers - set(own)
    assert parameter_count(parts) + parameter_count(others) + 1 == BOTH_FILES  # 1: loss.logvar


CHECKS = {"j_": check_keys}
