"""Work folders, records and runs made by strangers: one line each, nothing outside is touched."""

import json
import os
import socket

import pytest
import torch

from ldm.engine import provenance
from ldm.engine.resume import WorkError, WorkFolder, recorded_plan, remove_partials
from ldm.engine.tensor_store import REFERENCE
from ldm.files import atomic_file
from ldm.printable import printable
from ldm.report import page as report_page
from ldm.training.callbacks import StepCheckpoint
from ldm.training.preflight import check_export, check_run
from ldm.video.replacing import Replacement
from ldm.video.source import VideoError
from ldm.weights import checkpoint
from scripts import make_latents
from scripts.degrade import Manifest
from tests.test_hostile_weights import FILL, calling, one_line


def tree(folder) -> dict:
    """What lies below a folder: sizes and times, links not followed."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def test_files_are_written_as_the_umask_says(tmp_path):
    was = os.umask(0o077)
    try:
        checkpoint.save(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(was)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o600


def test_a_temporary_file_follows_no_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    monkeypatch.setattr("secrets.token_hex", lambda count: "00" * count)
    with atomic_file(tmp_path / "a.txt") as temporary:
        name = temporary
    name.symlink_to(victim)
    with pytest.raises(FileExistsError), atomic_file(tmp_path / "a.txt"):
        pass
    (tmp_path / "b.txt").symlink_to(victim)
    monkeypatch.undo()
    with atomic_file(tmp_path / "b.txt") as temporary:
        temporary.write_text("new")
    assert victim.read_text() == "kept" and (tmp_path / "b.txt").read_text() == "new"


def test_an_output_that_is_a_link_to_a_folder_is_refused_before_the_work(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(VideoError, match="is a link to a folder"):
        Replacement(tmp_path / "out").prepare()


# ---- work folders: (what is done to the folder, what the line says)


def link(work, name, target):
    (work / name).symlink_to(target)


def bound(path):
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.bind(os.path.relpath(path))  # the length of such names is limited


def saved(work, content):
    (work / "parts").mkdir()
    torch.save(content, work / "state.pt")


def referring(work, reference, content=None):
    (work / "tensors").mkdir()
    torch.save([torch.zeros(2) if content is None else content], work / "tensors" / "00000001.pt")
    saved(work, {"parts": [], "x": {REFERENCE: reference}})


WORK = {
    "link to parts": (lambda work, out: link(work, "parts", out), "is a link"),
    "link to the lock": (lambda work, out: link(work, "lock", out / "a"), "is a link"),
    "link to the manifest": (lambda work, out: link(work, "manifest.json", out / "a"), "is a link"),
    "link to the state": (lambda work, out: link(work, "state.pt", out / "a"), "is a link"),
    "dangling link": (lambda work, out: link(work, "lock", out / "new"), "is a link"),
    "link as a part": (lambda work, out: ((work / "parts").mkdir(), link(work / "parts", "000000", out)), "is a link"),
    "foreign file": (lambda work, out: (work / "thesis.tex").write_text("x"), "not of a work folder"),
    "foreign folder": (lambda work, out: (work / "parts/sub").mkdir(parents=True), "not of a work folder"),
    "pipe as a lock": (lambda work, out: os.mkfifo(work / "lock"), "not a regular file"),
    "pipe as a manifest": (lambda work, out: os.mkfifo(work / "manifest.json"), "not a regular file"),
    "pipe as a state": (lambda work, out: os.mkfifo(work / "state.pt"), "not a regular file"),
    "pipe as a part": (lambda work, out: ((work / "parts").mkdir(), os.mkfifo(work / "parts/000000")), "not a regular"),
    "pipe as the parts": (lambda work, out: os.mkfifo(work / "parts"), "not a regular file"),
    "pipe of a part": (
        lambda work, out: ((work / "parts/000000").mkdir(parents=True), os.mkfifo(work / "parts/000000/a.png")),
        "not a regular file",
    ),
    "link of a part": (
        lambda work, out: ((work / "parts/000000").mkdir(parents=True), link(work, "parts/000000/a.png", out / "a")),
        "is a link",
    ),
    "socket as a lock": (lambda work, out: bound(work / "lock"), "not a regular file"),
    "file as the parts": (lambda work, out: (work / "parts").write_text("x"), "cannot be used"),
    "folder as a lock": (lambda work, out: (work / "lock").mkdir(), "cannot be used"),
    "folder as a manifest": (lambda work, out: (work / "manifest.json").mkdir(), "not readable"),
    "folder as a state": (lambda work, out: (work / "state.pt").mkdir(), "state.pt: not readable"),
    "state of a bomb": (lambda work, out: calling(work / "state.pt", FILL), "state.pt: not readable"),
    "many keys": (
        lambda work, out: (work / "manifest.json").write_text(json.dumps(dict.fromkeys(map(str, range(10**5)), 1))),
        "started with",
    ),
    "huge counts": (
        lambda work, out: (work / "manifest.json").write_text('{"plan": {"tile": 1%s}}' % ("0" * 4000)),
        "started with",
    ),
    "list as a manifest": (lambda work, out: (work / "manifest.json").write_text("[1]"), "not readable"),
    "deep manifest": (lambda work, out: (work / "manifest.json").write_text("[" * 100_000), "not readable"),
    "manifest of words": (lambda work, out: (work / "manifest.json").write_text('{"plan": "\\u001b"}'), "started with"),
    "number as a manifest": (lambda work, out: (work / "manifest.json").write_text("1" * 5000), "not readable"),
    "state without parts": (lambda work, out: saved(work, {"x": 1}), "state.pt: not readable"),
    "state as a list": (lambda work, out: saved(work, [1, 2]), "state.pt: not readable"),
    "parts elsewhere": (lambda work, out: saved(work, {"parts": ["../../a"]}), "state.pt: not readable"),
    "parts of numbers": (lambda work, out: saved(work, {"parts": [1]}), "state.pt: not readable"),
    "tensor without values": (
        lambda work, out: saved(work, {"parts": [], "x": torch.zeros(1).expand(1 << 40)}),
        "state.pt: not readable",
    ),
    "link to the tensors": (lambda work, out: link(work, "tensors", out), "is a link"),
    "foreign file among the tensors": (
        lambda work, out: ((work / "tensors").mkdir(), (work / "tensors" / "a.txt").write_text("x")),
        "not of a work folder",
    ),
    "tensors elsewhere": (lambda work, out: referring(work, ["../a", 0]), "state.pt: not readable"),
    "tensors that are missing": (lambda work, out: referring(work, [3, 0]), "state.pt: not readable"),
    "no such tensor": (lambda work, out: referring(work, [1, 2]), "state.pt: not readable"),
    "negative position": (lambda work, out: referring(work, [1, -1]), "state.pt: not readable"),
    "stored without values": (
        lambda work, out: referring(work, [1, 0], torch.zeros(1).expand(1 << 40)),
        "state.pt: not readable",
    ),
    "stored text": (lambda work, out: referring(work, [1, 0], "text"), "state.pt: not readable"),
    "missing part": (lambda work, out: saved(work, {"parts": ["000000"]}), "000000 is missing"),
}


@pytest.mark.parametrize("name", WORK)
def test_a_work_folder_of_others(name, tmp_path):
    spoil, says = WORK[name]
    outside, work = tmp_path / "outside", tmp_path / "out.mp4.work"
    outside.mkdir()
    (outside / "a").write_text("kept")
    work.mkdir()
    spoil(work, outside)
    before = tree(outside)
    with pytest.raises(WorkError) as error, WorkFolder(tmp_path / "out.mp4", {"plan": {"tile": 3}}) as folder:
        folder.load()
    assert says in one_line(error) and tree(outside) == before
    recorded_plan(tmp_path / "out.mp4")


def test_a_work_folder_that_is_a_link(tmp_path):
    (tmp_path / "real" / "parts" / "sub").mkdir(parents=True)
    (tmp_path / "out.mp4.work").symlink_to(tmp_path / "real")
    with pytest.raises(WorkError, match="is a link"), WorkFolder(tmp_path / "out.mp4", {}):
        pass
    assert (tmp_path / "real" / "parts" / "sub").is_dir()


def test_only_files_of_a_work_folder_are_removed(tmp_path):
    with WorkFolder(tmp_path / "new" / "out.mp4", {}) as work:
        work.save({"parts": []})
        (work.path / "mine.txt").write_text("x")
        work.remove()
    assert [path.name for path in (tmp_path / "new" / "out.mp4.work").iterdir()] == ["mine.txt"]
    with WorkFolder(tmp_path / "other" / "out.mp4", {}) as work:
        work.part(0).write_text("x")
        work.remove()
    assert not (tmp_path / "other").exists()


def test_only_unfinished_files_of_our_form_are_removed(tmp_path):
    own = [".a[1].mp4.partial-99999999", f".a[1].mp4.partial-{os.getpid()}-0123abcd", ".a[1].mp4.old-99999999"]
    others = [".a1.mp4.partial-99999999", ".a[1].mp4.partial-1", ".a[1].mp4.partial-backup"]
    for name in own + others:
        (tmp_path / name).write_text("x")
    remove_partials(tmp_path / "a[1].mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_state_that_does_not_fit_is_one_line(tmp_path):
    with WorkFolder(tmp_path / "out.mp4", {}) as work:
        for error in (KeyError("x"), TypeError("a\nb"), RuntimeError("x" * 5000)):
            with pytest.raises(WorkError) as caught, work.resuming():
                raise error
            assert "does not fit this run" in one_line(caught)


# ---- records

RECORD = {"output": {"path": "x", "sha256": "0"}, "input": {"path": "x", "sha256": "0"}, "weights": {}}
RECORDS = {
    "deep": "[" * 100_000,
    "list": "[]",
    "number": "3",
    "forged line": json.dumps(RECORD | {"weights": {"a\noutput: as recorded": RECORD["input"]}}),
    "path of a number": json.dumps(RECORD | {"input": {"path": 3, "sha256": "0"}}),
    "names elsewhere": json.dumps(RECORD | {"input": {"path": "/", "sha256": "0", "names": ["../etc/passwd"]}}),
    "names of numbers": json.dumps(RECORD | {"input": {"path": "/", "sha256": "0", "names": [1]}}),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_form(name, tmp_path):
    (tmp_path / "a.json").write_text(RECORDS[name])
    with pytest.raises(ValueError, match="not a record") as error:
        provenance.verify(tmp_path / "a.json")
    one_line(error)


def test_a_record_is_of_the_output_beside_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "out.mp4").write_bytes(b"changed")
    good = {"path": str(tmp_path / "good"), "sha256": checkpoint.sha256(tmp_path / "good")}
    weights = {"zero": {"path": "/dev/zero", "sha256": "0"}, "pipe": {"path": str(tmp_path / "fifo"), "sha256": "0"}}
    weights |= {"null": {"path": "a\0b", "sha256": "0"}}
    weights |= {"kernel": {"path": "/proc/kmsg", "sha256": "0"}, "core": {"path": "/proc/kcore", "sha256": "0"}}
    (tmp_path / "out.mp4.json").write_text(json.dumps({"output": good, "input": good, "weights": weights}))
    results = [result for _, result in provenance.verify(tmp_path / "out.mp4.json")]
    assert results == ["differs", "as recorded", "not found", "not found", "not found", *results[5:]]
    assert {*results[5:]} <= {"differs", "not found"} and len(results) == 7


def made_by(path):
    Manifest(path.parent, {})


JSON = {  # files that commands read beside clips and results: their readers
    "results.json": report_page.read_results,
    "manifest.json": made_by,
    "latents.json": lambda path: make_latents.compare_manifest(path, {"settings": {}}),
    "out.mp4.json": provenance.verify,
}
CONTENTS = {
    "deep": "[" * 100_000,
    "deep mappings": '{"a":' * 100_000,
    "digits": "1" * 5000,
    "nothing": "",
    "number": "3",
    "null": "null",
    "list": "[1]",
    "words": '{"clips": "x", "settings": 3, "format": [], "output": "x", "input": [], "weights": 3}',
    "bytes": "\udcff\udcfe",
    "pipe": None,
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("content", CONTENTS)
def test_json_of_any_form_is_one_line(name, content, tmp_path):
    path = tmp_path / name
    if CONTENTS[content] is None:
        os.mkfifo(path)
    else:
        path.write_bytes(CONTENTS[content].encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as error:
        JSON[name](path)
    one_line(error)


# ---- runs


def test_checkpoints_named_elsewhere_are_not_taken_up(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for path in (tmp_path / "victim", folder / "step00000001.ckpt"):
        path.write_text("x")
    (folder / "link.ckpt").symlink_to(tmp_path / "victim")
    calls = StepCheckpoint(folder, "x", monitor="step", mode="max", save_top_k=2)
    names = ["step00000001.ckpt", "../../victim", "link.ckpt", "gone.ckpt"]
    state = {
        "best_model_path": str(folder / "../../victim"),
        "best_model_score": torch.tensor(1.0),
        "last_model_path": str(tmp_path / "victim"),
        "kth_best_model_path": str(tmp_path / "victim"),
        "kth_value": torch.tensor(1.0),
        "best_k_models": {f"{folder}/{name}": torch.tensor(1.0) for name in names},
    }
    calls.load_state_dict(state)
    assert list(calls.best_k_models) == [str(folder / "step00000001.ckpt")] == [calls.kth_best_model_path]
    assert calls.best_model_path == calls.last_model_path == ""


def test_a_run_with_links_and_an_export_elsewhere_are_refused(tmp_path):
    run = tmp_path / "logs" / "run"
    run.mkdir(parents=True)
    (run / "pictures").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="pictures: is a link"):
        check_run(run)
    inside, outside = run.parent / "w" / "a.safetensors", tmp_path / "a.safetensors"

    def check(file, words=()):
        check_export({"export": {"file": str(file)}}, run, words, card="model.yaml", text="family: x\n")

    check(inside)
    check(outside, [f"export.file={outside}"])
    with pytest.raises(ValueError, match="is not in"):
        check(outside, ["steps=3"])
    inside.parent.mkdir()
    description = inside.with_name("model.yaml")
    description.write_text("family: x\n")
    check(inside)  # written by another stage of the same training
    description.write_text("family: y\n")
    with pytest.raises(ValueError, match="would replace model.yaml"):
        check(inside)
    description.unlink()
    inside.write_text("x")
    with pytest.raises(ValueError, match="a.safetensors exists"):
        check(inside)


def test_names_are_printed_without_control_characters():
    assert printable("a\x1b[2J\nb\u202ec\r\x00é\udcff") == r"a\x1b[2J\nb\u202ec\r\x00é\udcff"
    assert printable("x" * 100, 20) == "x" * 16 + " ..."
