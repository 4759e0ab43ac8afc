"""Stages compared with processing the clip at once, with scenes, and after resumption."""

import pytest
import torch

from ldm.ops import tiling
from ldm.ops.windows import over_windows, released_windows
from ldm.streaming.blending import AVERAGE
from ldm.streaming.pipeline import Each, Frame, Neighbours, Pipeline, Scenes, Stage, Windowed, run_all, stack
from ldm.streaming.scene import WholeScene


def values(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, frames, 2, 3, 4, generator=torch.Generator().manual_seed(seed))


def frames_of(x: torch.Tensor, start: int = 0) -> list[Frame]:
    last = x.shape[1] - 1
    return [Frame(start + k, {"x": x[:, k]}, last=k == last) for k in range(x.shape[1])]


def mixed(x: torch.Tensor) -> torch.Tensor:
    """A function in which each frame depends on all frames of the window and on its position."""
    place = torch.arange(1.0, x.shape[1] + 1).view(1, -1, 1, 1, 1)
    return x.cumsum(1) * place + x.mean(1, keepdim=True)


@pytest.mark.parametrize("count", range(1, 17))
@pytest.mark.parametrize(("size", "overlap"), [(5, 2), (5, 0), (4, 3), (1, 0), (3, 1)])
def test_windows_of_a_stream_equal_those_of_the_tiler(count, size, overlap):
    x = values(count)
    whole = tiling.tiled(lambda x, *, tiles: mixed(x), tile=(size, 3, 4), overlap=(overlap, 0, 0),
                         window=tiling.flat_window)(x)  # fmt: skip
    stage = Windowed(lambda frames: mixed(stack(frames, "x")), size=size, overlap=overlap, name="y")
    out = run_all([stage], frames_of(x))
    assert [frame.number for frame in out] == list(range(count))
    torch.testing.assert_close(stack(out, "y"), whole, atol=1e-5, rtol=1e-5)
    assert not stage.held and not stage.parts


@pytest.mark.parametrize("count", range(1, 17))
@pytest.mark.parametrize(("size", "overlap", "offset"), [(5, 0, 2), (5, 2, 1), (4, 0, 4), (3, 1, 1)])
def test_windows_with_an_offset_begin_at_the_first_frame_and_there(count, size, overlap, offset):
    seen, x = [], values(count)

    def fn(frames):
        seen.append([frame.number for frame in frames])
        return stack(frames, "x")

    stage = Windowed(fn, size=size, overlap=overlap, name="y", offset=offset)
    out = run_all([stage], frames_of(x))
    firsts = tiling.starts(count, size, overlap, offset=offset)
    assert seen == [list(range(first, min(first + size, count))) for first in firsts]
    assert firsts[0] == 0 and firsts[1:2] in ([], [min(offset, count - size)])
    torch.testing.assert_close(stack(out, "y"), x)
    assert not stage.held and stage.begin == 0


def test_an_offset_outside_a_window_is_refused():
    for make in (
        lambda: Windowed(len, size=5, overlap=0, name="y", offset=6),
        lambda: tiling.starts(20, 5, 0, offset=-1),
    ):
        with pytest.raises(ValueError, match="got offset"):
            make()


@pytest.mark.parametrize("count", range(1, 28))
def test_visits_are_averaged_as_in_the_released_plan(count):
    x, calls = values(count), []

    def fn(frames):
        calls.append(len(frames))
        return mixed(stack(frames, "x"))

    whole = over_windows(mixed, released_windows)(x)
    out = run_all([Windowed(fn, size=8, overlap=2, name="y", blend=AVERAGE)], frames_of(x))
    torch.testing.assert_close(stack(out, "y"), whole, atol=1e-4, rtol=1e-5)
    assert len(calls) == len(released_windows(count).distinct().windows)


