"""StableVSR as a method: parity with a recorded run, scenes stopped at any unit, sizes, levers, draws."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from ldm.diffusion.bidirectional import GuidedDenoiser, conditioned_prediction, sample_scene, sampling_order, unit_at
from ldm.diffusion.noise import SequentialNoise
from ldm.diffusion.scheduler import Scheduler
from ldm.engine.assemble import load_method
from ldm.methods.contract import Request, restore_clip
from ldm.methods.stablevsr.settings import BidirectionalSampling, SequentialDraws
from ldm.methods.stablevsr.sizes import Sizes
from ldm.streaming.pipeline import Frame
from tests.golden_checks.case import Case
from tests.golden_checks.stablevsr.folder import STABLEVSR, case_names
from tests.golden_checks.stablevsr.method import check_method
from tests.marks import mostly_slow
from tests.methods.pipeline_folder import make_pipeline
from tests.methods.toy import clip, scene_ends_of

STEPS = 3
RUNS = [name for name in case_names() if name.startswith("pipeline_run")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp("stablevsr") / "pipeline")


@pytest.fixture(scope="module")
def method(folder):
    return load_method(folder, overrides=["flow=dis", f"method.params.sampling.params.steps={STEPS}"])


def restored(method, lq, *, upscale=4.0, seed=42):
    return restore_clip(method, lq, Request(tuple(lq.shape[-2:]), len(lq), upscale, seed))


@pytest.mark.golden
@pytest.mark.parametrize("name", RUNS)
def test_the_stages_equal_a_recorded_run(name):
    check_method(Case.read(STABLEVSR, name))


def test_a_scene_may_be_stopped_at_any_unit(method):
    lq, count = clip(3), 3
    request, levers = Request((16, 16), count), method.levers()[0]

    def pushed():
        run = method.stream(request, levers)
        for number, frame in enumerate(lq):
            run.push(Frame(number, {"lq": frame[None]}))
        return run

    expected = torch.cat([frame["sr"] for frame in pushed().pull(finish=True)])
    run, out = pushed(), []
    for _ in range(count * STEPS + 2):
        out += list(run.pull(finish=True, units=1))
        state, run = run.state(), method.stream(request, levers)
        run.resume(state)
    assert not run.frames_held and torch.equal(torch.cat([frame["sr"] for frame in out]), expected)


def test_results_depend_on_the_seed_and_every_frame_on_its_neighbours(method):
    lq = clip(3)
    first, again, other = restored(method, lq), restored(method, lq), restored(method, lq, seed=7)
    assert torch.equal(first, again) and not torch.allclose(first, other)
    changed = lq.clone()
    changed[2] = changed[2].flip(-1)
    assert not torch.allclose(restored(method, changed)[0], first[0]), "the last frame guides the first"


@mostly_slow(("size", "upscale"), [((16, 16), 4.0), ((17, 19), 4.0), ((18, 21), 2.5)])
def test_any_size(method, size, upscale):
    sr = restored(method, clip(2, *size), upscale=upscale)
    assert sr.shape == (2, 3, *(int(side * upscale) for side in size))
    assert sr.min() >= 0 and sr.max() <= 1 and sr.std() > 0.01


def test_the_last_decodes_are_the_guidance_pictures(method):
    decoder, calls = method.networks["autoencoder"], Counter()
    hook = decoder.decoder.register_forward_hook(lambda *_: calls.update(["decode"]))
    restored(method, clip(4))
    hook.remove()
    assert calls["decode"] == STEPS * 3 + 1, "3 guidance pictures a step, and one frame that guided none"


def streamed(method, lq, levers=None):
    """All restored frames of a clip (T, 3, h, w), and the most frames that were held."""
    stream, out, held = method.stream(Request(tuple(lq.shape[-2:]), len(lq)), levers), [], 0
    for number, frame in enumerate(lq):
        stream.push(Frame(number, {"lq": frame[None]}))
        out += [frame["sr"] for frame in stream.pull()]
        held = max(held, stream.frames_held)
    return torch.cat(out + [frame["sr"] for frame in stream.pull(finish=True)]), held


def changed(method, scenes="whole", block=32, ahead=8, **sampling):
    """The method with other settings, over the same networks."""
    settings = {"scenes": scenes, "block": block, "ahead": ahead}
    return replace(method, sampling=replace(method.sampling, **sampling), **settings)


# ---- blocks


@mostly_slow("steps", [2, 3])
@mostly_slow(("block", "ahead"), [(3, 2), (5, 0), (1, 4), (9, 9)])
def test_one_block_over_a_scene_equals_the_whole_scene(method, block, ahead, steps):
    method, lq = changed(method, steps=steps), clip(5)
    levers = replace(method.levers()[0], block=block, ahead=ahead)
    assert torch.equal(streamed(method, lq, levers)[0], streamed(method, lq)[0])


@mostly_slow("settings", [{"steps": 1}, {"steps": 3, "order": "forward"}])
@mostly_slow("block", [3, 1])
def test_without_backward_passes_blocks_are_exact(method, settings, block):
    method, lq = changed(method, **settings), clip(6)
    blocks = changed(method, "blocks", block, **settings)
    assert blocks.levers()[0].ahead == 0
    restored, held = streamed(blocks, lq)
    assert torch.equal(restored, streamed(method, lq)[0]) and held <= block + 2


@pytest.mark.slow  # four runs
def test_blocks_hold_a_bounded_number_of_frames_and_come_near(method):
    whole, lq = changed(method, steps=2), clip(6)
    expected = streamed(whole, lq)[0]
    errors = []
    for ahead in (0, 1, 3):
        restored, held = streamed(changed(method, "blocks", 2, ahead, steps=2), lq)
        errors.append((restored - expected).square().mean().item())
        assert held <= 2 + ahead + 2, "the block, what is ahead of it, and one frame before it"
    assert 0 < errors[2] < errors[1] < errors[0]


def test_forward_passes_continue_over_the_border(method):
    """The first pass over the second block sees the first one: with other frames there, it gives others."""
    method, lq = changed(method, "blocks", 2, steps=1), clip(4)
    other = torch.cat([lq[:1], lq[1:2].flip(-1), lq[2:]])
    assert not torch.allclose(streamed(method, lq)[0][2], streamed(method, other)[0][2])


def test_blocks_may_be_stopped_at_any_unit(method):
    method, lq = changed(method, "blocks", 2, 1), clip(5)
    expected, request = streamed(method, lq)[0], Request((16, 16), 5)
    run, out, number = method.stream(request), [], 0
    while number < len(lq) or run.frames_held:
        if run.idle and number < len(lq):
            run.push(Frame(number, {"lq": lq[number][None]}))
            number += 1
        out += list(run.pull(finish=number == len(lq), units=1))
        state, run = run.state(), method.stream(request)
        run.resume(state)
    assert torch.equal(torch.cat([frame["sr"] for frame in out]), expected)


def test_blocks_need_addressed_noise(method):
    with pytest.raises(ValueError, match="draws"):
        changed(method, "blocks", draws="sequential")
    sequential = changed(method, draws="sequential")
    assert not any(levers.block for levers in sequential.levers())


def test_half_flows_change_the_result_by_less_than_rounding(method):
    """A flow in float16 is 119 dB from itself in float32 at the motion of films; pictures differ below a level."""
    lq = clip(3)
    halves = streamed(method, lq, replace(method.levers()[0], half_flows=True))[0]
    change = (halves - streamed(method, lq)[0]).abs().max()
    assert 0 < change < 0.5 / 255


# ---- the decoder of guidance


def decodes(method, lq):
    calls = Counter()
    hook = method.networks["autoencoder"].decoder.register_forward_hook(lambda *_: calls.update(["decode"]))
    result = streamed(method, lq)[0]
    hook.remove()
    return result, calls["decode"]


@pytest.mark.slow  # three runs of six steps
def test_guidance_may_use_a_picture_again(method):
    lq = clip(4)
    full, most = decodes(changed(method, steps=6), lq)
    assert most == 6 * 3 + 1
    every, fewer = decodes(changed(method, steps=6, guidance_decoder="every 2"), lq)
    assert fewer == 3 + 1 + 3 + 3 + 3 + 1, "steps 0, 2 and 4, the last one, and what step 1 has not seen"
    once, same = decodes(changed(method, steps=6, guidance_decoder="every 1"), lq)
    assert torch.equal(once, full) and same == most and not torch.equal(every, full)


@mostly_slow(("tolerance", "least", "most"), [(0, 19, 19), (1e6, 8, 8), (0.5, 8, 19)])
def test_a_cached_picture_is_used_while_the_estimate_hardly_moves(method, tolerance, least, most):
    settings = {"guidance_decoder": "cached", "guidance_tolerance": tolerance}
    result, count = decodes(changed(method, steps=6, **settings), clip(4))
    assert least <= count <= most and result.isfinite().all()


@pytest.mark.parametrize("word", ["cached", "every 2"])
def test_a_kept_picture_is_part_of_the_state_and_of_the_plan(method, word):
    plain, method, lq = method, changed(method, steps=4, guidance_decoder=word), clip(3)
    expected, run, out = streamed(method, lq)[0], method.stream(Request((16, 16), 3)), []
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None]}))
    while run.frames_held:
        out += list(run.pull(finish=True, units=1))
        state, run = run.state(), method.stream(Request((16, 16), 3))
        run.resume(state)
    assert torch.equal(torch.cat([frame["sr"] for frame in out]), expected)
    costs, request = dict.fromkeys(("sampling", "decoding", "flow", "once"), [0.0, 0.0]), Request((64, 64), 100)
    more = method.peak(request, method.levers()[0], costs) - plain.peak(request, plain.levers()[0], costs)
    assert more == 100 * 64 * 64 * (16 * 3 * 4 + 4 * 4)


def test_scenes_do_not_guide_each_other(method):
    """A cut that `scene_ends` sees: black frames, then noise."""
    method = replace(changed(method, steps=2), scene_cut=0.3)
    two = torch.cat([clip(2, seed=1) * 0.1, clip(2, seed=2)])
    other = torch.cat([two[:2], two[2:].flip(-1)])
    assert torch.equal(streamed(method, two)[0][:2], streamed(method, other)[0][:2])
    request = Request(tuple(two.shape[-2:]))
    assert scene_ends_of(method.find_scenes(request), two) == scene_ends_of(method.stream(request), two) == [1, 3]
    assert changed(method, draws="sequential").find_scenes(request) is None


def test_levers_take_less_and_less(method):
    costs = dict.fromkeys(("sampling", "decoding", "flow", "once"), [0.0, 4000.0])
    request = Request((180, 320), 300)
    peaks = [method.peak(request, levers, costs) for levers in method.levers()]
    assert peaks[-1] < peaks[0] / 4 and peaks[5:] == sorted(peaks[5:], reverse=True)
    assert method.peak(replace(request, frames=None), method.levers()[0], costs) is None
    assert method.peak(replace(request, frames=None), method.levers()[-1], costs) is not None
    blocks = changed(method, "blocks")
    long = [blocks.peak(replace(request, frames=count), blocks.levers()[0], costs) for count in (50, 600, None)]
    assert long[0] == long[1] == long[2] < peaks[0]
    frames = [method.peak(replace(request, frames=count), method.levers()[0], costs) for count in (10, 11)]
    assert frames[1] - frames[0] == 180 * 320 * (4 * (3 + 2 * 4) + 16 * 16), "both flows in float32, and latents"


def test_a_decoder_in_tiles_gives_the_same(method):
    lq = clip(2, 24, 24)
    tiles = replace(method.levers()[1], tile=20, hold=0)
    assert not tiles.whole

    def run(levers):
        stream = method.stream(Request((24, 24), 2), levers)
        for number, frame in enumerate(lq):
            stream.push(Frame(number, {"lq": frame[None]}))
        return torch.cat([frame["sr"] for frame in stream.pull(finish=True)])

    torch.testing.assert_close(run(tiles), run(method.levers()[0]), atol=2e-4, rtol=0)


# ---- as released


def test_the_released_preset_draws_from_one_stream(folder):
    words = ["flow=dis", "flows.dis.params={preset: medium}", f"method.params.sampling.params.steps={STEPS}"]
    method = load_method(folder, preset="released", overrides=words)
    lq = (clip(3) * 255).round() / 255
    source, sizes = SequentialNoise(42), method.sizes((16, 16), 4.0)
    predict = conditioned_prediction(method.networks["unet"], method.networks["control"], method.networks["text"]())
    lr = [sizes.fitted(frame[None]) for frame in lq]
    large = [sizes.enlarged(frame) for frame in lr]
    model = GuidedDenoiser(
        predict,
        lambda x0: method.networks["autoencoder"].decode(x0 / method.scale_factor),
        lambda target, other: method.networks["flow"](large[target], large[other]),
    )
    done = sample_scene(
        lr,
        model=model,
        scheduler=method.sampling.scheduler,
        steps=STEPS,
        noise=lambda step, frame: source(step, [frame], (4, 16, 16)),
    )
    expected = (torch.cat(done.pictures) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(restored(method, lq), expected, atol=1e-6, rtol=0)


def test_a_stream_of_noise_is_found_again_after_a_stop():
    draws, again = SequentialDraws(3), SequentialDraws(3)
    turns = [draws("start", 0, turn=turn, shape=(2, 3)) for turn in range(5)]
    assert torch.equal(again("start", 0, turn=4, shape=(2, 3)), turns[4])
    assert torch.equal(again("start", 0, turn=1, shape=(2, 3)), turns[1])


def test_released_sizes_are_floored_on_eight_bits():
    sizes = Sizes((17, 22), upscale=4.0, factor=4, fit="floored")
    assert sizes.latent == (16, 20) and sizes.target == (68, 88)
    lr = sizes.fitted((clip(1, 17, 22) * 255).to(torch.uint8))
    assert lr.shape == (1, 3, 16, 20)
    levels = (lr / 2 + 0.5) * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert sizes.finished(torch.zeros(1, 3, 64, 80)).shape == (1, 3, 68, 88)


@pytest.mark.parametrize(("frames", "steps"), [(1, 2), (2, 3), (5, 4)])
def test_a_unit_is_found_by_its_number(frames, steps):
    units = list(sampling_order(frames, steps))
    assert [unit_at(k, frames) for k in range(frames * steps)] == units
    for unit in units:
        assert unit.previous is None if unit.position == 0 else abs(unit.previous - unit.frame) == 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": "other"}, "grid"),
        ({"draws": "x"}, "draws"),
        ({"steps": 0}, "steps"),
        ({"control_end": 2}, "control_end"),
        ({"order": "backward"}, "order"),
        ({"guidance_decoder": "every 0"}, "guidance_decoder"),
        ({"guidance_decoder": "half"}, "every K"),
        ({"guidance_tolerance": -1.0}, "guidance_tolerance"),
    ],
)
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(ValueError, match=says):
        BidirectionalSampling(Scheduler.from_config({}), **settings)
