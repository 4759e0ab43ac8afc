"""ST-LPIPS against what the package itself gives, for weights that are made by a formula."""

import numpy as np
import pytest
import torch

from ldm.metrics import stlpips
from ldm.metrics.protocol import measures
from ldm.metrics.scored_frame import Unavailable

RECORDED = 0.13166983425617218  # stlpips-pytorch 0.0.2 itself, for the same weights and images


def formula(model: torch.nn.Module) -> None:
    """Fill a network with numbers that any machine makes."""
    binomial = torch.tensor([1.0, 2.0, 1.0])
    for k, (name, value) in enumerate(model.state_dict().items()):
        if "filt" in name:
            value.copy_((binomial[:, None] * binomial / 16).expand(value.shape))
            continue
        x = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * (0.7 + 0.01 * k) + k).reshape(value.shape)
        if name.startswith("lin"):
            x = x.abs()
        elif name.endswith("scale"):
            x = x.abs() + 0.5
        fan = value[0].numel() if value.ndim > 1 else 1
        if "scaling" in name:
            value.copy_(x.float() * 0.4)
        else:
            value.copy_((x / (fan**0.5 if "weight" in name else 10)).float())


def test_the_network_gives_what_the_package_gives():
    model = stlpips.STLPIPS().eval()
    formula(model)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    one = torch.stack([torch.sin(x * f + y * g) for f, g in ((0.3, 0.2), (0.1, 0.5), (0.7, 0.05))])[None]
    other = torch.roll(one, 3, -1) * 0.9
    with torch.no_grad():
        assert model(one, other).item() == pytest.approx(RECORDED, rel=1e-5)
        assert model(one, one).item() == 0


def test_without_the_wheel_the_measure_says_what_to_install(monkeypatch):
    def missing(name):
        raise stlpips.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(stlpips.importlib.metadata, "version", missing)
    (measure,) = measures(["stlpips"])
    assert measure.missing.startswith("stlpips-pytorch is not installed: pip install")


def test_frames_that_are_too_small_are_refused():
    with pytest.raises(Unavailable, match="frames of 16x40 are smaller than 32 pixels"):
        stlpips.stlpips_score("cpu")(*[np.zeros((40, 16, 3), np.uint8)] * 2)
