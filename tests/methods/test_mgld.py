"""MGLD-VSR with toy networks: clips of all sizes, independence of tiles and windows, and errors."""

import pytest
import torch
from torch.nn import functional as F

from ldm import config
from ldm.diffusion.guidance import motion_loss
from ldm.methods.geometry import floor_pixels
from ldm.methods.mgld.method import MGLD
from ldm.methods.mgld.released import ReleasedMGLD
from ldm.methods.mgld.restoration import Restoration, motion_between
from ldm.methods.mgld.settings import Decoding, Sampling
from ldm.methods.windows import Windows
from ldm.nets.raft import RAFT
from ldm.nets.spynet import SpyNet
from ldm.ops import tiling
from ldm.ops.flow import Motion, cut_motion
from ldm.streaming.pipeline import stack
from tests.marks import mostly_slow
from tests.methods.toy import clip, method, pixelwise, settings

SMALL = ("patch=64", "stride=48", "min_size=32", "sampling.steps=2", "sampling.prediction=v")
TINY = (*SMALL, "patch=32", "stride=24", "n_frames=2")


def difference(a, b) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# ---- any clip


@mostly_slow(
    ("frames", "size", "upscale"),
    [
        (2, (17, 23), 2.5),
        (4, (21, 16), 0.5),
        (1, (16, 16), 4),
        (5, (16, 31), 2),
        (7, (19, 16), 1),
        (3, (33, 18), 4),
        (1, (50, 41), 1),
    ],
    fast=2,
)
def test_any_number_of_frames_any_size_and_scale(frames, size, upscale):
    out = method().restore(clip(frames, *size), upscale=upscale)
    assert out.shape == (frames, 3, int(size[0] * upscale), int(size[1] * upscale))
    assert out.dtype == torch.float32 and torch.isfinite(out).all()
    assert out.min() >= 0 and out.max() <= 1 and out.std() > 0.02


@pytest.mark.parametrize(("size", "upscale"), [((16, 20), 1), ((20, 17), 2)])
def test_small_frames_are_enlarged_for_the_networks_only(size, upscale):
    small = method("min_size=48")
    seen = []
    last = small.networks["sequence_decoder"].quant_conv
    hook = last.register_forward_hook(lambda m, args, out: seen.append(out.shape[-2:]))
    out = small.restore(clip(2, *size), upscale=upscale)
    hook.remove()
    assert out.shape[-2:] == (size[0] * upscale, size[1] * upscale)
    assert all(4 * min(shape) >= 48 for shape in seen) and seen


@pytest.mark.parametrize("flow", ["dis", "raft", "spynet"])
@pytest.mark.parametrize("frames", [1, 2])
def test_every_flow_estimator_takes_any_clip(flow, frames):
    nets = {"dis": {}, "raft": {"flow": RAFT("small", iterations=1)}, "spynet": {"flow": SpyNet()}}
    out = method("sampling.steps=1", **nets[flow]).restore(clip(frames, 16, 20), upscale=2)
    assert out.shape == (frames, 3, 32, 40) and torch.isfinite(out).all()


@pytest.fixture(scope="module")
def usual():
    """Restore a clip with the toy configuration."""
    return method().restore(clip(2, 16, 36), upscale=2)


@mostly_slow(
    "words",
    [
        ["sampling.sampler=ddim"],
        ["sampling.sampler=lcm"],
        ["sampling.sampler=tcd"],
        ["sampling.sampler=tcd", "sampling.gamma=0.8", "sampling.spacing=trailing"],
        ["sampling.sampler=dpmpp_2m", "sampling.steps=3"],
        ["sampling.sampler=unipc", "sampling.steps=3"],
        ["sampling.spacing=trailing"],
        ["sampling.initial=lq", "sampling.steps=1", "sampling.guidance=none"],
        ["sampling.steps=1"],
        ["sampling.steps=7", "sampling.guidance=none"],
        ["sampling.prediction=eps", "sampling.guidance=released"],
        ["sampling.prediction=x0", "sampling.arithmetic=released"],
        ["decoding.color_fix=wavelet"],
        ["decoding.color_fix=nofix", "decoding.dec_w=0"],
        ["windows.weight=flat", "decoding.windows.weight=released"],
    ],
    fast=4,
)
def test_every_option_runs_and_matters(words, usual):
    out = method(*words).restore(clip(2, 16, 36), upscale=2)
    assert torch.isfinite(out).all() and difference(out, usual) > 1e-5


