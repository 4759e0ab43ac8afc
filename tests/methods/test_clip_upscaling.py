"""Upscale-A-Video as a method: its stages against the recording and the whole clip, words, levers, and failures."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ldm.diffusion.noise import FrameNoise
from ldm.engine.assemble import find_weights, load_method
from ldm.methods.contract import Request
from ldm.methods.upscale_a_video.released import ReleasedUpscaleAVideo
from ldm.methods.upscale_a_video.settings import MERGINGS, ClipDecoding, ClipSampling, Words
from ldm.methods.windows import Windows
from ldm.ops.clip_flow import flows_of_clip
from ldm.ops.crop_tiles import released_tiles
from tests.golden_checks.case import names
from tests.golden_checks.uav.case import FOLDER, UavCase
from tests.golden_checks.uav.pipeline import networks_of
from tests.marks import mostly_slow
from tests.methods import upscale_toy
from tests.methods.toy import clip, scene_ends_of
from tests.methods.upscale_toy import SIZE, changed, restored, stopped_everywhere


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return upscale_toy.write_weights(tmp_path_factory.mktemp("uav") / "weights")


@pytest.fixture(scope="module")
def toy(folder):
    return load_method(folder)


# ---- the recording


class Recorded(nn.Module):
    """In place of the text tower and of RAFT: returns what was recorded, in turn or by token."""

    def __init__(self, values):
        super().__init__()
        self.values, self.count = values, 0

    def forward(self, *inputs):
        if len(inputs) == 1:
            return self.values[int(inputs[0][0, 0])]
        self.count += 1
        return self.values[self.count - 1].flatten(0, 1)


def windows_and_propagation():
    """The first run with both in the folder of $GOLDEN_UAV, whose limits are those of the frames."""
    for name in names(FOLDER):
        if name.startswith("pipeline_run_"):
            case = UavCase.read(FOLDER, name)
            seeded = "generator_seed" in case.meta and "embedding_negative" in case.tensors
            if seeded and case.meta.get("propagation_steps") and case.clip("video").shape[1] > 8:
                return case
    pytest.skip(f"no pipeline_run_ in {FOLDER} has a seed, guidance, propagation steps and 9 frames")


@pytest.mark.golden
def test_the_released_stages_equal_the_recording():
    case = windows_and_propagation()
    meta, video = case.meta, case.clip("video")
    nets = networks_of(case)
    flow = Recorded([case.clip("flows_forward"), case.clip("flows_backward")])
    text = Recorded([case["embedding_positive"], case["embedding_negative"]])
    method = ReleasedUpscaleAVideo(
        networks={"unet": nets[0], "autoencoder": nets[1], "text": text, "flow": flow},
        sampling=ClipSampling(
            steps=meta["inference_steps"],
            guidance_scale=meta["guidance_scale"],
            noise_level=meta["noise_level"],
            propagation_steps=",".join(map(str, meta["propagation_steps"])),
            spacing="released",
            merging="released",
        ),
        windows=Windows(n_frames=8, scene_cut=None),
        decoding=ClipDecoding(Windows(n_frames=3, frame_overlap=0), condition=meta.get("w_lr", 1.0)),
        words=Words(lambda texts: torch.tensor([[texts[0] == "no"]]).long(), negative_prompt="no"),
        min_size=1,
    )
    sr = restored(method, video[0] / 2 + 0.5, seed=meta["generator_seed"], upscale=nets[1].downsampling)
    assert flow.count == 2
    expected = case.clip("output")[0]
    assert (sr * 2 - 1 - expected).abs().max() <= case.limit("output")
    assert (expected[1:] - expected[:-1]).abs().max() > 0.1


# ---- streams


def whole_clip(method, lq, *, seed):
    """The clip restored at once with the noise of a stream, (T, 3, 4h, 4w) in [0, 1]; with and without propagation."""
    whole = changed(method, kind=ReleasedUpscaleAVideo)
    count, noise = len(lq), FrameNoise(seed)
    draws = noise("low", range(count), (3, *SIZE))[None], noise("start", range(count), (4, *SIZE))[None]
    flows = flows_of_clip(method.networks["flow"], lq[None])
    with torch.no_grad():
        done = [
            whole.restore_crop(lq[None], draws, each, denoiser=whole.denoiser(None), tally=lambda stage: None)
            for each in (flows, None)
        ]
    return [sr[0] / 2 + 0.5 for sr in done]


def test_a_stream_is_the_whole_clip_propagation_included(toy):
    sampling, windows = {"propagation_steps": "0,1", "context": 9}, replace(toy.windows, n_frames=5)
    method = changed(
        toy, sampling=sampling, windows=windows, decoding=ClipDecoding(replace(toy.decoding.windows, n_frames=5))
    )
    lq = clip(5, *SIZE)
    expected, alone = whole_clip(method, lq, seed=3)
    assert (restored(method, lq, seed=3) - expected).abs().max() < 1e-4
    assert (expected - alone).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("frames", [7, 8])  # with 7 the last window is visited twice
def test_released_windows_and_chunks_of_a_stream_are_those_of_the_whole_clip(toy, frames):
    settings = {
        "windows": replace(toy.windows, n_frames=4, frame_overlap=1, scene_cut=None),
        "decoding": ClipDecoding(replace(toy.decoding.windows, n_frames=3, frame_overlap=0)),
    }
    sampling, lq = {"propagation_steps": "1", "context": 9}, clip(frames, *SIZE)
    method, other = (changed(toy, sampling=sampling | {"merging": each}, **settings) for each in MERGINGS)
    faded, averaged = (restored(each, lq, seed=3) for each in (method, other))
    assert (averaged - whole_clip(other, lq, seed=3)[0]).abs().max() < 1e-4
    assert (averaged - faded).abs().max() > 1e-3


@mostly_slow(
    ("preset", "size", "frames"),
    [(None, (8, 8), 4), ("released", (4, 130), 2)],  # two crops of 65, whose margin is 64
)
def test_a_stopped_stream_resumes_to_the_same_frames(folder, preset, size, frames):
    words = ["sampling.params.propagation_steps=0", "sampling.params.steps=1", "min_size=4"]
    words += ["sampling.params.guidance_scale=1", "crop=65", "always_crop=true"] if preset else []
    words = [f"method.params.{word}" for word in words]
    method, lq = load_method(folder, preset=preset, overrides=words), clip(frames, *size)
    expected = restored(method, lq, seed=7)
    assert torch.equal(stopped_everywhere(method, lq, seed=7), expected)
    assert expected[..., 300:].std() > 0.01 if preset else expected.std() > 0.01


class Watched(ReleasedUpscaleAVideo):
    """Keeps what each crop is restored from, and restores nothing."""

    def restore_crop(self, low, noise, flows, **_):
        CROPS.append((low, flows))
        return low.repeat_interleave(4, -1).repeat_interleave(4, -2)


CROPS = []


def test_flows_are_cut_where_the_crop_lies(toy):
    size, frames = (70, 200), 3
    lq = torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(0))
    flows = [torch.rand(1, frames - 1, 2, 72, 200, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    sampling = {"propagation_steps": "0"}
    method = changed(toy, kind=Watched, sampling=sampling, always_crop=True, crop=65, min_size=1,
                     networks=dict(toy.networks) | {"flow": Recorded(flows)})  # fmt: skip
    CROPS.clear()
    restored(method, lq, seed=1)
    tiles, whole = released_tiles(size, 65), flows_of_clip(Recorded(flows), lq[None], released_scale=True)
    assert len(CROPS) == len(tiles) > 2 and tiles[-1].cut[1].start > 0
    for tile, (low, found) in zip(tiles, CROPS, strict=True):
        rows, columns = tile.cut
        assert torch.equal(low[0], lq[..., rows, columns])
        assert all(torch.equal(a, b[..., rows, columns]) for a, b in zip(found, whole, strict=True))


def test_large_frames_shrink_by_areas_as_released(toy):
    """1282 pixels become 320, as in the released script; otherwise 321, on which no row of the frame is cut off."""
    lq = torch.rand(1, 3, 1282, 1283, generator=torch.Generator().manual_seed(0))
    released = changed(toy, kind=ReleasedUpscaleAVideo).geometry((1282, 1283), 1.0)
    expected = nn.functional.interpolate(lq, scale_factor=1 / 4, mode="area")
    assert released.low == (320, 320) and torch.equal(released.reduce(lq), expected)
    own = toy.geometry((1282, 1283), 1.0)
    assert own.low == (321, 321) and own.target == released.target == (1282, 1283)
    assert released.finish(torch.zeros(1, 3, *released.large)).shape[-2:] == (1282, 1283)
    assert changed(toy, kind=ReleasedUpscaleAVideo, min_size=1).geometry((2, 3), 1.0).low == (1, 1)


def test_any_size_and_scale(toy):
    for upscale, size in ((2.0, (17, 23)), (1.5, (16, 16))):
        sr = restored(changed(toy, sampling={"steps": 1}), clip(1, *size), upscale=upscale)
        assert sr.shape[-2:] == tuple(int(side * upscale) for side in size) and sr.std() > 0.01


# ---- words


def test_the_halves_of_the_guidance_share_a_call_and_a_scale_of_1_costs_nothing(toy):
    rows = []
    hook = toy.networks["unet"].register_forward_pre_hook(lambda net, inputs: rows.append(len(inputs[0])))
    for scale in (3.0, 1.0):
        restored(changed(toy, sampling={"guidance_scale": scale, "steps": 1}), clip(1, *SIZE))
    hook.remove()
    assert rows == [2, 1]


def test_a_caption_has_a_line_for_each_scene_and_decides_the_result(toy):
    words = Words(prompt="a dog", ending="sharp")
    assert words.prompts(None) == ["a dog sharp"]
    assert words.prompts("a cat\n\n a boat ") == ["a cat sharp", "sharp", "a boat sharp"]
    assert replace(words, separator=None).prompts("a cat, ") == ["a cat,sharp"]
    assert replace(words, ending=None, prompt=None).prompts(None) == [""]
    method = changed(toy, sampling={"steps": 1})
    scenes = torch.cat([torch.zeros(1, 3, *SIZE), torch.ones(1, 3, *SIZE)])
    results = [restored(method, scenes, prompt=prompt) for prompt in ("a cat", "a cat\na boat", "a boat")]
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[1][1], results[2][1])
    assert not torch.equal(results[0][1], results[1][1])
    second = [
        restored(method, scenes[1:], prompt=prompt, scene=k) for prompt, k in (("a cat\na boat", 1), ("a boat", 0))
    ]
    assert torch.equal(*second)
    ends = [scene_ends_of(run(Request(SIZE)), scenes) for run in (method.find_scenes, method.stream)]
    assert ends == [[0, 1], [0, 1]]
    assert changed(method, kind=ReleasedUpscaleAVideo).find_scenes(Request(SIZE)) is None


# ---- memory, failures, settings


def test_smaller_levers_take_less(toy):
    costs = {"sampling": [1000.0, 50000.0], "decoding": [1000.0, 9000.0], "flow": [0.0, 10.0], "once": [0.0, 0.0]}
    rungs = changed(toy, windows=replace(toy.windows, tile=96)).levers()
    request = Request((200, 300), 600)
    peaks = [toy.peak(request, rung, costs) for rung in rungs]
    assert len(rungs) > 2 and peaks == sorted(peaks, reverse=True) and peaks[-1] < peaks[0]
    assert toy.peak(replace(request, frames=60), rungs[0], costs) == peaks[0]
    assert str(rungs[0]).startswith("sampled in tiles of 96")


def test_a_failing_tile_stops_the_run_and_is_named(toy):
    def spoil(net, inputs, out):
        return torch.full_like(out, float("nan"))

    hook = toy.networks["unet"].register_forward_hook(spoil)
    method = changed(toy, windows=replace(toy.windows, tile=8, tile_overlap=4, fit=False))
    try:
        with pytest.raises(
            FloatingPointError, match=r"frames 0 to 0: the tile at frames 0..0, rows 0..7, columns 0..7"
        ):
            restored(method, clip(1, *SIZE))
    finally:
        hook.remove()


def test_a_failing_crop_of_the_released_cut_is_named(toy):
    hook = toy.networks["unet"].register_forward_hook(lambda net, inputs, out: out / 0)
    method = changed(toy, kind=ReleasedUpscaleAVideo, sampling={"steps": 1}, always_crop=True, crop=65, min_size=1)
    try:
        with pytest.raises(FloatingPointError, match=r"the crop at rows 0\.\.3, columns 0\.\.64: the result is not"):
            restored(method, clip(1, 4, 130))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "0 sampling steps"),
        ({"propagation_steps": "30"}, "numbers from 0 to 29"),
        ({"propagation_steps": "1;2"}, "such as 24,26,28"),
        ({"noise_level": 1000}, "expected 0 to 999"),
        ({"spacing": "odd"}, "spacing 'odd'"),
        ({"merging": "odd"}, "merging of windows 'odd'"),
    ],
)
def test_senseless_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ClipSampling(**settings)


def test_few_steps_start_from_the_noisiest():
    assert ClipSampling(steps=4).schedule.t[-1] == 999 and ClipSampling(steps=30).schedule.t[-1] == 958
    assert ClipSampling(steps=4, spacing="released").schedule.t[-1] == 751


def test_a_released_folder_is_recognised_by_its_files(tmp_path):
    bare = upscale_toy.write_weights(tmp_path / "bare", card=False)
    (bare / "propagator").mkdir()
    found = find_weights(bare)
    assert found.card == upscale_toy.CARD and {"unet_video", "vae_3d", "text_encoder"} <= found.files.keys()
