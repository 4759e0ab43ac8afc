import pytest
import torch

from ldm.ops.color import adain_color_fix, wavelet_blur, wavelet_color_fix, wavelet_decompose, wavelet_fix_keeping_flat


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


CONTENT, STYLE = picture(2, 3, 20, 24), 0.3 * picture(2, 3, 20, 24, seed=1) + 0.5


def test_adain_transfers_mean_and_deviation():
    out = adain_color_fix(CONTENT, STYLE)
    for moment, limit in ((torch.mean, 1e-5), (torch.std, 1e-3)):
        torch.testing.assert_close(moment(out, dim=(2, 3)), moment(STYLE, dim=(2, 3)), rtol=0, atol=limit)
    torch.testing.assert_close(adain_color_fix(CONTENT, CONTENT), CONTENT)
    flat = adain_color_fix(torch.ones(1, 3, 8, 8), STYLE[:1, :, :4, :4])  # no deviation, and another size
    torch.testing.assert_close(flat, STYLE[:1, :, :4, :4].mean((2, 3), keepdim=True).expand(1, 3, 8, 8))


@pytest.mark.parametrize("size", [(20, 24), (5, 3), (1, 1)])
@pytest.mark.parametrize("levels", [0, 1, 5])
def test_bands_sum_to_the_image(size, levels):
    image = picture(2, 3, *size)
    high, low = wavelet_decompose(image, levels)
    torch.testing.assert_close(high + low, image)


def test_wavelet_keeps_the_high_band_and_replaces_the_low_band():
    torch.testing.assert_close(wavelet_color_fix(CONTENT, CONTENT), CONTENT)
    torch.testing.assert_close(wavelet_color_fix(CONTENT, CONTENT + 0.2), CONTENT + 0.2)
    flat, black = torch.ones(1, 3, 9, 9), torch.zeros(1, 3, 9, 9)
    torch.testing.assert_close(wavelet_color_fix(flat, black), black)


def test_the_blur_spreads_a_point_over_nine_pixels():
    point = torch.zeros(1, 1, 11, 11)
    point[..., 5, 5] = 16
    spread = wavelet_blur(point, 3)[0, 0]
    assert spread[2:9:3, 2:9:3].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]] and spread.sum() == 16


@pytest.mark.parametrize("fix", [adain_color_fix, wavelet_color_fix])
def test_half_precision_is_computed_in_float32(fix):
    exact = fix(CONTENT.half().float(), STYLE.half().float())
    assert torch.equal(fix(CONTENT.half(), STYLE.half()), exact.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fix(CONTENT, STYLE), fix(CONTENT, STYLE).float())
        torch.testing.assert_close(fix(CONTENT.half().float(), STYLE.half().float()), exact)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="same n and c"):
        adain_color_fix(CONTENT[0], STYLE[0])
    with pytest.raises(ValueError, match="resize the style"):
        wavelet_color_fix(CONTENT, STYLE[..., :-1])


@pytest.mark.parametrize("level", [-1.0, -0.3, 1.0])
@pytest.mark.parametrize("fix", [adain_color_fix, wavelet_fix_keeping_flat])
def test_frames_of_one_colour_stay_so(fix, level):
    """Black and white come out within 8 of 255, whatever patterns a decoder makes of them."""
    content = 0.5 * torch.randn(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    style = torch.full_like(content, level) + (2 / 255) * (picture(2, 3, 32, 40) - 0.5)
    assert ((fix(content, style) - level).abs().max() * 127.5).item() < 8
    style[1] = STYLE[0, :, :1, :1]
    style[1, 0, 3, 3] += 0.1
    torch.testing.assert_close(wavelet_fix_keeping_flat(content, style)[1], wavelet_color_fix(content, style)[1])
