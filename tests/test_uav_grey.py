"""The comparison of grey levels tells cutting off from rounding, which one level alone would not."""

import pytest
import torch

from tests.golden_checks.uav.pipeline import compare_grey


def test_rounding_does_not_pass_for_truncation():
    values = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)) * 255
    cut = values.to(torch.uint8)
    compare_grey(cut, cut)
    with pytest.raises(AssertionError, match="of the grey levels differ"):
        compare_grey(values.round().to(torch.uint8), cut)
    with pytest.raises(AssertionError, match="grey levels"):
        compare_grey(cut + 2, cut)
