"""The contract of methods: immutability, independent streams, and a short call path to the network."""

import dataclasses
import inspect
from collections import Counter

import pytest
import torch

from ldm.methods.contract import Request
from ldm.ops import resize
from ldm.streaming.pipeline import Each, Frame, Pipeline, Scenes
from ldm.streaming.scene import WholeScene
from tests.methods.toy import clip, method

MOST_CALLS, MOST_PARAMETERS = 3, 20


def feed(run, lq):
    """Push all frames in order; yield after each."""
    for number, frame in enumerate(lq):
        run.push(Frame(number, {"lq": frame[None]}))
        yield list(run.pull())
    yield list(run.pull(finish=True))


def sr_of(frames):
    return torch.cat([frame["sr"] for frame in frames])


def test_a_method_cannot_be_changed():
    toy = method()
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.windows = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy.levers()[0].tile = 8


def test_two_streams_with_different_levers_do_not_disturb_each_other():
    toy, lq = method("sampling.steps=1"), clip(4, 16, 20)
    levers = toy.levers()[0], toy.levers()[-1]
    assert levers[0] != levers[1]
    calls = Counter()
    for name in ("unet", "structure", "text"):
        toy.networks[name].register_forward_hook(lambda *_, name=name: calls.update([name]))

    def alone(k):
        run = toy.stream(Request((16, 20), 4, seed=k), levers[k])
        return sr_of(sum(feed(run, lq), []))

    expected, counted = [alone(0), alone(1)], Counter(calls)
    calls.clear()
    runs = [feed(toy.stream(Request((16, 20), 4, seed=k), levers[k]), lq) for k in range(2)]
    parts = list(zip(*runs, strict=True))
    for k in range(2):
        assert torch.equal(sr_of(sum((part[k] for part in parts), [])), expected[k])
    assert calls == counted


def test_the_path_from_a_stage_to_the_network_is_short():
    """Count the calls between the stage and the U-Net, and their parameters."""
    toy, paths = method("windows.n_frames=2"), []

    def trace(*_):
        frame, path = inspect.currentframe().f_back, []
        while frame is not None:
            name = frame.f_code.co_filename
            if "/ldm/streaming/" in name:
                break
            if "/ldm/" in name:
                path.append(frame.f_code)
            frame = frame.f_back
        paths.append(path)

    hook = toy.networks["unet"].register_forward_pre_hook(trace)
    toy.restore(clip(3))
    hook.remove()
    for path in paths:
        passed = sum(code.co_argcount + code.co_kwonlyargcount for code in path)
        assert len(path) <= MOST_CALLS and passed <= MOST_PARAMETERS, [code.co_qualname for code in path]


def test_a_frame_is_enlarged_and_padded_once(monkeypatch):
    from ldm.methods import geometry

    sizes = []

    def watched(x, size, **options):
        sizes.append(tuple(size))
        return resize.resize(x, size, **options)

    monkeypatch.setattr(geometry, "resize", watched)
    method().restore(clip(4, 20, 24), upscale=2)
    assert sizes.count((40, 48)) == 2 * 4, "once enlarged, once brought to the size that was asked for"


# ---- work over whole scenes


def reversing():
    """Two passes over a scene: add the numbers of later frames, then those of earlier frames."""

    def unit(frames, k):
        backwards, place = k < len(frames), k % len(frames)
        place = len(frames) - 1 - place if backwards else place
        other = place + (1 if backwards else -1)
        added = frames[other]["x"] if 0 <= other < len(frames) else 0
        return {place: frames[place].put(x=frames[place]["x"] + added)}

    def cut(before, frame):
        return frame.number in (3, 4), frame

    return [Scenes(cut), WholeScene(lambda count: 2 * count, unit), Each(lambda frame: frame.put(x=frame["x"] * 10))]


def numbers(count):
    return [Frame(k, {"x": torch.tensor([k + 1.0])}) for k in range(count)]


def test_units_over_a_scene_are_done_in_order_and_scene_by_scene():
    run = Pipeline(reversing())
    for frame in numbers(6):
        run.push(frame)
    out = [int(frame["x"]) for frame in run.pull(finish=True)]
    # frames 1 2 3 | 4 | 5 6: from behind 6 5 3, then from before 6 11 14; 4 alone; 11 6 -> 11 17
    assert out == [60, 110, 140, 40, 110, 170] and run.units == 12


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_scene_that_is_stopped_between_two_units_continues_there(every):
    whole = Pipeline(reversing())
    for frame in numbers(6):
        whole.push(frame)
    expected = [int(frame["x"]) for frame in whole.pull(finish=True)]
    run, out = Pipeline(reversing()), []
    for frame in numbers(6):
        run.push(frame)
    for _ in range(100):
        before = run.units
        out += [int(frame["x"]) for frame in run.pull(finish=True, units=every)]
        assert run.units - before <= every
        if not run.frames_held:
            break
        state, run = run.state(), Pipeline(reversing())
        run.resume(state)
    assert out == expected
