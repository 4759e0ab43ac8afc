"""A folder of recordings of StableVSR: its cases and the networks that their weights are for."""

import os
from pathlib import Path

from torch import nn

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.configurations import autoencoder_settings, control_settings, upscaler_settings
from ldm.nets.control import TemporalConditioning
from ldm.nets.upscaler import UpscalerUNet
from ldm.weights.names import autoencoder_state
from tests.golden_checks.case import Case, names

STABLEVSR = Path(os.environ.get("GOLDEN_STABLEVSR") or Path(__file__).parents[2] / "golden" / "stablevsr")
NETWORKS = {  # class in the file: what builds it, and what turns names in the file into ours
    "UNet2DConditionModel": (lambda config: UpscalerUNet(**upscaler_settings(config)), dict),
    "ControlNetModel": (lambda config: TemporalConditioning(**control_settings(config)), dict),
    "AutoencoderKL": (lambda config: AutoencoderKL(**autoencoder_settings(config)), autoencoder_state),
}
TIGHT, NETWORK, INPUT = 5e-6, 1e-4, 1e-5  # limits where the recording states none


def case_names() -> list[str]:
    return [name for name in names(STABLEVSR) if not name.startswith("weights_")]


def weight_file(case: Case, kind: str) -> Case:
    """The weights of one class that a case is recorded with: those it names, else the first of the folder."""
    listed = case.meta.get("weights") or [name for name in names(STABLEVSR) if name.startswith("weights_")]
    files = (Case.read(STABLEVSR, name) for name in listed)
    found = next((file for file in files if file.meta["class_"] == kind), None)
    assert found is not None, f"{case.name}: no weights of {kind} among {listed}"
    return found


def network(case: Case, kind: str) -> nn.Module:
    """A network with its recorded weights, loaded strictly."""
    file = weight_file(case, kind)
    build, translate = NETWORKS[kind]
    net = build(file.meta["config"])
    net.load_state_dict(translate({name: file[name] for name in file.tensors}), strict=True)
    count = sum(p.numel() for p in net.parameters())
    assert count == file.meta.get("parameters", count)
    return net.eval().requires_grad_(False)


def limit(case: Case, name: str, default: float) -> float:
    """The recorded limit of a tensor, or the default."""
    return case.meta.get("tolerance", {}).get(name, {}).get("suggested_atol", default)
