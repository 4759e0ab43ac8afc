"""Checks for values that are not finite, one by one and together."""

import pytest
import torch

from ldm.ops.finite import checked_finite, one_check

FINE, BROKEN = torch.zeros(3), torch.tensor([1.0, float("nan")])


def test_a_check_alone_raises_at_once():
    assert checked_finite(FINE, lambda: "fine") is FINE
    with pytest.raises(FloatingPointError, match="broken"):
        checked_finite(BROKEN, lambda: "broken")


def test_checks_together_name_the_first_that_failed_at_the_end():
    reached = False
    with pytest.raises(FloatingPointError, match="first"), one_check():
        checked_finite(FINE, lambda: "fine")
        checked_finite(BROKEN, lambda: "first")
        checked_finite(BROKEN, lambda: "second")
        reached = True
    assert reached
    checked_finite(FINE, lambda: "fine")


def test_an_inner_group_is_checked_at_its_own_end():
    with one_check():
        with pytest.raises(FloatingPointError, match="inner"), one_check():
            checked_finite(BROKEN, lambda: "inner")


def test_another_error_is_not_replaced():
    with pytest.raises(KeyError), one_check():
        checked_finite(BROKEN, lambda: "broken")
        raise KeyError
