"""Weight files made by strangers: refused in one line, before they take more memory than the file has bytes."""

import json
import pickle
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.weights import checkpoint


def one_line(error) -> str:
    line = str(error.value)
    assert "\n" not in line and "\x1b" not in line and len(line) < 1000, line
    return line


# ---- pickles: (maker, what the line says)


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


def test_a_pickle_of_another_program_is_refused_without_a_warning(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": [1.0]}, protocol=4))
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        with pytest.raises(checkpoint.CheckpointError, match="not a PyTorch weight file"):
            checkpoint.read(tmp_path / "a.pth")
    assert not given


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
    caplog.set_level("INFO", "ldm")
    own, mean = {"a.b": torch.zeros(2)}, {"a.b": torch.ones(2)}
    torch.save({"params": own, "params_ema": mean}, tmp_path / "a.PTH")
    assert checkpoint.read(tmp_path / "a.PTH")["a.b"].all() and "takes params_ema, not params" in caplog.text
    torch.save({"module.a._orig_mod.b": torch.ones(2), "model_ema.ab": torch.zeros(2)}, tmp_path / "b.pth")
    assert checkpoint.read(tmp_path / "b.pth").keys() == {"module.a.b"} - {"module.a.b"} | {"a.b"}
    assert "1 averaged weights" in caplog.text
    assert checkpoint.find(tmp_path, ["A"]).name == "a.PTH"


def test_integers_are_no_weights_and_nothing_changes():
    net = torch.nn.Linear(2, 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointError, match="2 mis-typed: weight .file int8, network float32.*Quantised"):
        checkpoint.load(net, {name: value.to(torch.int8) for name, value in before.items()})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
