"""Degradation pipelines: protocols, sizes, ranges and reproducibility."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from basicsr_deg.blur import Blur
from basicsr_deg.pipeline import Degradation
from basicsr_deg.resize import Fit
from ldm import config

FOLDER = Path(__file__).parents[2] / "configs" / "degradations"
PROTOCOLS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
RANDOM = [name for name in PROTOCOLS if name.startswith("real")]


def settings(name, *overrides):
    return config.load(FOLDER / f"{name}.yaml", overrides=overrides)


def make(name, *overrides):
    return config.instantiate(settings(name, *overrides).degradation)


def clip(count=3, height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    big = cv2.resize(small, (width + count, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([big[:, t : t + width] for t in range(count)])


def degrade(name, frames, seed=0, **options):
    return make(name)(frames, np.random.default_rng(seed), **options)


def test_the_named_protocols_exist():
    assert {"realbasicvsr", "realbasicvsr_released", "realbasicvsr_mild", "bicubic_x4", "blur_down_x4"} <= {*PROTOCOLS}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_output_is_a_quarter_size_in_range_and_degraded(name):
    frames = clip()
    out = degrade(name, frames)
    assert out.shape == (3, 12, 16, 3) and out.dtype == np.float32
    assert out.min() >= 0 and out.max() <= 1 and out.std() > 0.02
    assert np.abs(out - frames[:, 2::4, 2::4] / 255).mean() > 0.002


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("size", [(101, 99), (33, 50), (7, 5), (1, 1)])
def test_any_size_is_accepted(name, size):
    for seed in range(2):
        assert degrade(name, clip(2, *size), seed).shape == (2, max(size[0] // 4, 1), max(size[1] // 4, 1), 3)


@pytest.mark.parametrize("name", RANDOM)
def test_results_depend_only_on_the_seed(name):
    frames, other = clip(), pickle.loads(pickle.dumps(make(name)))
    first = degrade(name, frames, 5)
    degrade(name, clip(1, 30, 30), 9)
    np.testing.assert_array_equal(other(frames, np.random.default_rng(5)), first)
    assert (degrade(name, frames, 6) != first).mean() > 0.9


def test_draws_of_a_stage_do_not_depend_on_other_stages_or_length():
    def drawn(count, *overrides):
        notes = {}
        degradation = make("realbasicvsr", *overrides)
        degradation(clip(count), np.random.default_rng(3), trace=lambda name, note, _: notes.__setitem__(name, note))
        return {name: {key: value[:2] if isinstance(value, list) else value for key, value in note.items()}
                for name, note in notes.items()}  # fmt: skip

    whole = drawn(4)
    without = [f"degradation.params.stages.{name}=null" for name in ("blur_1", "codec_1", "noise_2")]
    fewer = drawn(2, *without)
    assert set(fewer) == set(whole) - {"blur_1", "codec_1", "noise_2"} and len(fewer) >= 6
    assert all(fewer[name] == whole[name] for name in fewer)


def test_the_trace_receives_every_frame_after_every_stage():
    seen = []
    degradation = make("realbasicvsr", "degradation.params.stages.sinc.params.prob=1")
    out = degradation(clip(), np.random.default_rng(0), trace=lambda name, _, frame: seen.append((name, frame)))
    names = [name for name, _ in seen]
    for name in set(names):
        assert names.count(name) == 3
    first = [names.index(name) for name in degradation.stages if name in names]
    assert first == sorted(first)
    np.testing.assert_allclose(np.clip([frame for name, frame in seen if name == "sinc"], 0, 255) / 255, out, atol=1e-7)


def test_a_stage_is_applied_with_its_probability():
    class Count:
        prob, applied = 0.3, 0

        def __call__(self, frames, rng, *, notes, size):
            self.applied += 1
            return iter(frames)

    counter = Count()
    degradation = Degradation({"count": counter}, scale=1)
    for seed in range(600):
        degradation(clip(1, 2, 2), np.random.default_rng(seed))
    assert abs(counter.applied / 600 - 0.3) < 0.05


def test_released_differs_in_two_settings_only():
    ours, released = (config.plain(settings(name)) for name in ("realbasicvsr", "realbasicvsr_released"))
    assert ours["degradation"]["params"]["stages"].keys() == released["degradation"]["params"]["stages"].keys()
    changed = {}
    for name, stage in released["degradation"]["params"]["stages"].items():
        params = ours["degradation"]["params"]["stages"][name]["params"]
        changed |= {(name, key): value for key, value in stage["params"].items() if value != params[key]}
        assert stage["params"].keys() == params.keys()
    beta = {(name, "beta"): "released" for name in ("blur_1", "blur_2", "sinc")}
    assert changed == beta | {(name, "channels"): "released" for name in ("codec_1", "codec_2")}


def test_mild_keeps_more_detail():
    frames = clip(1, 64, 64)
    truth = degrade("bicubic_x4", frames)
    loss = {}
    for name in ("realbasicvsr", "realbasicvsr_mild"):
        loss[name] = np.mean([np.abs(degrade(name, frames, seed) - truth).mean() for seed in range(8)])
    assert loss["realbasicvsr_mild"] < 0.6 * loss["realbasicvsr"]


def test_bd_is_every_fourth_pixel_of_a_gaussian_blur():
    frames = clip(1)
    blurred = cv2.GaussianBlur(frames[0], (13, 13), 1.6)
    np.testing.assert_allclose(degrade("blur_down_x4", frames)[0] * 255, blurred[::4, ::4], atol=1.01)


def test_size_and_scale():
    equally = {"bilinear": 1.0}
    frames = clip(1, 40, 60)
    assert Degradation({"fit": Fit(equally)}, scale=3)(frames, np.random.default_rng(0)).shape == (1, 13, 20, 3)
    fixed = Degradation({"fit": Fit(equally)}, size=[9, 7])
    assert fixed(frames, np.random.default_rng(0)).shape == (1, 9, 7, 3)
    with pytest.raises(ValueError, match="got 60x40 from the last stage, expected 15x10; add a stage"):
        Degradation({})(frames, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Degradation([]), "stages: got list"),
        (lambda: Degradation({}, scale=0), "scale: got 0"),
        (lambda: Degradation({}, size=[8]), "size: got"),
        (lambda: Degradation({}, size=[8, 0.5]), "size: got"),
        (lambda: Degradation({})(np.zeros((2, 4, 4, 3)), None), "of float64, expected"),
        (lambda: Degradation({})(np.zeros((4, 4, 3), np.uint8), None), r"got a clip \(4, 4, 3\)"),
        (lambda: Degradation({})(np.zeros((0, 4, 4, 3), np.uint8), None), "T at least 1"),
        (lambda: settings("realbasicvsr", "degradation.params.stages.blur_3=null"), "no such key"),
        (lambda: make_with("stages.blur_1.params.prob=high"), "prob: got 'high'"),
        (lambda: make_with("stages.jpeg_1.params.quality.range=[90,30]"), r"quality.range: got \[90, 30\]"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(make, why):
    with pytest.raises(ValueError, match=why) as caught:
        make()
    assert "\n" not in str(caught.value)


def make_with(word):
    return make("realbasicvsr", f"degradation.params.{word}")


def test_constants_come_from_the_configuration():
    blur = make_with("stages.blur_2.params.walks.sigma_x.range=[0.25,0.5]").stages["blur_2"]
    assert isinstance(blur, Blur) and (blur.walks["sigma_x"].low, blur.walks["sigma_x"].high) == (0.25, 0.5)
