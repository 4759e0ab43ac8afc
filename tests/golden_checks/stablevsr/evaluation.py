"""PSNR and SSIM as the released evaluation counts them, and its means."""

from statistics import fmean

import torch

from ldm.benchmark.published import mean_of
from ldm.metrics.fidelity import psnr, ssim
from tests.golden_checks.case import Case, assert_near

LIMITS = {"psnr": 1e-4, "ssim": 5e-5}  # torchmetrics counts in float32
DECIMALS = {"psnr": 2, "ssim": 3}  # of the figures of a table


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
    for name, decimals in DECIMALS.items():
        rows = [{"seed": None, "value": fmean(recorded[name])} for recorded in case.meta["per_frame"].values()]
        assert round(mean_of(rows)[0], decimals) == case.meta[name], name


CHECKS = {"eval_psnr_ssim": check}
