"""Weight files, work folders, records and runs made by strangers: one line each, nothing outside is touched."""

import json
import os
import socket
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.engine import provenance
from ldm.engine.resume import WorkError, WorkFolder, recorded_plan, remove_partials
from ldm.files import partial
from ldm.printable import printable
from ldm.report import page as report_page
from ldm.training.callbacks import StepCheckpoint
from ldm.training.preflight import check_export, check_run
from ldm.video.replacing import Replacement
from ldm.video.source import VideoError
from ldm.weights import checkpoint
from scripts import make_latents
from scripts.degrade import Manifest


def one_line(error) -> str:
    line = str(error.value)
    assert "\n" not in line and "\x1b" not in line and len(line) < 1000, line
    return line


def tree(folder) -> dict:
    """What lies below a folder: sizes and times, links not followed."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


# ---- weight files: (maker, what the line says)


def zip_bomb(path):
    torch.save({"a": torch.zeros(8)}, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/9", bytes(1 << 24))


def circle(path):
    content = {"a": torch.zeros(1)}
    content["model"] = content
    torch.save(content, path)


def sparse_tensor(path):
    torch.save({"a": torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (1 << 40,))}, path)


def torn_archive(path):
    torch.save({"a": torch.zeros(8)}, path)
    data = path.read_bytes()
    place = data.rindex(b"PK\x05\x06")
    path.write_bytes(data[:place] + b"PK\x06\x07" + b"\xff" * 16 + data[place:])


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def calling(path, call: bytes):
    """An archive whose pickle is a dictionary of one entry: what a call gives."""
    torch.save({"a": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            own = b"\x80\x02}" + unicode("a") + call + b"s."
            archive.writestr(name, own if name.endswith("data.pkl") else data)


def doubling(path):
    call = b"c_codecs\nencode\n" + unicode("x" * 64) + unicode("latin1") + b"\x86R"
    for _ in range(40):
        call = b"c_codecs\nencode\n" + call + unicode("hex-codec") + b"\x86R"
    calling(path, call)


def legacy(path, change=lambda data: data):
    torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(change(path.read_bytes()))


def old_bytearray(path):
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00."
    path.write_bytes(head + b"\x80\x02}" + unicode("a") + FILL + b"s.\x80\x02].")


FILL = b"c__builtin__\nbytearray\n\x8a\x05" + (1 << 38).to_bytes(5, "little") + b"\x85R"
WEIGHTS = {
    "memory by a number": (lambda path: calling(path, FILL.replace(b"__builtin__", b"builtins")), "holds a bytearray"),
    "memory by a number, old name": (lambda path: calling(path, FILL), "holds a bytearray"),
    "memory by a number, old file": (old_bytearray, "holds a bytearray"),
    "text that doubles": (doubling, "text that grows"),
    "old file of terabytes": (
        lambda path: legacy(path, lambda data: data.replace(b"K\x04Nt", b"\x8a\x06" + bytes(5) + b"\x10Nt")),
        "damaged",
    ),
    "tape archive": (lambda path: tarfile.open(path, "w").close(), "damaged"),
    "torn archive": (torn_archive, "damaged"),
    "stride of zero": (lambda path: torch.save({"a": torch.zeros(1).expand(1 << 36)}, path), "the file holds 4 for it"),
    "overlapping": (lambda path: torch.save({"a": torch.zeros(64).as_strided((1 << 20, 8), (0, 8))}, path), "holds"),
    "many of one": (lambda path: torch.save(dict.fromkeys(map(str, range(99)), torch.zeros(999)), path), "not used"),
    "sparse": (sparse_tensor, "sparse"),
    "no values": (lambda path: torch.save({"a": torch.empty(1 << 40, device="meta")}, path), "holds no values"),
    "zip bomb": (zip_bomb, "unpacks to"),
    "container in itself": (circle, "expected only tensors"),
    "safetensors as a pickle": (lambda path: save_file({"a": torch.zeros(1)}, path), "holds safetensors; name it"),
    "name of control characters": (lambda path: torch.save({"\x1b[2J\n": 3}, path), "expected only tensors"),
    "number": (lambda path: torch.save({"a": np.float64(1)}, path), "expected only tensors"),
    "same names": (
        lambda path: torch.save({"a._orig_mod.b": torch.zeros(1), "a.b": torch.zeros(1)}, path),
        "differ only",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant")
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_file_that_asks_for_more_than_it_holds(name, tmp_path):
    make, says = WEIGHTS[name]
    make(tmp_path / "a.ckpt")
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.read(tmp_path / "a.ckpt")
    assert says in one_line(error)


def test_bytes_and_numbers_of_honest_checkpoints_are_read(tmp_path):
    content = {"state_dict": {"a": torch.ones(2)}, "note": b"hex", "mode": "hex", "seed": np.float64(3)}
    torch.save(content, tmp_path / "a.ckpt", pickle_protocol=2)
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        data = archive.read("a/data.pkl")
    assert b"_codecs" in data and b"scalar" in data
    with pytest.raises(checkpoint.CheckpointError, match="text that grows"):
        checkpoint.read(tmp_path / "a.ckpt")  # refused because of its words, which no released checkpoint holds
    torch.save(content | {"mode": "l1", "note": "hexagon"}, tmp_path / "a.ckpt")
    assert checkpoint.read(tmp_path / "a.ckpt")["a"].all()
    legacy(tmp_path / "b.ckpt")
    assert checkpoint.read(tmp_path / "b.ckpt")["a"].shape == (4,)


def safetensors(path, header, data=bytes(24), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


HEADERS = {
    "overlapping": lambda path: safetensors(path, {"a": entry(0, 8), "b": entry(4, 12)}),
    "twice the same values": lambda path: safetensors(path, {"a": entry(0, 8), "b": entry(0, 8)}),
    "huge offsets": lambda path: safetensors(path, {"a": entry(0, 1 << 62, (1 << 60,))}),
    "offsets that overflow": lambda path: safetensors(path, {"a": entry((1 << 64) - 8, 0)}),
    "backwards": lambda path: safetensors(path, {"a": entry(8, 0)}),
    "huge shape": lambda path: safetensors(path, {"a": entry(0, 8, (1 << 40, 1 << 40))}),
    "huge shape of nothing": lambda path: safetensors(path, {"a": entry(0, 0, (1 << 63, 0))}),
    "behind the end": lambda path: safetensors(path, {"a": entry(0, 80, (20,))}),
    "a gap": lambda path: safetensors(path, {"a": entry(0, 8), "b": entry(16, 24)}),
    "header of an exabyte": lambda path: safetensors(path, {"a": entry(0, 8)}, length=1 << 60),
    "header behind the end": lambda path: safetensors(path, {"a": entry(0, 8)}, length=1 << 20),
    "deep header": lambda path: safetensors(path, b'{"a": ' + b"[" * 100_000),
    "words behind the header": lambda path: safetensors(path, b'{"a": 3} {"a": 4}'),
    "unknown kind": lambda path: safetensors(path, {"a": entry(0, 8, dtype="F4096")}),
    "control characters": lambda path: safetensors(path, {"\x1b[2J\n": entry(0, 9)}),
    "list": lambda path: safetensors(path, [1]),
    "empty": lambda path: safetensors(path, {}, b""),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_of_another_form(name, tmp_path):
    HEADERS[name](tmp_path / "a.safetensors")
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.read(tmp_path / "a.safetensors")
    one_line(error)


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model.safetensors.index.json"])
def test_pieces_are_called_pieces(name, tmp_path):
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(checkpoint.CheckpointError, match="piece"):
        checkpoint.read(tmp_path / name)


def test_names_of_compiled_and_averaged_weights(tmp_path, caplog):
    caplog.set_level("INFO")
    own, mean = {"a.b": torch.zeros(2)}, {"a.b": torch.ones(2)}
    torch.save({"params": own, "params_ema": mean}, tmp_path / "a.PTH")
    assert checkpoint.read(tmp_path / "a.PTH")["a.b"].all() and "takes params_ema, not params" in caplog.text
    torch.save({"module.a._orig_mod.b": torch.ones(2), "model_ema.ab": torch.zeros(2)}, tmp_path / "b.pth")
    assert checkpoint.read(tmp_path / "b.pth").keys() == {"module.a.b"} - {"module.a.b"} | {"a.b"}
    assert "1 averaged weights" in caplog.text
    assert checkpoint.find(tmp_path, "A").name == "a.PTH"


def test_integers_are_no_weights_and_nothing_changes():
    net = torch.nn.Linear(2, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointError, match="2 mis-typed: weight .file int8, network float32.*Quantised"):
        checkpoint.load(net, {name: value.to(torch.int8) for name, value in before.items()})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


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
    with partial(tmp_path / "a.txt") as temporary:
        name = temporary
    name.symlink_to(victim)
    with pytest.raises(FileExistsError), partial(tmp_path / "a.txt"):
        pass
    (tmp_path / "b.txt").symlink_to(victim)
    monkeypatch.undo()
    with partial(tmp_path / "b.txt") as temporary:
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
    for name in (".out.mp4.partial-backup", ".out.mp4.partial-99999999", ".out.mp4.partial-99999999-0123abcd"):
        (tmp_path / name).write_text("x")
    remove_partials(tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == [".out.mp4.partial-backup"]


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
    check_export({"export": {"file": str(inside)}}, run, [], card="model.yaml")
    check_export({"export": {"file": str(outside)}}, run, [f"export.file={outside}"], card="model.yaml")
    with pytest.raises(ValueError, match="is not in"):
        check_export({"export": {"file": str(outside)}}, run, ["steps=3"], card="model.yaml")
    inside.parent.mkdir()
    (inside.parent / "model.yaml").write_text("x")
    with pytest.raises(ValueError, match="would replace a file"):
        check_export({"export": {"file": str(inside)}}, run, [], card="model.yaml")


def test_names_are_printed_without_control_characters():
    assert printable("a\x1b[2J\nb\u202ec\r\x00é\udcff") == r"a\x1b[2J\nb\u202ec\r\x00é\udcff"
    assert printable("x" * 100, 20) == "x" * 16 + " ..."
