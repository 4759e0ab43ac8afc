"""Tensors of saved states: written once, found again after any interruption."""

import pytest
import torch

from ldm.engine.assemble import load_method
from ldm.engine.resume import WorkFolder
from ldm.engine.tensor_store import TensorStore
from ldm.methods.contract import Request
from ldm.streaming.pipeline import Frame
from tests.methods.pipeline_folder import make_pipeline
from tests.methods.toy import clip


def sizes(folder):
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_tree_is_found_again_with_types_and_strides(tmp_path):
    maps = torch.randn(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    tree = {"a": [maps, (2, torch.arange(3))], "b": {"c": maps, "d": None}, "e": torch.zeros(2, dtype=torch.uint16)}
    store = TensorStore(tmp_path / "tensors")
    stored = store.replaced(tree)
    again = TensorStore(tmp_path / "tensors").restored(stored)
    assert again["a"][0] is again["b"]["c"] and again["a"][0].stride() == maps.stride()
    assert torch.equal(again["a"][0], maps) and again["a"][1][0] == 2 and again["b"]["d"] is None
    assert again["e"].dtype == torch.uint16 and torch.equal(again["a"][1][1], torch.arange(3))


def test_only_new_tensors_are_written(tmp_path):
    store, large, small = TensorStore(tmp_path), torch.randn(50_000), torch.randn(10)
    store.replaced({"x": large})
    store.replaced({"x": large, "y": small})
    assert len(sizes(tmp_path)) == 2 and min(sizes(tmp_path).values()) < 5_000
    small.add_(1)  # changed in place: another value
    tree = store.replaced({"x": large, "y": small})
    assert [path.name for path in store.unused()] == ["00000002.pt"]
    assert torch.equal(TensorStore(tmp_path).restored(tree)["y"], small)


def test_a_resumed_state_is_not_written_again(tmp_path):
    tree = TensorStore(tmp_path).replaced({"x": torch.randn(10)})
    again = TensorStore(tmp_path)
    state = again.restored(tree)
    assert again.replaced(state) == tree and len(sizes(tmp_path)) == 1


def test_a_run_killed_between_tensors_and_state_resumes_from_the_state_before(tmp_path):
    first, second = torch.randn(3), torch.randn(4)
    with WorkFolder(tmp_path / "out", {}) as work:
        work.save({"parts": [], "x": first})
        work.tensors.replaced({"parts": [], "x": second})  # and no state
    with WorkFolder(tmp_path / "out", {}) as work:
        assert torch.equal(work.load()["x"], first)
        assert list(sizes(work.tensors.folder)) == ["00000001.pt"]
        work.save({"parts": [], "x": second})
        assert list(sizes(work.tensors.folder)) == ["00000002.pt"]
        work.remove()
    assert not work.path.exists()


def test_a_full_disk_is_one_line_and_keeps_the_state_before(tmp_path, monkeypatch):
    with WorkFolder(tmp_path / "o.mkv", {}, warn=print) as work:
        work.save({"parts": [], "a": torch.zeros(3)})

        def full(content, to):
            to.write_bytes(b"half")
            raise RuntimeError("basic_ios::clear: iostream error")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="00000002.pt: cannot be written, is the disk full"), work.computing():
            work.save({"parts": [], "a": torch.ones(3)})
        assert torch.equal(work.load()["a"], torch.zeros(3))


def test_a_unit_of_a_long_scene_saves_little(tmp_path):
    """One visit of a frame saves its latents; the other frames of the scene, with their flows, are not written."""
    folder = make_pipeline(tmp_path / "pipeline")
    method = load_method(folder, overrides=["flow=dis", "method.params.sampling.params.steps=2"])
    frames = clip(12)
    run, written = method.stream(Request((16, 16), len(frames))), []
    for number, frame in enumerate(frames):
        run.push(Frame(number, {"lq": frame[None]}))
    with WorkFolder(tmp_path / "out", {}) as work:
        before = {}
        for _ in range(15):
            list(run.pull(finish=True, units=1))
            work.save({"parts": [], "pipeline": run.state()})
            after = sizes(work.tensors.folder)
            written.append(sum(size for name, size in after.items() if name not in before))
            before = after
    values = 16 * 16 * 4 * 4  # bytes of the latents of a frame
    assert written[0] > 12 * 64 * 64 * 4 * 4 * 0.9, "the flows of all frames, once"
    assert max(written[1:12]) < 3 * values + 4_000
    assert max(written[12:]) < 3 * values + 64 * 64 * 3 * 4 + 4_000, "and in the last step a picture"


@pytest.mark.parametrize("reference", [[1], [1, 0.0], ["1", 0], None, [0, 0], [10**9, 0]])
def test_references_that_do_not_fit(tmp_path, reference):
    store = TensorStore(tmp_path)
    store.replaced([torch.zeros(1)])
    with pytest.raises(ValueError):
        store.restored({"tensor in file": reference})
