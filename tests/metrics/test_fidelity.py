"""PSNR and SSIM against closed forms, scikit-image, and values recorded from the field's own code."""

import cv2
import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from ldm.metrics.fidelity import luma, psnr, rgb8, ssim
from tests.metrics.pictures import recorded_pairs

FORMS = {"basicsr_rgb": ("rgb", 0), "basicsr_rgb_crop4": ("rgb", 4), "basicsr_Y": ("y", 0), "basicsr_Y_crop4": ("y", 4)}
OTHER_FORMS = [  # conventions of other packages: measure, name of the recorded value, channels
    (psnr, "pyiqa_psnry", "gray"),
    (psnr, "full-range gray (cv2 BGR2GRAY, uint8)", "gray8"),
    (psnr, "limited-range Y rounded to 8 bit (wrong but common)", "y8"),
    (ssim, "pyiqa_ssim(Y, default)", "gray8"),
]


def noisy_pair(h=40, w=52, seed=0):
    """A soft picture and a disturbed one, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (h // 4, w // 4, 3), dtype=np.uint8)
    truth = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 20, truth.shape)
    return np.clip(truth + noise, 0, 255).round().astype(np.uint8), truth


def test_a_constant_difference_has_its_psnr():
    truth = torch.full((3, 16, 20), 100 / 255)
    assert psnr(truth + 10 / 255, truth) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(truth, truth) == float("inf")


def test_luma_ends_at_16_and_235():
    ends = luma(np.uint8([[[0, 0, 0], [255, 255, 255]]]))
    np.testing.assert_allclose(ends, [[16, 235]], atol=1e-4)


def test_a_tensor_and_its_bytes_are_one_frame():
    got, truth = noisy_pair()
    as_tensor = torch.from_numpy(got).permute(2, 0, 1) / 255
    np.testing.assert_array_equal(rgb8(as_tensor), got)
    assert psnr(as_tensor, truth) == psnr(got, truth)
    assert rgb8(torch.full((3, 2, 2), 1.7)).max() == 255


def test_the_crop_leaves_the_border_out():
    got, truth = noisy_pair()
    inside = truth.copy()
    inside[:3] = inside[:, -3:] = 0
    assert psnr(inside, truth) < 30
    assert psnr(inside, truth, crop=3) == float("inf")
    assert ssim(inside, truth, crop=3) == pytest.approx(1)


@pytest.mark.parametrize("channels", ["rgb", "y"])
def test_ssim_is_that_of_scikit_image(channels):
    got, truth = noisy_pair()
    form = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    if channels == "y":
        pair, axis = (luma(got).astype(np.float64), luma(truth).astype(np.float64)), None
    else:
        pair, axis = (got.astype(np.float64), truth.astype(np.float64)), 2
    _, whole = structural_similarity(*pair, channel_axis=axis, full=True, **form)
    assert ssim(got, truth, channels=channels) == pytest.approx(whole[5:-5, 5:-5].mean(), abs=1e-6)


def test_ssim_of_flat_frames_compares_their_means():
    dark, bright = torch.full((3, 12, 12), 51 / 255), torch.full((3, 12, 12), 102 / 255)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, bright) == pytest.approx((2 * 51 * 102 + c1) / (51**2 + 102**2 + c1), abs=1e-6)


def test_ssim_of_rounded_gray_counts_negative_structure_as_zero():
    """Recorded from pyiqa 0.1.16; without the limit at 0 it would be less."""
    rng = np.random.default_rng(0)
    truth = np.clip(rng.normal(128, 30, (64, 90, 3)), 0, 255).astype(np.uint8)
    got = np.clip(truth + rng.normal(0, 200, truth.shape), 0, 255).round().astype(np.uint8)
    assert ssim(got, truth, channels="gray8") == pytest.approx(0.0876619, abs=1e-4)
    assert ssim(got, truth, channels="gray") < 0.0876 - 0.01


def test_channels_of_one_colour():
    """Full range: grey keeps its value; limited range: 219 of 255 parts of it; rounded ones are whole numbers."""
    dark, bright = torch.full((3, 12, 12), 100 / 255), torch.full((3, 12, 12), 110 / 255)
    full = 20 * np.log10(255 / 10)
    assert psnr(dark, bright, channels="gray") == pytest.approx(full, abs=1e-4)
    assert psnr(dark, bright, channels="y") == pytest.approx(full - 20 * np.log10(219 / 255), abs=1e-4)
    assert psnr(dark, bright, channels="y8") == pytest.approx(20 * np.log10(255 / 8), abs=1e-4)  # 101.88 and 110.47


@pytest.mark.parametrize(("measure", "form", "channels"), OTHER_FORMS)
def test_recorded_values_of_other_conventions(measure, form, channels):
    tolerance = 1e-3 if measure is psnr else 1e-4
    for names, got, truth, values in recorded_pairs():
        wanted = values[measure.__name__][form]
        assert measure(got, truth, channels=channels) == pytest.approx(wanted, abs=tolerance), names


@pytest.mark.parametrize("form", FORMS)
def test_recorded_values(form):
    channels, crop = FORMS[form]
    for names, got, truth, values in recorded_pairs():
        assert psnr(got, truth, channels=channels, crop=crop) == pytest.approx(values["psnr"][form], abs=1e-3), names
        assert ssim(got, truth, channels=channels, crop=crop) == pytest.approx(values["ssim"][form], abs=1e-4), names


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (torch.zeros(3, 16, 17), "got frames of 17x16 and 16x16"),
        (torch.zeros(1, 3, 16, 16), r"expected \(3, H, W\) in \[0, 1\]"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"expected \(3, H, W\)"),
        (torch.full((3, 16, 16), float("nan")), "not finite"),
        (np.zeros((16, 16, 3), np.float32), r"expected \(H, W, 3\) uint8"),
    ],
)
def test_what_cannot_be_compared_is_named(got, expected):
    with pytest.raises(ValueError, match=expected):
        psnr(got, torch.zeros(3, 16, 16))


def test_wrong_words_and_small_frames():
    frame = torch.zeros(3, 12, 12)
    with pytest.raises(ValueError, match="expected one of rgb, y, "):
        psnr(frame, frame, channels="luma")
    with pytest.raises(ValueError, match="got crop 6"):
        psnr(frame, frame, crop=6)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(frame, frame, crop=1)
