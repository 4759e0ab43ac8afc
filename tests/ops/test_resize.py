import pytest
import torch

from ldm.ops.resize import resize


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "area", "nearest"])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_any_leading_shape_works_and_a_constant_is_kept(mode, leading):
    x = torch.full((*leading, 3, 8, 10), 0.25)
    torch.testing.assert_close(resize(x, (12, 5), mode=mode), torch.full((*leading, 3, 12, 5), 0.25))
    assert resize(x, (8, 10), mode=mode) is x


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_pixel_centres_stay_in_place(mode):
    ramp = torch.arange(32.0).expand(1, 32, 32)
    out = resize(ramp, (32, 64), mode=mode)[0, 0]
    expected = (torch.arange(64) + 0.5) / 2 - 0.5
    # torch's cubic kernel (a = -0.75) bends a ramp a little; corners held in place would be off by 0.5 at the ends
    limit = 0.05 if mode == "bicubic" else 1e-4
    torch.testing.assert_close(out[6:-6], expected[6:-6], rtol=0, atol=limit)


def test_frames_do_not_mix():
    clip = torch.randn(2, 4, 3, 9, 9)
    torch.testing.assert_close(resize(clip, (20, 17))[1, 2], resize(clip[1, 2], (20, 17)))


def test_antialias_averages_what_shrinking_would_skip():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 64, 64)
    plain, smooth = (resize(stripes, (16, 13), mode="bilinear", antialias=a) for a in (False, True))
    assert (smooth - 0.5).abs().max() < 0.15 < (plain - 0.5).abs().max()


def test_invalid_modes_and_sizes_are_refused():
    x = torch.zeros(3, 8, 8)
    for options in ({"mode": "lanczos"}, {"mode": "area", "antialias": True}):
        with pytest.raises(ValueError, match="mode"):
            resize(x, (4, 4), **options)
    for size in ((0, 4), (4,)):
        with pytest.raises(ValueError, match="size"):
            resize(x, size)
