"""PSNR and SSIM as the released evaluation counts them, and its means."""

import torch

from ldm.metrics.fidelity import psnr, ssim
from ldm.metrics.stablevsr import figures_of_clips
from tests.golden_checks.case import Case, assert_near

LIMITS = {"psnr": 1e-4, "ssim": 5e-5}  # torchmetrics counts in float32


def check(case: Case) -> None:
    for clip, recorded in case.meta["per_frame"].items():
        found = {"psnr": [], "ssim": []}
        for k in range(len(recorded["psnr"])):
            pair = [case.tensors[f"{kind}_{clip}_{k}"][0].float() / 255 for kind in ("rec", "gt")]
            found["psnr"].append(psnr(*pair))
            found["ssim"].append(ssim(*pair, windows="torchmetrics"))
        for name, values in found.items():
            expected = torch.tensor(recorded[name])
            assert_near(torch.tensor(values), expected, limit=LIMITS[name], what=f"{name} of clip {clip}")
    figures = figures_of_clips(list(case.meta["per_frame"].values()))
    assert figures == {name: case.meta[name] for name in figures}


CHECKS = {"eval_psnr_ssim": check}
