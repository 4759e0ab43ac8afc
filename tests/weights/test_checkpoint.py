import io
import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ldm.weights import checkpoint
from ldm.weights.checkpoint import CheckpointError, Layout
from ldm.weights.safe import STAND_INS
from scripts import convert_checkpoint
from tests.stage_one import STAGE_ONE

ONE = torch.ones(1)


class Marker:
    """Pickles to a call with a visible effect when it is executed."""

    def __init__(self, call, *args):
        self.call = (call, args)

    def __reduce__(self):
        return self.call


def network(width=3):
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width))


def parts(*, widths=None):
    """One small network per slot of stage one."""
    widths = dict.fromkeys(STAGE_ONE.slots, 3) | (widths or {})
    return {slot: network(width) for slot, width in widths.items()}


def stage_one_file(modules):
    state = {}
    for slot, module in modules.items():
        (prefix,) = STAGE_ONE.slots[slot]
        state |= {prefix + name: value.clone() for name, value in module.state_dict().items()}
    return state


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


# ---- reading


def lightning_checkpoint(monkeypatch, state):
    """A checkpoint as of Lightning 1.4: the class of a callback as a key, and NumPy numbers."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {
        "epoch": 3,
        "global_step": 9000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {
            module.ModelCheckpoint: {"monitor": "val/loss", "best_model_score": torch.tensor(0.5), "dirpath": "x"}
        },
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 5e-5}]}],
        "lr_schedulers": [{"base_lrs": [np.float64(5e-5)], "last_epoch": 3, "_last_lr": [np.float32(5e-5)]}],
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_lightning_checkpoint_gives_its_weights(tmp_path, monkeypatch, legacy):
    state = network().state_dict()
    content, path = lightning_checkpoint(monkeypatch, state), tmp_path / "mgldvsr_unet.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    got = checkpoint.read(path)
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) for name in state)


def test_numpy_names_of_both_generations_are_inert():
    names = {f"{c.__module__}.{c.__qualname__}" for c in STAND_INS}
    assert {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"} <= names
    assert all(vars(c(1, 2, x=3)) == {} for c in STAND_INS)


@pytest.mark.parametrize(
    ("call", "named"), [(os.system, "system"), (eval, "eval"), (os.mkdir, "mkdir"), (types.SimpleNamespace, "types.")]
)
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path, call, named, form):
    trace, path = tmp_path / "trace", tmp_path / "evil.ckpt"
    argument = {os.system: f"mkdir {trace}", eval: f"__import__('os').mkdir({str(trace)!r})", os.mkdir: str(trace)}
    content = {"state_dict": {"w": torch.ones(2)}, "x": Marker(call, *filter(None, [argument.get(call)]))}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(path)
    assert not trace.exists()
    if form != "pickle":
        assert named in one_line(error) and "convert it" in str(error.value)
    one_line(error)


def test_the_allow_list_does_not_outlive_the_reading(tmp_path, monkeypatch):
    before = set(torch.serialization.get_safe_globals())
    torch.save(lightning_checkpoint(monkeypatch, {"w": torch.ones(1)}), tmp_path / "a.ckpt")
    checkpoint.read(tmp_path / "a.ckpt")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("container", [(), ("state_dict",), ("model",), ("params",), ("state_dict", "model")])
def test_containers_and_the_dataparallel_prefix_are_removed(tmp_path, container):
    content = {"module.a.weight": torch.arange(3.0), "module.b": torch.ones(1)}
    for key in container:
        content = {key: content}
    torch.save(content, tmp_path / "x.pth")
    assert checkpoint.read(tmp_path / "x.pth").keys() == {"a.weight", "b"}


def test_a_prefix_of_only_some_names_is_kept(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.pth")
    assert checkpoint.read(tmp_path / "x.pth").keys() == {"module.a", "b"}


def damaged_files() -> dict[str, tuple[str, bytes]]:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2000)}, buffer)
    header = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    whole = struct.pack("<Q", len(header)) + header + bytes(16)
    return {
        "empty": ("a.ckpt", b""),
        "empty safetensors": ("a.safetensors", b""),
        "cut zip": ("a.ckpt", buffer.getvalue()[:3000]),
        "cut tail": ("a.ckpt", buffer.getvalue()[:-100]),
        "cut safetensors": ("a.safetensors", whole[:-5]),
        "cut header": ("a.safetensors", whole[:20]),
        "huge header": ("a.safetensors", struct.pack("<Q", 1 << 62) + b"{"),
        "noise": ("a.pth", bytes(range(256)) * 8),
        "noise safetensors": ("a.safetensors", bytes(range(255, -1, -1)) * 8),
        "text": ("a.bin", b"hello world\n"),
        "web page": ("a.ckpt", b"<!DOCTYPE html><html>Sign in</html>"),
        "pointer": ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "zip as safetensors": ("a.safetensors", buffer.getvalue()),
        "safetensors as zip": ("a.ckpt", whole),
        "suffix": ("a.onnx", whole),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path, kind):
    name, content = damaged_files()[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(tmp_path / name)
    line = one_line(error)
    assert str(tmp_path / name) in line
    assert "PyTorch" not in line or line.endswith("not a PyTorch weight file; copy it again"), "no words of the reader"


@pytest.mark.parametrize("content", [{}, [ONE], ONE, {"state_dict": {}}, {"epoch": 3}, {3: ONE}], ids=str)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: .*expected"):
        checkpoint.read(tmp_path / "x.pt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no weight file"):
        checkpoint.read(tmp_path / "x.ckpt")


# ---- loading


def test_load_fills_every_entry():
    source, target = network(), network()
    source[1].running_mean.fill_(7)
    checkpoint.load(target, source.state_dict())
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_other_widths_are_reported_as_a_wrong_configuration():
    with pytest.raises(CheckpointError, match=r"6 mis-shaped: 0\.weight \(file \(4, .*wrong configuration"):
        checkpoint.load(network(3), network(4).state_dict())


def test_a_few_names_and_the_count():
    state = {f"extra.{i}": torch.ones(1) for i in range(30)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(network(), network().state_dict() | state)
    text = one_line(error)
    assert "30 unexpected" in text and text.count("extra.") == 3


def test_nothing_changes_when_something_does_not_fit():
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = network().state_dict()
    del state["1.bias"]
    with pytest.raises(CheckpointError, match="1 missing: 1.bias"):
        checkpoint.load(target, state)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


def test_named_tolerances():
    target, state = network(), network().state_dict() | {"loss.logvar": torch.ones(1)}
    kept = target[1].bias.data.fill_(5).clone()
    del state["1.bias"]
    checkpoint.load(target, state, tolerated_missing=["1.b*"], ignored=["loss.*"])
    assert torch.equal(target[1].bias, kept) and torch.equal(target[0].weight, state["0.weight"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_an_entry_with_nan_is_reported(bad):
    state = network().state_dict()
    state["0.weight"][1, 0, 0, 0] = bad
    with pytest.raises(CheckpointError, match=r"0\.weight holds 1 NaN or infinite"):
        checkpoint.load(network(), state)


def test_half_precision_files_and_meta_networks_keep_the_networks_dtype():
    state = {n: v.half() if v.is_floating_point() else v for n, v in network().state_dict().items()}
    with torch.device("meta"):
        target = network()
    checkpoint.load(target, state)
    assert target[0].weight.dtype == torch.float32 and torch.equal(target[0].weight, state["0.weight"].float())
    assert isinstance(target[0].weight, nn.Parameter) and target[1].num_batches_tracked.device.type == "cpu"


def test_a_meta_network_must_be_filled_completely():
    with torch.device("meta"):
        target = network()
    state = network().state_dict()
    del state["1.bias"]
    with pytest.raises(CheckpointError, match="1.bias is on the meta device"):
        checkpoint.load(target, state, tolerated_missing=["1.bias"])


# ---- slots


def test_stage_one_fills_its_slots_with_or_without_schedule():
    source = parts()
    state = stage_one_file(source)
    for extra in ({}, {name: torch.ones(1000) for name in checkpoint.SCHEDULE_BUFFERS}):
        target = parts()
        checkpoint.load_slots(target, state | extra, STAGE_ONE)
        for slot in source:
            assert torch.equal(source[slot][0].weight, target[slot][0].weight)


def test_slots_that_were_not_built_must_be_named_when_the_file_has_them():
    state, built = stage_one_file(parts()), parts()
    built["text"] = None
    del built["flow"]
    with pytest.raises(CheckpointError, match="14 unexpected.*also holds text, flow.*absent"):
        checkpoint.load_slots(built, state, STAGE_ONE)
    checkpoint.load_slots(built, state, STAGE_ONE, absent=["text", "flow"])
    small = {n: v for n, v in state.items() if not n.startswith(("cond_", "flownet"))}
    assert checkpoint.slots_present(small, STAGE_ONE) == ["unet", "autoencoder", "structure"]
    checkpoint.load_slots(built, small, STAGE_ONE)


def test_a_slot_the_file_does_not_hold_is_named():
    state = {n: v for n, v in stage_one_file(parts()).items() if not n.startswith("flownet")}
    with pytest.raises(CheckpointError, match="7 missing: flownet_model.0.weight.*holds nothing for flow"):
        checkpoint.load_slots(parts(), state, STAGE_ONE)


def test_an_unknown_slot():
    with pytest.raises(ValueError, match="got slot 'vae', expected some of unet"):
        checkpoint.load_slots({"vae": network()}, {}, STAGE_ONE)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder, self.quant_conv, self.post_quant_conv = (network() for _ in range(4))


def test_only_entries_that_match_a_pattern_are_ignored():
    """As in stage 2, which was trained with networks of the loss."""
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    layout = Layout("video_vae_cfw.ckpt", {"sequence_autoencoder": {part: part for part in parts}}, ("loss.*",))
    source, target = Sequence(), Sequence()
    state = source.state_dict() | {"loss.logvar": torch.zeros(()), "loss.flownet.mean": torch.ones(3)}
    checkpoint.load_slots({"sequence_autoencoder": target}, state, layout)
    assert torch.equal(source.decoder[0].weight, target.decoder[0].weight)
    with pytest.raises(CheckpointError, match="1 unexpected: lossy"):
        state["lossy"] = torch.ones(1)
        checkpoint.load_slots({"sequence_autoencoder": target}, state, layout)


def test_the_other_file_is_recognised():
    names = ["decoder.fusion_layer_1.encode_enc_1.conv1.weight", "decoder.temporal_mixing.temporal_alpha"]
    state = {name: torch.ones(1) for name in names}
    with pytest.raises(CheckpointError, match=r"looks like video_vae_cfw\.ckpt, expected mgldvsr_unet"):
        checkpoint.load_slots(parts(), state, STAGE_ONE)


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (["fnet.conv1.weight", "cnet.conv1.weight", "update_block.gru.weight"], "raft-things.pth"),
        (["mean", "basic_module.0.basic_module.0.weight"], "spynet_sintel_final-3d2a1287.pth"),
        (["model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.bias"], "v2-1_512-ema-pruned.ckpt"),
        (["something.else"], ""),
        ([], ""),
    ],
)
def test_recognise(names, file):
    assert checkpoint.recognise(names) == file


# ---- finding, writing, converting


def test_find_prefers_safetensors_and_says_what_it_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has none of mgldvsr_unet\.safetensors, mgldvsr_unet\.ckpt"):
        checkpoint.find(tmp_path, ["mgldvsr_unet"])
    (tmp_path / "flownets").mkdir()
    for name in ("mgldvsr_unet.ckpt", "mgldvsr_unet.safetensors", "flownets/raft-things.pth"):
        (tmp_path / name).touch()
    assert checkpoint.find(tmp_path, ["mgldvsr_unet"]).name == "mgldvsr_unet.safetensors"
    assert checkpoint.find(tmp_path, ["mgldvsr_unet.ckpt"]).name == "mgldvsr_unet.ckpt"
    assert checkpoint.find(tmp_path, ["raft-other", "raft-things"]) == tmp_path / "flownets" / "raft-things.pth"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        checkpoint.find(tmp_path / "no", ["raft-things"])


def test_save_and_read_keep_shared_entries_and_metadata(tmp_path):
    path, shared = tmp_path / "x.safetensors", torch.arange(6.0).reshape(2, 3)
    state = {"a": shared, "b": shared, "c": shared.t(), "d": torch.tensor(3), "e": shared[1]}
    checkpoint.save(path, state, {"seed": 3})
    got = checkpoint.read(path)
    assert got.keys() == state.keys() and all(torch.equal(got[name], state[name]) for name in state)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "seed": "3"}
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.ones(1)})

    def full_disk(state, name, metadata):
        name.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match=r"x\.safetensors: cannot be written .*No space"):
        checkpoint.save(path, {"a": torch.zeros(1)})
    assert checkpoint.read(path)["a"].item() == 1 and os.listdir(tmp_path) == ["x.safetensors"]


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checkpoint.sha256(tmp_path / "abc") == expected


def test_convert_round_trip(tmp_path, monkeypatch, capsys):
    state = stage_one_file(parts()) | {"betas": torch.full((1000,), 1e-7)}
    state["alias"] = state["betas"]
    source, target = tmp_path / "in.ckpt", tmp_path / "out.safetensors"
    torch.save(lightning_checkpoint(monkeypatch, state), source)
    assert convert_checkpoint.main([str(source), str(target)]) == 0
    got = checkpoint.read(target)
    assert got.keys() == state.keys() and all(torch.equal(got[name], state[name]) for name in state)
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    assert metadata["source_name"] == "in.ckpt" and metadata["source_sha256"] == checkpoint.sha256(source)
    capsys.readouterr()
    assert convert_checkpoint.main([str(source), str(target)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert convert_checkpoint.main([str(source), str(target), "--half", "--force"]) == 0
    got = checkpoint.read(target)
    assert got["betas"].dtype == got["model.diffusion_model.1.running_var"].dtype == torch.float32
    assert torch.equal(got["model.diffusion_model.0.weight"], state["model.diffusion_model.0.weight"].half())


@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "w holds 1 NaN or infinite"), (-1e6, "w holds 1e+06, expected at most 65504")]
)
def test_convert_refuses_what_would_not_be_finite(tmp_path, capsys, value, says):
    torch.save({"w": torch.tensor([1.0, value])}, tmp_path / "in.pth")
    assert convert_checkpoint.main([str(tmp_path / "in.pth"), "--half"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "in.safetensors").exists()
