"""What a viewer must not see: where tiles meet, where temporal windows meet.

`jump` is the mean absolute difference across a border divided by that inside. Real pictures have edges of their own, so
that a few figures are averaged; the released way is measured beside ours.
"""

from dataclasses import replace

import pytest
import torch

from ldm.engine.assemble import EMBEDDED, load_method
from ldm.methods.mgld.levers import UNLIMITED
from ldm.methods.mgld.settings import Decoding
from ldm.nets.whole_frame import HOLD
from ldm.ops import tiling
from ldm.ops.resize import resize
from tests.marks import mostly_slow
from tests.methods.toy import clip, method

needs_weights = pytest.mark.skipif(
    not (EMBEDDED / "mgldvsr_unet.safetensors").is_file(), reason=f"no embedded weights in {EMBEDDED.name}"
)

SAMPLING = {"steps": 4, "sampler": "ddpm", "spacing": "even", "initial": "noised"}


@mostly_slow("frames", [1, 4])
@pytest.mark.parametrize("norms", ["frame", "shared", "tile"])
def test_cutting_the_autoencoders_is_exact_or_says_how_far_off_it_is(norms, frames):
    """Compare whole frames with tiles of 24 latent pixels, halo included, holding only the coarsest maps."""
    toy, lq = method(), clip(frames, 40, 48)
    work, x = resize(lq, (160, 192)).clamp(0, 1)[None], torch.randn(1, frames, 4, 40, 48)
    results = {}
    for name, decoding in {
        "whole": replace(toy.decoding, norms="frame", hold=UNLIMITED),
        "cut": replace(toy.decoding, norms=norms, hold=0, windows=replace(toy.decoding.windows, tile=32)),
    }.items():
        cut = replace(toy, decoding=decoding)
        codec = cut.codec(cut.levers()[0])
        with torch.no_grad():
            results[name] = codec.encode(work, torch.zeros_like(x)), codec.decode(x, work)
    off = [(a - b).abs().max().item() for a, b in zip(*results.values(), strict=True)]
    print(f"norms={norms}: latents off by at most {off[0]:.2e}, pixels by {off[1]:.2e}")
    assert max(off) < (1e-4 if norms == "frame" else 3)
    assert norms == "frame" or max(off) > 1e-4  # what is called approximate is


def test_maps_above_the_limit_use_shared_statistics():
    decoding = Decoding(norms="auto")
    assert decoding.cut(HOLD).norms == "frame" and decoding.cut(HOLD + 1).norms == "shared"
    assert Decoding().cut(0) is None and Decoding(norms="shared", attention=48).cut(0).attention == 48


def panning(frames: int, height: int, width: int, step: int) -> torch.Tensor:
    """A pan over a detailed image: (T, 3, h, w)."""
    generator = torch.Generator().manual_seed(0)
    scene = sum(
        resize(torch.rand(1, 3, height // k, (width + step * frames) // k, generator=generator), (height, 2 * width))
        / k
        for k in (2, 4, 8)
    )
    scene = (scene - scene.min()) / (scene.max() - scene.min())
    return torch.stack([scene[0, ..., k * step : k * step + width] for k in range(frames)])


def change_over_time(frames: torch.Tensor, step: int) -> torch.Tensor:
    """(T-1,) mean absolute difference between each frame and the warped previous one."""
    there, here = frames[:-1, ..., step:], frames[1:, ..., :-step]
    inside = (..., slice(8, -8), slice(8, -8))
    return (there - here)[inside].abs().mean(dim=(1, 2, 3))


def jumps_at_borders(frames: int = 17, **cuts) -> list[float]:
    """Return for each of the last two of 4 steps the change where its windows begin relative to the other changes.

    The final step is at time step 0 and changes nearly nothing: the one before it, at 333, decides what a frame shows.
    """
    settings = [f"+method.params.sampling.params.{name}={word}" for name, word in SAMPLING.items()]
    model, lq = load_method(overrides=settings), panning(frames, 24, 32, 2)
    model = replace(model, windows=replace(model.windows, n_frames=5, **cuts))
    change, ratios = change_over_time(model.restore(lq), 4 * 2), []
    inside = torch.arange(len(change)).clamp(2, len(change) - 3) == torch.arange(len(change))  # two neighbours each
    for step in (1, 0):
        border = torch.zeros(len(change), dtype=torch.bool)
        border[[first - 1 for first in model.windows.frame_starts(len(lq), step) if first]] = True
        ratios.append((change[border & inside].mean() / change[~border & inside].mean()).item())
    print(f"jump at the borders of the last two steps: {ratios[0]:.3f}, {ratios[1]:.3f}")
    return ratios


@pytest.mark.slow
@needs_weights
@pytest.mark.parametrize(
    ("alternate", "sharing_steps"), [(False, None), (True, 2)], ids=["in every step", "in the last two steps"]
)
def test_nothing_jumps_where_windows_share_frames(alternate, sharing_steps):
    jumps = jumps_at_borders(frame_overlap=2, alternate=alternate, sharing_steps=sharing_steps)
    assert all(0.95 < jump < 1.05 for jump in jumps)


@pytest.mark.slow
@needs_weights
@pytest.mark.parametrize(("alternate", "frames"), [(False, 15), (True, 17)])  # so that no window is moved
def test_windows_without_overlap_jump_where_the_deciding_step_cuts(alternate, frames):
    """With few steps, alternation only moves the borders: those of the last step but one are seen."""
    deciding, _ = jumps_at_borders(frames, frame_overlap=0, alternate=alternate)
    assert deciding > 1.1


@pytest.mark.slow
@needs_weights
@pytest.mark.parametrize("overlap", [16, 8])
def test_nothing_jumps_where_tiles_meet(overlap):
    """Compare gradients across the borders of small tiles with those across other borders of latent pixels.

    A decoder may show the grid of latent pixels a little, also where no tiles meet.
    """
    lq = panning(2, 48, 64, 2)
    whole = load_method(overrides=["method.params.sampling.params.steps=1"])
    decoding = replace(whole.decoding, norms="shared", hold=0, windows=replace(whole.decoding.windows, tile=48))
    windows = replace(whole.windows, tile=32, tile_overlap=overlap, fit=False)
    model = replace(whole, windows=windows, decoding=decoding)
    sr, f = model.restore(lq), model.networks["autoencoder"].downsampling
    reference = whole.restore(lq)
    ratios = []
    for dim in (2, 3):
        gradient, usual = (x.diff(dim=dim).abs().mean(dim=[d for d in range(4) if d != dim]) for x in (sr, reference))
        firsts = tiling.starts((len(gradient) + 1) // f, 32, overlap)  # tiles start and end there
        lines = sorted({k * f - 1 for first in firsts for k in (first, first + 32) if 0 < k * f < len(gradient)})
        grid = slice(f - 1, None, f)
        ratios += [(gradient[line] / gradient[grid].mean()) / (usual[line] / usual[grid].mean()) for line in lines]
    ratio = torch.stack(ratios).mean().item()
    print(f"jump at tile borders: {ratio:.3f}")
    assert 0.95 < ratio < 1.05
