"""The colour fixes."""

import torch

from ldm.ops.color import adain_color_fix, wavelet_blur, wavelet_color_fix, wavelet_decompose
from tests.golden_checks.case import Case, assert_near

LIMIT = 1e-6


def check(case: Case) -> None:
    def near(value: torch.Tensor, name: str) -> None:
        if name in case.tensors:
            assert_near(value, case[name], limit=LIMIT, relative_to=case[name].abs().max().item(), what=name)

    for k in sorted(name.removeprefix("content.") for name in case.tensors if name.startswith("content.")):
        content, style = case[f"content.{k}"], case[f"style.{k}"]
        high, low = wavelet_decompose(content)
        near(adain_color_fix(content, style), f"out.adain.{k}")
        near(wavelet_color_fix(content, style), f"out.wavelet.{k}")
        near(high, f"out.wavelet_high.{k}")
        near(low, f"out.wavelet_low.{k}")
        near(wavelet_blur(content, 4), f"out.wavelet_blur_r4.{k}")


CHECKS = {"g_colour": check}
