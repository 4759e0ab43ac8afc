"""Restoration in parts: release of memory, errors, and names of images."""

import gc
import shutil
import threading
import time
import weakref

import cv2
import numpy as np
import pytest
import torch

from ldm import video
from ldm.engine.parts import Task, restore_parts
from ldm.engine.plan import Plan
from ldm.engine.resume import WorkFolder, remove_partials
from ldm.engine.threads import prefetch
from ldm.methods.mgld.codec import Codec
from ldm.streaming.pipeline import Each, Pipeline, Scenes
from ldm.streaming.scene import WholeScene
from tests.methods.toy import pixelwise

TILES = ("windows.tile=8", "windows.tile_overlap=2", "decoding.windows.tile=12", "decoding.windows.tile_overlap=4")
APART = ("windows.frame_overlap=0", "decoding.windows.frame_overlap=0", "sampling.guidance=none")


@pytest.fixture
def task(tmp_path):
    """A folder of 15 images, two of which differ only in their suffixes."""
    (tmp_path / "in").mkdir()
    for name in ("1.bmp", *(f"{number}.png" for number in range(1, 15))):
        assert cv2.imwrite(str(tmp_path / "in" / name), np.full((16, 16, 3), 90, np.uint8))
    source = video.probe(tmp_path / "in")
    return Task(source, video.choose_format(source, tmp_path / "out", size=(16, 16)), upscale=1.0)


def first_plan(toy, part_frames):
    return Plan(toy.levers()[0], part_frames)


def test_images_have_consistent_names_in_all_parts(task, tmp_path):
    toy = pixelwise(*TILES)
    with WorkFolder(tmp_path / "out", {}) as work:
        state, _ = restore_parts(toy, task, work, first_plan(toy, 2))
        names = [[file.name for file in (work.parts / part).iterdir()] for part in state["parts"]]
    assert len(names) > 1
    assert sorted(sum(names, [])) == sorted(f"{name}.png" for name in task.source.names)


def test_memory_is_released_before_the_next_attempt(task, tmp_path, monkeypatch):
    toy, maps, gone, calls = pixelwise(*APART, *TILES, "decoding.windows.tile=24"), [], [], []
    decode = Codec.decode

    def scarce(codec, x, pictures, **options):
        if len(maps) == 1:
            gone.append(maps[0]() is None)
        calls.append(codec)
        if not maps and len(calls) == 2:
            huge = torch.zeros(10)
            maps.append(weakref.ref(huge))
            raise RuntimeError("can't allocate memory")
        return decode(codec, x, pictures, **options)

    monkeypatch.setattr(Codec, "decode", scarce)
    gc.collect()
    gc.disable()
    try:
        with WorkFolder(tmp_path / "out", {}) as work:
            restore_parts(toy, task, work, first_plan(toy, 100))
    finally:
        gc.enable()
    assert gone and gone[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_computation_stops_when_writing_fails(task, tmp_path, monkeypatch, error):
    calls, at_stop = [], []

    def write(path, frames, *args, **options):
        next(frames)
        before = len(calls)
        while len(calls) == before:  # another window has begun, which takes three calls
            time.sleep(0.001)
        at_stop.append(len(calls))
        raise error

    def count(*call):
        calls.append(call)
        time.sleep(0.05)

    toy = pixelwise(*APART, *TILES, "windows.tile=16", "decoding.windows.tile=24")
    monkeypatch.setattr(video, "write_part", write)
    threads = threading.active_count()
    with WorkFolder(tmp_path / "out", {}) as work, pytest.raises(type(error)):
        restore_parts(toy, task, work, first_plan(toy, 100), report=count)
    assert threading.active_count() == threads
    assert len(calls) == at_stop[0]


def test_an_error_in_prefetching_leaves_no_reference_cycle():
    class Held:
        pass

    def items():
        held = Held()
        seen.append(weakref.ref(held))
        yield 1
        raise ValueError("broken")

    def said():
        try:
            return list(prefetch(items(), 1))
        except ValueError as error:
            return str(error)

    seen = []
    gc.disable()
    try:
        assert said() == "broken"
        assert seen[0]() is None
    finally:
        gc.enable()


def test_a_run_that_is_killed_while_it_removes_its_work_folder_leaves_none(tmp_path, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    with WorkFolder(tmp_path / "out", {}) as work:
        work.save({"parts": []})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("ldm.engine.resume.remove", killed)
        work.remove()
    assert not work.path.exists() and len(list(tmp_path.iterdir())) == 1
    remove_partials(tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- units of work over scenes


class Backwards:
    """A method that goes over the whole scene twice, from behind and from before, frame by frame."""

    device = torch.device("cpu")

    def levers(self):
        return [None]

    def stream(self, request, levers=None, progress=None):
        def unit(frames, k):
            backwards, place = k < len(frames), k % len(frames)
            place = len(frames) - 1 - place if backwards else place
            other = place + (1 if backwards else -1)
            progress("passes", k, 2 * len(frames))
            value = frames[place].values.get("sr", frames[place]["lq"].float() / 255)
            neighbour = frames[other].values.get("sr", value) if 0 <= other < len(frames) else value
            return {place: frames[place].put(sr=0.75 * value + 0.25 * neighbour)}

        passes = WholeScene(lambda count: 2 * count, unit)
        finish = Each(lambda frame: frame.without("lq"))
        return Pipeline([Scenes(lambda before, frame: (frame.number == 9, frame)), passes, finish])


class Killed(Exception):
    pass


@pytest.mark.parametrize("stops", [1, 3, 5, 8, 13])
def test_work_over_scenes_is_saved_unit_by_unit(task, tmp_path, stops):
    """Killed after every `stops` savings: the same frames, and no unit is done twice but those that were not saved."""
    with WorkFolder(tmp_path / "out", {}) as work:
        state, _ = restore_parts(Backwards(), task, work, Plan(None, 2))
        expected = [(work.parts / name).iterdir() for name in state["parts"]]
        expected = {file.name: file.read_bytes() for files in expected for file in files}
    shutil.rmtree(work.path)
    units, save = [], WorkFolder.save

    def killed(work, state):
        save(work, state)
        killed.saved += 1
        if killed.saved == stops:
            raise Killed

    for _ in range(100):
        killed.saved = 0
        with WorkFolder(tmp_path / "out", {}) as work, pytest.MonkeyPatch.context() as patched:
            patched.setattr(WorkFolder, "save", killed)
            try:
                report = lambda stage, done, total: units.append(done)  # noqa: E731
                state, _ = restore_parts(Backwards(), task, work, Plan(None, 2), report=report)
                break
            except Killed:
                continue
    made = [(work.parts / name).iterdir() for name in state["parts"]]
    assert {file.name: file.read_bytes() for files in made for file in files} == expected
    assert len(units) == 2 * 15 and len(expected) == 15
