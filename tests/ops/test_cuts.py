"""Scene cuts are detected; motion is not a cut."""

import pytest
import torch

from ldm.ops.cuts import scene_ends
from ldm.ops.dis import DISFlow
from ldm.ops.flow import estimate_motion
from ldm.ops.resize import resize


def texture(seed: int, *, grain: int, size=(96, 128)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, size[0] // grain, size[1] // grain, generator=generator)
    return resize(coarse, size).clamp(0, 1)


def ends(first, second) -> bool:
    size = (first.shape[-2] // 2, first.shape[-1] // 2)
    return scene_ends(first, second, estimate_motion(DISFlow(), torch.stack([first, second], 1), size=size))


@pytest.mark.parametrize("grain", [1, 2, 8, 24])
def test_a_different_image_starts_a_scene(grain):
    assert ends(texture(1, grain=grain), texture(2, grain=grain))


@pytest.mark.parametrize("shift", [0, 3, 9])
def test_movement_is_no_cut(shift):
    frame = texture(3, grain=8)
    assert not ends(frame, frame.roll((shift, -shift), (2, 3)))


def test_noise_on_a_uniform_surface_is_no_cut():
    torch.manual_seed(0)
    first, second = (0.3 + 0.03 * torch.randn(1, 3, 96, 128) for _ in range(2))
    assert not ends(first, second)


def test_fades_and_uniform_frames_are_no_cut():
    frame = texture(4, grain=8)
    assert not ends(frame, 0.85 * frame)
    assert not ends(torch.zeros_like(frame), torch.zeros_like(frame))


def test_an_image_after_black_starts_a_scene():
    assert ends(torch.zeros(1, 3, 96, 128), texture(5, grain=8))
