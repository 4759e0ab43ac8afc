"""Upscale-A-Video with windows of frames that differ from step to step."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from ldm.diffusion.noise import FrameNoise
from ldm.diffusion.propagation import propagate
from ldm.diffusion.refined import clean_and_noise, refined_step
from ldm.engine.assemble import load_method
from ldm.methods.upscale_a_video.method import UpscaleAVideo
from ldm.methods.upscale_a_video.released import ReleasedUpscaleAVideo
from ldm.methods.upscale_a_video.restoration import ClipRestoration
from ldm.methods.upscale_a_video.settings import ClipDecoding
from ldm.ops.clip_flow import flows_of_clip
from ldm.ops.windows import WindowPlan, over_windows
from tests.marks import mostly_slow
from tests.methods import upscale_toy
from tests.methods.toy import clip
from tests.methods.upscale_toy import SIZE, changed, restored, stopped_everywhere


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return load_method(upscale_toy.write_weights(tmp_path_factory.mktemp("uav") / "weights"))


VISITED = []


class VisitedRestoration(ClipRestoration):
    """Keeps step and frames of every window."""

    def denoise(self, frames, *, i):
        VISITED.append((i, [frame.number for frame in frames]))
        return super().denoise(frames, i=i)


class Visited(UpscaleAVideo):
    def restoration(self, request, levers, tally):
        run = super().restoration(request, levers, tally)
        return VisitedRestoration(
            run.denoiser, run.decoder, flow=run.flow, windows=run.windows, decoding=run.decoding, noise=run.noise,
            tally=tally,
        )  # fmt: skip


# windows of 3 frames over 8: options, and where they start in each step, the last one first
PLACES = [
    ({"frame_overlap": 1, "sharing_steps": 1, "alternate": True}, ([0, 2, 4, 5], [0, 1, 4, 5], [0, 3, 5])),
    ({"frame_overlap": 2, "sharing_steps": 2, "alternate": False}, ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 3, 5])),
    ({"frame_overlap": 0, "sharing_steps": None, "alternate": True}, ([0, 3, 5], [0, 1, 4, 5], [0, 3, 5])),
]


@mostly_slow(("options", "places"), PLACES)
def test_windows_that_differ_from_step_to_step(toy, options, places):
    """A stream, stopped or not, is the whole clip; its windows lie as the options say, and miss no frame."""
    lq, seed = clip(8, *SIZE), 3
    method = changed(
        toy, kind=Visited, windows=replace(toy.windows, n_frames=3, scene_cut=None, **options),
        sampling={"steps": 3, "guidance_scale": 1.0, "propagation_steps": "1", "context": 9},
        decoding=ClipDecoding(replace(toy.decoding.windows, n_frames=8)),
    )  # fmt: skip
    VISITED.clear()
    found = restored(method, lq, seed=seed)
    for i, starts in enumerate(places):
        assert sorted(frames for step, frames in VISITED if step == i) == [[k, k + 1, k + 2] for k in starts]
        assert {frame for start in starts for frame in range(start, start + 3)} == set(range(8))
    assert method.calls(8, SIZE, method.levers()[0])["sampling"] == len(VISITED) == sum(map(len, places))
    assert torch.equal(stopped_everywhere(method, lq, seed=seed), found)
    assert (found - sampled_at(method, lq, places, seed=seed)).abs().max() < 1e-4


@torch.no_grad()
def sampled_at(method, lq, places, *, seed):
    """The clip restored at once with windows of 3 frames that start at `places` of each step, (T, 3, 4h, 4w)."""
    sampling, noise, denoiser = method.sampling, FrameNoise(seed), method.denoiser(None)
    schedule, flows = sampling.schedule, flows_of_clip(method.networks["flow"], lq[None])
    noised = sampling.noised(lq[None], noise("low", range(8), (3, *SIZE))[None])
    x = noise("start", range(8), (4, *SIZE))[None]
    for i in reversed(range(len(schedule))):
        shares = torch.zeros(len(places[i]), 8)
        for row, k in zip(shares, places[i], strict=True):
            row[k : k + 3] = torch.tensor([1.0, 2.0, 1.0])
        plan = WindowPlan([slice(k, k + 3) for k in places[i]], shares / shares.sum(0))
        predict = over_windows(partial(denoiser.velocity, t=int(schedule.t[i])), lambda _, plan=plan: plan)
        x0, eps = clean_and_noise(predict(x, noised), x, schedule, i)
        x = refined_step(propagate(x0, *flows) if i in sampling.propagated else x0, eps, schedule, i)
    return method.decoder.decode(x, lq[None])[0] / 2 + 0.5


def test_the_released_cut_has_the_same_windows_in_every_step(toy):
    for options in ({"alternate": True}, {"sharing_steps": 1}):
        with pytest.raises(ValueError, match="expected false and null"):
            changed(toy, kind=ReleasedUpscaleAVideo, windows=replace(toy.windows, **options))
