"""NIQE against closed forms, SciPy, and values recorded from the field's own code."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from ldm.metrics import niqe as module
from ldm.metrics.niqe import FILE, Pristine, load_pristine, niqe
from ldm.metrics.scored_frame import Unavailable
from tests.metrics.pictures import original

FORMS = [("y", 0), ("y", 4), ("gray", 0)]  # as in basicsr
# Distances from statistics of mean 0 and variance 1. With the official statistics, which are not free to copy, the same
# code gave basicsr's figures within 1e-3, such as 2.6255, 2.6893 and 2.5721 for the first picture.
RECORDED = {"chelsea": (4.135227, 4.115085, 4.126498), "rocket": (3.126858, 3.108157, 3.160902)}
RNG = np.random.default_rng(0)


def picture(h=210, w=300, seed=0):
    """Soft structure with some grain, (h, w, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (h // 6, w // 6, 3), dtype=np.uint8)
    soft = cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC)
    return np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8)


def features(frame):
    """(blocks, 36) of both scales."""
    image = module._image(frame, "y")
    image = image[: image.shape[0] // 96 * 96, : image.shape[1] // 96 * 96]
    return np.concatenate([module._features(image, 96), module._features(module._halved(image), 48)], axis=1)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_values(name):
    frame, plain = original(name), Pristine(np.zeros(36), np.eye(36))
    got = [niqe(frame, plain, channels=channels, crop=crop) for channels, crop in FORMS]
    assert got == pytest.approx(RECORDED[name], rel=1e-4)


def test_it_is_the_distance_of_the_statistics():
    """A picture is at 0 from its own statistics; moved by d, at sqrt(d C^-1 d), C the covariance of both."""
    frame = picture()
    own = features(frame)
    spread = np.cov(own, rowvar=False) + 0.1 * np.eye(36)
    mean = own.mean(axis=0)
    assert niqe(frame, Pristine(mean, spread)) == pytest.approx(0, abs=1e-5)
    away = RNG.normal(0, 0.1, 36)
    together = (spread + np.cov(own, rowvar=False)) / 2
    wanted = np.sqrt(away @ np.linalg.solve(together, away))
    assert niqe(frame, Pristine(mean + away, spread)) == pytest.approx(wanted, rel=1e-6)


def test_only_whole_blocks_inside_the_crop_count():
    frame = picture()
    pristine = Pristine(np.zeros(36), np.eye(36))
    other = frame.copy()
    other[192:], other[:, 288:] = 0, 0
    assert niqe(frame, pristine) == niqe(other, pristine)
    assert niqe(frame, pristine, crop=5) == pytest.approx(niqe(frame[5:-5, 5:-5], pristine))
    assert niqe(frame, pristine, crop=5) != pytest.approx(niqe(frame, pristine), rel=1e-4)


@pytest.mark.parametrize(("power", "shape", "scale"), [("normal", 2, 2**0.5), ("laplace", 1, 1)])
def test_known_distributions_are_recognised(power, shape, scale):
    values = getattr(RNG, power)(0, 1, (1, 300, 300))
    got, left, right, mean = module._asymmetric_gaussian(values)
    assert got == pytest.approx([shape], rel=0.03)
    # The fit's scale: that of exp(-(|x| / scale)^shape).
    assert (left, right) == (pytest.approx([scale], rel=0.03), pytest.approx([scale], rel=0.03))
    assert mean == pytest.approx([0], abs=0.03)
    _, narrow, wide, moved = module._asymmetric_gaussian(np.where(values > 0, 2 * values, values))
    assert wide / narrow == pytest.approx([2], rel=0.05)
    assert moved > 0.2


def test_a_block_without_contrast_has_no_statistics():
    got = np.array(module._asymmetric_gaussian(np.zeros((1, 4, 4))))[:, 0]
    assert got[0] == pytest.approx(0.2)
    assert np.isnan(got[1:]).all()


def test_the_local_mean_is_a_gaussian_with_the_border_repeated():
    image = RNG.random((20, 30)).astype(np.float32)
    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    wanted = ndimage.convolve(image, kernel / kernel.sum(), mode="nearest")
    np.testing.assert_allclose(module._local_mean(image), wanted, rtol=1e-6)


def test_half_the_size_keeps_ramps():
    rows, columns = np.mgrid[:32, :40].astype(np.float32)
    half = module._halved(2 * rows + 3 * columns)
    wanted = (2 * (2 * rows + 0.5) + 3 * (2 * columns + 0.5))[:16, :20]
    np.testing.assert_allclose(half[2:-2, 2:-2], wanted[2:-2, 2:-2], rtol=1e-5)
    np.testing.assert_allclose(module._halved(np.full((6, 8), 77, np.float32)), 77, rtol=1e-6)


def test_flat_and_small_frames_have_none():
    pristine = Pristine(np.zeros(36), np.eye(36))
    with pytest.raises(Unavailable, match="150x191 holds fewer than two blocks"):
        niqe(picture(210, 150)[:191], pristine)
    with pytest.raises(Unavailable, match="flat"):
        niqe(np.zeros((200, 200, 3), np.uint8), pristine)
    with pytest.raises(ValueError, match="expected y or gray"):
        niqe(picture(), pristine, channels="rgb")


def saved(path, mean=None, covariance=None):
    """A file in the form of the official one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mean = np.zeros((1, 36)) if mean is None else mean
    np.savez(path, mu_pris_param=mean, cov_pris_param=np.eye(36) if covariance is None else covariance)
    return path


def test_other_statistics_are_refused(tmp_path):
    with pytest.raises(ValueError, match="other statistics than the official"):
        load_pristine(saved(tmp_path / "own.npz"))
    with pytest.raises(ValueError, match="expected 36 and 36x36"):
        load_pristine(saved(tmp_path / "short.npz", mean=np.zeros((1, 18))))
    np.savez(tmp_path / "scikit.npz", pop_mu=np.zeros(36))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("scikit.npz", "text.npz", "none.npz"):
        with pytest.raises(ValueError, match=f"{name} .*expected BasicSR's {FILE}"):
            load_pristine(tmp_path / name)


def test_an_installed_package_is_looked_into_but_not_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "PACKAGES", {"carrier_of_statistics": f"metrics/{FILE}"})
    with pytest.raises(Unavailable, match=f"name BasicSR's {FILE}"):
        load_pristine()
    saved(tmp_path / "carrier_of_statistics" / "metrics" / FILE)
    (tmp_path / "carrier_of_statistics" / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(ValueError, match="other statistics"):
        load_pristine()
