"""Building methods from weight files and YAML: search, recognition, and error messages."""

import itertools
import json
import shutil

import pytest
import torch

from ldm import config
from ldm.engine.assemble import ROOT, find_weights, load_method, read_model, read_settings, weight_files
from ldm.engine.flags import known_flags
from ldm.engine.jobs import Model
from ldm.nets.raft import RAFT
from ldm.nets.spynet import SpyNet
from ldm.weights import checkpoint
from ldm.weights.checkpoint import CheckpointError
from tests.marks import mostly_slow
from tests.methods.toy import TOY, clip, method, randomise

ONE, TWO = "mgldvsr_unet", "video_vae_cfw"
ALL = ("unet", "structure", "autoencoder", "text")
PREFIXES = next(entry.fills for entry in weight_files(read_model(TOY)) if entry.name == ONE)
SMALL_RAFT = "flows.raft.params={model: small, iterations: 1}"


def stage_one(*slots: str, **extra) -> dict[str, torch.Tensor]:
    """A stage-1 file of the toy networks with the given slots and `extra` networks by slot."""
    toy, state = method(), {}
    for slot, net in ({slot: toy.networks[slot] for slot in slots} | extra).items():
        (prefix,) = PREFIXES[slot]
        state |= {prefix + name: value.clone() for name, value in net.state_dict().items()}
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder like that of the embedded model: both files and the card."""
    folder = tmp_path_factory.mktemp("weights")
    write(stage_one(*ALL), folder / f"{ONE}.safetensors")
    write(method().networks["sequence_decoder"].state_dict(), folder / f"{TWO}.safetensors")
    (folder / "model.yaml").write_text(TOY.read_text().replace("../../configs", str(ROOT / "configs")))
    return folder


@pytest.fixture
def folder(weights, tmp_path):
    """A copy of `weights` that may be modified."""
    return shutil.copytree(weights, tmp_path / "weights")


def write(state, file) -> None:
    checkpoint.save(file, state)


def assert_same_weights(built, *, rounded: bool = False):
    for network, module in method().networks.items():
        state = built.networks[network].state_dict() if network != "flow" else {}
        for name, expected in module.state_dict().items() if network != "flow" else ():
            assert state[name].dtype == expected.dtype and not state[name].is_meta
            assert torch.equal(state[name], expected.half().float() if rounded else expected), name


def assert_same_state(a, b) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def said(*args, kind=(CheckpointError, config.ConfigError, FileNotFoundError, ValueError), **kwargs) -> str:
    with pytest.raises(kind) as error:
        load_method(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_for_certain_settings_replaces_networks_of_another(folder):
    """Settings may be nested, such as where sampling starts."""
    student = {name: value + 1 for name, value in stage_one("unet").items()}
    write(student, folder / "student.safetensors")
    entry = {
        "files": ["student"],
        "fills": {"unet": "model.diffusion_model."},
        "only": {"method.params.sampling.params.initial": "lq"},
    }
    settings = config.load(folder / "model.yaml", overrides=[f"+weights.student={json.dumps(entry)}"])
    config.save(settings, folder / "model.yaml")
    usual = load_method(folder)
    assert_same_weights(usual)
    other = load_method(folder, overrides=["+method.params.sampling.params.initial=lq"])
    for name, value in usual.networks["unet"].state_dict().items():
        assert torch.equal(other.networks["unet"].state_dict()[name], value + 1)
    assert_same_state(other.networks["structure"], usual.networks["structure"])
    (folder / "student.safetensors").unlink()
    message = said(folder, overrides=["+method.params.sampling.params.initial=lq"])
    assert "unet with method.params.sampling.params.initial=lq needs student" in message


# ---- search and recognition


def test_a_folder_gives_the_method_of_its_card(weights):
    built = load_method(weights)
    assert_same_weights(built)
    difference = built.restore(clip(2), upscale=2) - method().restore(clip(2), upscale=2)
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[::3])
def test_named_files_come_in_any_order(weights, tmp_path, order):
    raft = RAFT("small", iterations=1)
    write(raft.state_dict(), tmp_path / "any name.safetensors")
    files = [weights / f"{ONE}.safetensors", weights / f"{TWO}.safetensors", tmp_path / "any name.safetensors"]
    found = find_weights(*(files[k] for k in order))
    assert [found.files[name] for name in (ONE, TWO, "raft-things")] == files


def test_named_files_keep_the_card_beside_them(weights):
    assert_same_weights(load_method(weights / f"{TWO}.safetensors", str(weights / f"{ONE}.safetensors")))


def test_a_method_disables_tf32(folder, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_method(folder)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_named_configurations_replace_the_card(folder):
    (folder / "model.yaml").write_text("networks: {}\n")
    assert_same_weights(load_method(folder, configs=[TOY]))


def test_files_as_released_hold_more_than_is_used(folder):
    """All prefixes of the published files, the buffers of the schedule, and the loss networks, as pickles."""
    raft = randomise(RAFT("small", iterations=1))
    state = stage_one(*ALL, flow=raft) | dict.fromkeys(checkpoint.SCHEDULE_BUFFERS, torch.ones(1000))
    torch.save({"state_dict": state, "epoch": 3, "global_step": 7, "optimizer_states": []}, folder / f"{ONE}.ckpt")
    (folder / f"{ONE}.safetensors").unlink()
    two = {"loss.logvar": torch.zeros(()), "loss.flownet.x": torch.ones(2)}
    two |= method().networks["sequence_decoder"].state_dict()
    torch.save({"state_dict": two}, folder / f"{TWO}.ckpt")
    (folder / f"{TWO}.safetensors").unlink()
    assert_same_weights(load_method(folder))
    built = load_method(folder, overrides=["flow=raft", SMALL_RAFT])
    assert_same_weights(built)
    assert_same_state(built.networks["flow"], raft)


def test_half_precision_files_are_upcast(folder):
    for name in (ONE, TWO):
        file = folder / f"{name}.safetensors"
        write({k: v.half() for k, v in checkpoint.read(file).items()}, file)
    assert_same_weights(load_method(folder), rounded=True)


@mostly_slow("held", [True, False])
def test_a_model_without_text_needs_none_in_the_file(folder, held):
    write(stage_one(*(ALL if held else ALL[:3])), folder / f"{ONE}.safetensors")
    settings = config.load(folder / "model.yaml")
    settings.networks.text = {"target": "ldm.nets.text.FixedContext", "params": {"tokens": 3, "width": 16}}
    config.save(settings, folder / "model.yaml")
    built = load_method(folder)
    assert built.networks["text"]().shape == (1, 3, 16)
    assert torch.isfinite(built.restore(clip(1), upscale=1)).all()


@mostly_slow("place", ["flownets", "."])
@mostly_slow("with_constants", [False, True])
def test_a_flow_network_is_found_beside_the_weights(folder, place, with_constants):
    net = randomise(SpyNet(), 3)
    state = {k: v for k, v in net.state_dict().items() if with_constants or k not in net.constant_buffers}
    (folder / place).mkdir(exist_ok=True)
    torch.save(state, folder / place / "spynet_sintel_final-3d2a1287.pth")
    built = load_method(folder, overrides=["flow=spynet"])
    assert_same_state(built.networks["flow"], net)
    assert built.restore(clip(2), upscale=1).shape == (2, 3, 16, 16)


def test_the_hash_of_a_flow_network_is_noted(folder):
    torch.save(SpyNet().state_dict(), folder / "spynet_sintel_final-3d2a1287.pth")
    found = find_weights(folder)
    for flow, noted in ("spynet", {"spynet_sintel_final-3d2a1287"}), ("dis", set()):
        settings = read_settings(found, overrides=[f"flow={flow}"])
        model = Model(found, settings, "cpu", rounding=None)
        assert set(model.hashes) == {ONE, TWO} | noted


def test_a_flow_network_may_be_named(weights, tmp_path):
    raft = randomise(RAFT("small", iterations=1))
    torch.save({f"module.{k}": v for k, v in raft.state_dict().items()}, tmp_path / "mine.pth")
    files = tmp_path / "mine.pth", weights / f"{ONE}.safetensors", weights / f"{TWO}.safetensors"
    built = load_method(*files, overrides=["flow=raft", SMALL_RAFT])
    assert torch.equal(built.networks["flow"].fnet.conv1.weight, raft.fnet.conv1.weight)


def test_overrides_come_after_the_preset_and_the_preset_after_the_card(weights):
    files = find_weights(weights)
    params = read_settings(files).method.params
    assert "patch" not in params and params.windows.params.tile == 16
    params = read_settings(files, preset="released", overrides=["method.params.patch=64"]).method.params
    assert (params.patch, params.stride) == (64, 750)
    assert params.windows.params.tile == 64 and params.sampling.params.guidance == "released"
    assert params.sampling.params.prediction == "v"  # what the weights were trained for stays
    assert read_settings(files, overrides=["flow=spynet"]).flow == "spynet"


# ---- errors


@mostly_slow(
    ("options", "says"),
    [
        ({"preset": "relased"}, "preset 'relased', expected one of four_steps, overlapped, released"),
        ({"overrides": ["flow=farneback"]}, "flow: got farneback, expected one of dis, raft, spynet"),
        ({"overrides": ["flow=spynet"]}, "needs spynet_sintel_final-3d2a1287: put spynet_sintel_final-3d2a1287 into "),
        ({"overrides": ["flow=raft"]}, "(README), or choose another flow"),
        ({"overrides": ["method.params.sampling.params.stepz=3"]}, "known is method.params.sampling.params.steps"),
        ({"overrides": ["method.params.sampling.params.steps=0"]}, "got 0 steps"),
        ({"overrides": ["method.params.windows.params.weight=hat"]}, "weight 'hat', expected one of gaussian"),
        ({"overrides": ["+method.params.seed=3"]}, "MGLD has no argument 'seed'"),
        ({"overrides": ["networks.unet.params.model_channels=64"]}, "Same names, other widths"),
        ({"overrides": ["networks.unet.params.num_res_blocks=2"]}, "other levels or blocks"),
        ({"configs": ["nowhere.yaml"]}, "no configuration file nowhere.yaml"),
        ({"configs": [ROOT / "configs" / "flows.yaml"]}, "key, expected a model's configuration"),
    ],
    fast=6,
)
def test_a_wrong_word_is_refused(weights, options, says):
    assert says in said(weights, **options)


@pytest.mark.parametrize("missing", [ONE, TWO])
def test_a_missing_file_is_named(folder, missing):
    (folder / f"{missing}.safetensors").unlink()
    assert missing in said(folder, kind=FileNotFoundError)
    (kept,) = folder.glob("*.safetensors")
    assert f"without {missing}" in said(kept)


def test_missing_paths_are_reported(weights, tmp_path):
    assert "nowhere" in said(tmp_path / "nowhere", kind=FileNotFoundError)
    assert "nowhere.ckpt" in said(weights / f"{ONE}.safetensors", tmp_path / "nowhere.ckpt", kind=FileNotFoundError)
    assert ONE in said(tmp_path, kind=FileNotFoundError)


def test_a_path_without_weights_is_reported_for_all_families(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere, expected the weights of a model"):
        find_weights(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no weight file .*nowhere\.ckpt"):
        find_weights(tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match="no weights of a known family.*mgldvsr.*stablevsr.*upscale_a_video"):
        find_weights(tmp_path)


def test_a_file_in_the_wrong_slot_says_what_it_is(folder):
    one, two = folder / f"{ONE}.safetensors", folder / f"{TWO}.safetensors"
    assert "looks like video_vae_cfw.ckpt" in said(two, two)
    swap = one.rename(folder / "x")
    one, two = two.rename(one), swap.rename(two)
    text = said(folder)
    assert one.name in text and "looks like video_vae_cfw.ckpt, expected mgldvsr_unet" in text
    shutil.copy(two, one)
    assert "looks like mgldvsr_unet.ckpt, expected video_vae_cfw" in said(folder)


def test_files_that_are_not_weights_are_reported(folder, tmp_path):
    write({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    assert "other.safetensors: looks like nothing known" in said(tmp_path / "other.safetensors")
    (folder / f"{TWO}.safetensors").write_text("no weights")
    assert f"{TWO}.safetensors" in said(folder)


def test_a_named_flow_needs_its_file(weights):
    files = weights / f"{ONE}.safetensors", weights / f"{TWO}.safetensors"
    line = said(*files, overrides=["flow=raft"])
    assert "flow with flow=raft needs raft-things: name raft-things among the weights (README), or choose" in line


@mostly_slow(("name", "entry"), [(ONE, "model.diffusion_model.out.2.weight"), (TWO, "decoder.conv_out.bias")])
def test_weights_with_nan_are_reported(folder, name, entry):
    state = checkpoint.read(folder / f"{name}.safetensors")
    state[entry] = torch.full_like(state[entry], float("nan"))
    write(state, folder / f"{name}.safetensors")
    assert entry in said(folder, kind=CheckpointError)


def test_a_text_tower_without_weights_is_refused(folder):
    write(stage_one(*ALL[:3]), folder / f"{ONE}.safetensors")
    assert "holds nothing for text" in said(folder, kind=CheckpointError)


def test_help_names_each_family_of_a_flag_once():
    flags = known_flags()
    assert flags["n_frames"].families == ("mgldvsr", "upscale_a_video")
    assert all(len(set(flag.families)) == len(flag.families) for flag in flags.values())