@pytest.mark.parametrize(("count", "sizes"), [(3, [3]), (5, [5]), (7, [5, 2]), (10, [5, 5]), (11, [5, 5, 1])])
def test_without_flush_the_last_window_is_short(count, sizes):
    seen = []

    def fn(frames):
        seen.append(len(frames))
        return stack(frames, "x")

    out = run_all([Windowed(fn, size=5, overlap=0, name="x", flush=False)], frames_of(values(count)))
    assert seen == sizes and torch.equal(stack(out, "x"), values(count))


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize(("reach", "block"), [(1, 3), (2, 1), (2, 4), (0, 2)])
def test_neighbours_have_exactly_the_required_context(count, reach, block):
    x = values(count)

    def around(x: torch.Tensor) -> torch.Tensor:
        """Ten times each frame plus the sum of the frames within reach."""
        rows = [x[:, max(k - reach, 0) : k + reach + 1].sum(1) for k in range(x.shape[1])]
        return 10 * x + torch.stack(rows, 1)

    stage = Neighbours(lambda frames, start, stop: around(stack(frames, "x"))[:, start:stop],
                       reach=reach, name="x", block=block)  # fmt: skip
    out = run_all([stage], frames_of(x))
    torch.testing.assert_close(stack(out, "x"), around(x))


def two_scenes():
    return [Frame(k, {"x": torch.full((1, 1), float(k >= 4))}) for k in range(9)]


def stages_with_scenes(seen):
    def fn(frames):
        seen.append([frame.number for frame in frames])
        return stack(frames, "x") + 1

    cut = Scenes(lambda a, b: (bool((a["x"] != b["x"]).all()), b.put(pair=a["x"])), drop=("pair",))
    near = Neighbours(lambda frames, start, stop: fn(frames)[:, start:stop], reach=1, name="x")
    return [cut, Windowed(fn, size=3, overlap=1, name="x"), near, Each(lambda frame: frame.put(z=frame["x"]))]


def test_no_stage_combines_frames_of_two_scenes():
    seen = []
    out = run_all(stages_with_scenes(seen), two_scenes())
    assert [frame.number for frame in out] == list(range(9))
    assert [frame.last for frame in out] == [k in (3, 8) for k in range(9)]
    assert all(max(window) < 4 or min(window) >= 4 for window in seen) and len(seen) > 4
    assert all("pair" not in frame.values for frame in out)


@pytest.mark.parametrize("stop", range(10))
def test_a_run_resumed_after_any_frame_gives_the_same_result(stop, tmp_path):
    whole = run_all(stages_with_scenes([]), two_scenes())
    run, out = Pipeline(stages_with_scenes([])), []
    for frame in two_scenes()[:stop]:
        run.push(frame)
        out += run.pull()
    torch.save(run.state(), tmp_path / "state.pt")
    run = Pipeline(stages_with_scenes([]))
    run.resume(torch.load(tmp_path / "state.pt", weights_only=True))
    for frame in two_scenes()[stop:]:
        run.push(frame)
    left = run.pull(finish=True)
    out += [next(left)]
    other = Pipeline(stages_with_scenes([]))  # stopped once more, while the rest comes out
    other.resume(run.state())
    out += other.pull(finish=True)
    assert [(f.number, f.last, f["z"].item()) for f in out] == [(f.number, f.last, f["z"].item()) for f in whole]


def test_the_number_of_held_frames_is_bounded():
    run, held = Pipeline([Scenes(lambda a, b: (False, b)), *stages_with_scenes([])[1:]]), []
    for number in range(60):
        run.push(Frame(number, {"x": torch.zeros(1, 1)}))
        list(run.pull())
        held.append(run.frames_held)
    assert max(held[20:]) <= max(held[:20]) <= 12