def test_the_seed_decides_the_noise():
    lq = clip(2)
    first, again, other = (method().restore(lq, upscale=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert difference(first, other) > 1e-3


ALTERNATING = ("windows.sharing_steps=1", "windows.alternate=true", "windows.n_frames=3", "sampling.steps=3")


@pytest.mark.parametrize(
    "toy",
    [
        lambda: method("windows.batch=2", "sampling.steps=1"),
        lambda: pixelwise(*TINY, preset="released"),
        lambda: pixelwise(*ALTERNATING),
        lambda: pixelwise("sampling.sampler=dpmpp_2m"),
    ],
)
def test_progress_reaches_its_total(toy):
    calls = []
    toy().restore(clip(4, 24, 24), upscale=2, progress=lambda *call: calls.append(call))
    for stage in ("sampling", "decoding"):
        done = [(k, total) for s, k, total in calls if s == stage]
        assert done == [(k + 1, len(done)) for k in range(len(done))] and len(done) > 1


# ---- however it is cut


CUTS = [
    ["windows.tile=7", "windows.tile_overlap=0", "windows.n_frames=2", "windows.frame_overlap=0"],
    ["windows.tile=9", "windows.tile_overlap=5", "windows.n_frames=1", "windows.frame_overlap=0", "windows.batch=5"],
    ["windows.tile=16", "windows.tile_overlap=3", "windows.n_frames=4", "windows.frame_overlap=3", "windows.batch=64"],
    ["windows.weight=released", "windows.n_frames=100", "windows.frame_overlap=2"],
    ["windows.weight=flat", "decoding.windows.tile=10", "decoding.windows.n_frames=2", "decoding.windows.batch=3"],
    ["decoding.windows.weight=flat", "decoding.windows.tile=15", "decoding.windows.frame_overlap=0"],
]


@mostly_slow("guidance", ["paper", "none"])
@pytest.mark.parametrize("words", CUTS, ids=" ".join)
def test_tiles_and_windows_do_not_change_the_noise(words, guidance):
    """With pixelwise networks, results agree to 1e-5 for all tiles, windows and batches."""
    whole_words = ["windows.tile=1000", "windows.n_frames=1000", "decoding.windows.tile=1000"]
    whole_words += ["decoding.windows.n_frames=1000"]
    lq = clip(5, 16, 21)
    together = pixelwise(*whole_words, f"sampling.guidance={guidance}").restore(lq, upscale=2)
    cut = pixelwise(*words, f"sampling.guidance={guidance}").restore(lq, upscale=2)
    assert together.std() > 0.05 and difference(cut, together) < 1e-5


def test_the_noise_of_a_frame_does_not_depend_on_the_length_of_the_clip():
    """The first frames of a longer clip have the same noise as alone."""
    lq = clip(6, 16, 16)
    pixels = pixelwise("sampling.guidance=none", "decoding.color_fix=nofix")
    assert difference(pixels.restore(lq)[:4], pixels.restore(lq[:4])) < 1e-5


def test_clips_of_a_batch_equal_clips_alone():
    clips = torch.stack([clip(2, 18, 22, seed=1), clip(2, 18, 22, seed=2, step=2)])
    toy = method("sampling.steps=1")
    together = toy.restore(clips, upscale=1)
    alone = torch.stack([toy.restore(one, upscale=1) for one in clips])
    assert together.shape == (2, 2, 3, 18, 22) and difference(together, alone) < 1e-5


def test_several_windows_and_tiles_in_one_call_equal_one_at_a_time():
    lq, words = clip(4, 17, 20), ["sampling.steps=1", "windows.n_frames=2", "decoding.windows.n_frames=2"]
    one = method(*words).restore(lq)
    assert method(*words).windows.calls(4, 17, 20) == 12
    many = method(*words, "windows.batch=5", "decoding.windows.batch=100").restore(lq)
    assert difference(many, one) < 1e-5


# ---- guidance


def latents_of(toy, lq, **kwargs):
    """The final latents of a clip whose sides need no padding, and its motion."""
    frames = toy.latents(lq, seed=3)
    return stack(frames, "x"), motion_between(frames)


@pytest.mark.slow  # six steps, twice
def test_paper_guidance_steadies_the_latents_of_a_moving_clip():
    lq = clip(3, 64, 96, step=8)
    losses = {}
    for guidance in ("none", "paper"):
        x, motion = latents_of(method(f"sampling.guidance={guidance}", "sampling.steps=6"), lq)
        losses[guidance] = motion_loss(x, motion).item()
    assert motion.to_next[..., 4:-4, 8:-8].abs().mean() > 0.2  # the estimator sees the clip move
    assert losses["paper"] < 0.8 * losses["none"]


def test_the_scale_of_the_guidance_is_passed_on():
    lq = clip(2)
    off = method("sampling.guidance_scale=0").restore(lq, upscale=2)
    assert torch.equal(off, method("sampling.guidance=none").restore(lq, upscale=2))
    assert difference(off, method("sampling.guidance_scale=3").restore(lq, upscale=2)) > 1e-5


# ---- the released preset


@pytest.mark.parametrize(
    ("frames", "size", "upscale"),
    [
        (2, (16, 16), 4),  # one patch: the released script crashes (B5)
        (1, (16, 17), 4),  # sides that are no multiples of 32: padding stays in the released result (B9)
        (6, (24, 31), 4),  # patches, two segments
        (3, (40, 16), 1),  # enlarged to min_size and brought back
    ],
)
def test_the_released_preset_gives_the_right_size(frames, size, upscale):
    toy = pixelwise(*SMALL, preset="released")
    assert isinstance(toy, ReleasedMGLD) and (toy.n_frames, toy.patch, toy.stride) == (5, 64, 48)
    assert toy.sampling.guidance == "released"
    out = toy.restore(clip(frames, *size), upscale=upscale)
    assert out.shape == (frames, 3, size[0] * upscale, size[1] * upscale)
    assert torch.isfinite(out).all() and 0 <= out.min() and out.max() <= 1


def test_the_released_preset_runs_the_networks():
    """Two segments, four patches, the last ones moved inside, and the last frame repeated."""
    out = method(*TINY, "sampling.steps=1", preset="released").restore(clip(3, 16, 17), upscale=2.25)
    assert out.shape == (3, 3, 36, 38) and torch.isfinite(out).all() and out.std() > 0.02


def test_no_padding_is_left_in_the_released_result(monkeypatch):
    """With identity networks, cutting, padding, averaging and cropping give the enlarged clip."""
    toy = pixelwise(*SMALL, preset="released")
    unchanged = lambda run, z, pictures, motion: (z, pictures * 2 - 1)  # noqa: E731 (patches and padding alone)
    monkeypatch.setattr(Restoration, "restore_encoded", unchanged)
    lq = clip(2, 24, 31)
    out = toy.restore(lq, upscale=4)
    expected = F.interpolate(lq, size=(96, 124), mode="bicubic", align_corners=False).clamp(0, 1)
    assert difference(out, expected) < 1e-5


def test_patches_may_start_off_the_latent_grid():
    out = pixelwise(*SMALL, "stride=47", preset="released").restore(clip(5, 24, 40), upscale=4)
    assert out.shape == (5, 3, 96, 160) and torch.isfinite(out).all()
    single = pixelwise(*SMALL, "stride=47", "n_frames=1", preset="released")
    assert single.restore(clip(2, 24, 40), upscale=4).shape == (2, 3, 96, 160)


def test_motion_is_cut_where_the_patch_lies():
    """A motion that is linear in the position is interpolated exactly (B8: the released cut is off by up to 30 px)."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    flow = torch.stack([0.5 * x - y, x + 0.25 * y]).expand(1, 4, 2, 12, 16)
    none = torch.zeros(1, 4, 1, 12, 16)
    motion = Motion(flow, -flow, none, none)
    for top, left in ((0, 0), (8, 16), (18, 6), (3, 25)):
        tile = tiling.Tile(slice(1, 4), slice(top, top + 24), slice(left, left + 32))
        cut = cut_motion(motion, tile, 4)
        y_cut, x_cut = y[:6, :8] + top / 4, x[:6, :8] + left / 4
        assert cut.to_next.shape == (1, 2, 2, 6, 8)
        assert difference(cut.to_next[0, 0], torch.stack([0.5 * x_cut - y_cut, x_cut + 0.25 * y_cut])) < 1e-5
        assert difference(cut.to_prev, -cut.to_next) < 1e-6
    single = tiling.Tile(slice(1, 2), slice(3, 27), slice(6, 38))
    assert cut_motion(motion, single, 4).to_next.shape == (1, 0, 2, 6, 8)


def test_occlusion_stays_a_mask_when_cut_between_latents():
    torch.manual_seed(0)
    masks = (torch.rand(1, 2, 1, 9, 9) > 0.5).float()
    still = torch.zeros(1, 2, 2, 9, 9)
    tile = tiling.Tile(slice(0, 3), slice(2, 26), slice(3, 27))
    cut = cut_motion(Motion(still, still, masks, masks), tile, 4)
    assert set(cut.occluded_next.unique().tolist()) <= {0.0, 1.0}


def test_the_last_duplicate_is_kept():
    """The list of frames repeats its last one up to whole segments, and the file keeps the last one's result (B25)."""
    toy = pixelwise(*SMALL, "n_frames=3", preset="released")
    lq = clip(4)
    out, filled = toy.restore(lq), toy.restore(lq[[0, 1, 2, 3, 3, 3]])
    assert difference(out[:3], filled[:3]) < 1e-6
    assert difference(out[3], filled[5]) < 1e-6 and difference(out[3], filled[3]) > 1e-3


def test_every_segment_gets_the_same_noise():
    """As released (B27): a still clip gives the same result in each segment."""
    toy = pixelwise(*SMALL, "n_frames=2", preset="released")
    frame = clip(1, 16, 16)
    still = toy.restore(frame.expand(6, -1, -1, -1), upscale=4)
    assert difference(still[:2], still[4:]) < 1e-6 and difference(still[0], still[1]) > 1e-3
    free = pixelwise().restore(frame.expand(6, -1, -1, -1), upscale=4)
    assert difference(free[:2], free[4:]) > 1e-3


# ---- refusals


@mostly_slow("broken", ["unet", "structure", "autoencoder", "sequence_decoder", "text", "flow"], fast=2)
def test_weights_with_nan_stop_the_run(broken):
    net = SpyNet() if broken == "flow" else config.instantiate(settings().networks[broken])
    with torch.no_grad():
        next(p for p in net.parameters() if p.ndim > 1).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite") as error:
        method("sampling.steps=1", **{broken: net}).restore(clip(2), upscale=2)
    assert "tile at frames" in str(error.value) or "flow" in str(error.value)


@pytest.mark.parametrize(
    ("lq", "upscale", "says"),
    [
        (torch.zeros(3, 16, 16), 4, "at least one frame"),
        (torch.zeros(2, 1, 16, 16), 4, "at least one frame"),
        (torch.zeros(0, 3, 16, 16), 4, "at least one frame"),
        (torch.zeros(1, 0, 3, 16, 16), 4, "at least one frame"),
        (torch.zeros(2, 3, 16, 15), 4, "15x16, expected at least 16"),
        (torch.zeros(2, 3, 16, 16), 0, "upscale 0"),
        (torch.zeros(2, 3, 16, 16), -2, "upscale -2"),
        (torch.zeros(2, 3, 16, 16), float("nan"), "upscale nan"),
        (torch.zeros(2, 3, 16, 16), 0.01, "upscale 0.01"),
        (torch.full((2, 3, 16, 16), float("nan")), 4, "NaN"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 4, "divide by 255"),
        (torch.full((2, 3, 16, 16), float("inf")), 4, "infinite"),
    ],
)
def test_wrong_frames_are_refused(lq, upscale, says):
    with pytest.raises(ValueError, match=says) as error:
        method().restore(lq, upscale=upscale)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Windows(weight="gauss"), "'gauss', expected one of gaussian"),
        (lambda: Windows(n_frames=3, frame_overlap=-1), "frame_overlap=-1"),
        (lambda: Windows(n_frames=0), "n_frames=0"),
        (lambda: Windows(sharing_steps=-1), "sharing_steps -1"),
        (lambda: Windows(tile=16, tile_stride=17), "16 every 17"),
        (lambda: Windows(tile=16, tile_overlap=-1), "tile_overlap=-1"),
        (lambda: Windows(scene_cut=1.5), "scene_cut 1.5"),
        (lambda: method(*SMALL, "stride=65", preset="released"), "stride"),
        (lambda: method(*SMALL, "stride=0", preset="released"), "stride"),
        (lambda: Sampling(sampler="dpm"), "sampler 'dpm'"),
        (lambda: Sampling(guidance="on"), "guidance 'on'"),
        (lambda: Sampling(prediction="noise"), "prediction 'noise'"),
        (lambda: Sampling(arithmetic="float16"), "arithmetic 'float16'"),
        (lambda: Sampling(steps=0), "0 steps"),
        (lambda: Sampling(steps=1001), "1001 steps"),
        (lambda: Decoding(color_fix="none"), "color_fix 'none'"),
        (lambda: method("precision=half"), "precision 'half'"),
        (lambda: method("windows.tile=15"), "tile 15"),
        (lambda: method(*SMALL, "patch=68", preset="released"), "68"),
        (lambda: MGLD(networks={}, sampling=Sampling(), windows=Windows(), decoding=Decoding()), "unet"),
    ],
)
def test_invalid_settings_are_refused_at_construction(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# ---- numbers


def test_half_precision_is_close_to_single_precision():
    lq = clip(3, 20, 20)
    single, half = method().restore(lq, upscale=2), method("precision=bf16").restore(lq, upscale=2)
    assert half.dtype == torch.float32
    assert 0 < (half - single).abs().mean() < 0.02


def test_no_parameter_requires_gradients_and_none_are_recorded():
    toy = method()
    for network in toy.networks.values():
        assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert not toy.restore(clip(2).requires_grad_(), upscale=1).requires_grad


@pytest.mark.parametrize(("length", "pixels"), [(512 / 49 * 49, 512), (3.9, 3), (24 * 2.5, 60), (4.9999999, 5)])
def test_lengths_in_pixels_are_rounded_down_with_a_tolerance(length, pixels):
    assert floor_pixels(length) == pixels


@pytest.mark.parametrize("length", [8, 24, 90, 97, 128, 160, 256, 1280])
def test_fitted_tiles_are_no_more_and_no_larger(length):
    fitted, plain = Windows(tile=96, tile_overlap=16), Windows(tile=96, tile_overlap=16, fit=False)
    side = fitted.side(length)
    assert plain.side(length) == 96 >= side > 16 and side % 8 == 0
    count = len(tiling.starts(length, side, 16))
    assert count == len(tiling.starts(length, 96, 16))
    assert count == 1 or count * side - (count - 1) * 16 < length + 8 * count