def test_invalid_windows_and_states_are_refused():
    with pytest.raises(ValueError, match="overlap 3 for windows of 3"):
        Windowed(lambda frames: None, size=3, overlap=3, name="x")
    with pytest.raises(ValueError, match="1 stages, expected 2"):
        Pipeline([Each(None), Each(None)]).resume(Pipeline([Each(None)]).state())

    with pytest.raises(ValueError, match="queues do not fit"):
        Pipeline([]).resume(Pipeline([]).state() | {"ended": 3})

    def broken(frames):
        raise FloatingPointError("the tile at rows 1..2 is not finite")

    with pytest.raises(FloatingPointError, match="frames 0 to 2: the tile at rows"):
        run_all([Windowed(broken, size=5, overlap=0, name="x")], frames_of(values(3)))


def saved_states() -> dict[str, tuple[Stage, dict]]:
    """Stages after four frames, and their states."""
    stages = {
        "each": Each(lambda frame: frame),
        "scenes": Scenes(lambda a, b: (False, b)),
        "windows": Windowed(lambda frames: mixed(stack(frames, "x")), size=3, overlap=1, name="y"),
        "neighbours": Neighbours(lambda frames, a, b: stack(frames[a:b], "x"), reach=1, name="y", block=1),
        "scene": WholeScene(lambda count: count, lambda scene, k: {}),
    }
    for stage in stages.values():
        for frame in frames_of(values(5))[:4]:
            stage.push(frame)
    return {name: (stage, stage.state()) for name, stage in stages.items()}


FRAME = {"number": 0, "values": {"x": torch.zeros(1)}, "last": False}
FOREIGN = {  # stage, what is changed in its saved state, what the line says
    "another attribute": ("each", {"fn": 3}, "a saved stage with"),
    "a method": ("each", {"push": 3}, "a saved stage with"),
    "a private attribute": ("windows", {"__class__": Each}, "a saved stage with"),
    "negative": ("neighbours", {"done": -(10**12)}, "whose done is not a valid int"),
    "a truth as a number": ("neighbours", {"done": True}, "whose done is not a valid int"),
    "a word": ("windows", {"begin": "x"}, "whose begin is not a valid int"),
    "a number as a truth": ("scene", {"complete": 1}, "whose complete is not a valid bool"),
    "far away": ("windows", {"first": 1 << 62}, "positions do not fit"),
    "before the first": ("windows", {"first": 1, "begin": 0}, "positions do not fit"),
    "behind the last": ("neighbours", {"done": 1 << 62}, "positions do not fit"),
    "more units than there are": ("scene", {"done": 9}, "positions do not fit"),
    "units of a scene that is not complete": ("scene", {"done": 1}, "positions do not fit"),
    "parts of no frames": ("windows", {"parts": []}, "positions do not fit"),
    "parts without a weight": ("windows", {"held": [FRAME], "parts": [[3]], "first": 0}, "positions do not fit"),
    "a weight of zero": ("windows", {"held": [FRAME], "parts": [[(0, torch.ones(1))]], "first": 0}, "positions do not"),
    "a frame of a number": ("scene", {"held": [3]}, "saved frames of another form"),
    "a frame of other fields": ("scene", {"held": [FRAME | {"x": 1}]}, "saved frames of another form"),
    "a number as a value": ("scene", {"held": [FRAME | {"values": {"x": 1}}]}, "saved frames of another form"),
    "no list of frames": ("scene", {"held": FRAME}, "saved frames of another form"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_saved_stage_of_another_form_is_refused(name):
    kind, change, says = FOREIGN[name]
    stage, state = saved_states()[kind]
    before = dict(vars(stage))
    with pytest.raises(ValueError, match=says) as error:
        stage.resume(state | change)
    assert "\n" not in str(error.value) and vars(stage).keys() == before.keys()


def test_a_saved_stage_is_taken_up():
    for stage, state in saved_states().values():
        stage.resume(state)
        assert stage.state().keys() == state.keys()
    stage, state = saved_states()["each"]
    with pytest.raises(ValueError, match="expected first, held"):
        stage.resume({"held": []})
    with pytest.raises(ValueError, match="with list"):
        stage.resume([])
