"""Configurations made by strangers: each is refused in one line, and nothing in them runs."""

import importlib
import json
import os
import pkgutil

import pytest
import torch

import main
from ldm import config
from ldm.engine.assemble import EMBEDDED, find_weights, read_model, read_settings
from ldm.engine.flags import flags_of
from scripts import degrade, upscale

DIS = "ldm.ops.dis.DISFlow"
ADAM = "ldm.training.optimization.Adam"
FIXED = "ldm.nets.text.FixedContext"


def one_line(error) -> str:
    line = str(error.value)
    assert "\n" not in line and "\x1b" not in line and len(line) < 1000, line
    return line


# ---- targets: (target and params, what the line says)

TARGETS = {
    "shell": ({"target": "os.system", "params": {"command": "touch RAN"}}, "not a class of this project"),
    "output of a command": ({"target": "subprocess.getoutput", "params": {"cmd": "touch RAN"}}, "not a class"),
    "process": ({"target": "subprocess.Popen", "params": {"args": ["touch", "RAN"]}}, "not a class"),
    "truncation": ({"target": "logging.FileHandler", "params": {"filename": "RAN"}}, "not a class"),
    "removal": ({"target": "shutil.rmtree", "params": {"path": "victim"}}, "not a class"),
    "evaluation": ({"target": "builtins.eval", "params": {"source": "1"}}, "not a class"),
    "import": ({"target": "importlib.import_module", "params": {"name": "antigravity"}}, "not a class"),
    "pickle": ({"target": "torch.load", "params": {"f": "victim"}}, "not a class"),
    "through a module": ({"target": "ldm.weights.safe.zipfile.os.system"}, "ldm.weights.safe has no 'zipfile'"),
    "module of a module": ({"target": "ldm.files.os.remove", "params": {"path": "victim"}}, "ldm.files has no 'os'"),
    "own function": (
        {"target": "ldm.files.write_atomically", "params": {"path": "RAN", "data": ""}},
        "no 'write_atomically'",
    ),
    "own class not declared": ({"target": "ldm.training.callbacks.PeriodicPictures"}, "can be built"),
    "re-export": ({"target": "ldm.training.diffusion.Adam", "params": {}}, "write ldm.training.optimization.Adam"),
    "name of a module": ({"target": "ldm.nets.unet"}, "no 'unet' that can be built"),
    "class method": ({"target": f"{DIS}.from_pretrained"}, "ldm.ops.dis has no 'DISFlow'"),
    "dunder": ({"target": f"{DIS}.__class__"}, "ldm.ops.dis has no 'DISFlow'"),
    "private": ({"target": "ldm.nets.unet._norm"}, "can be built"),
    "layer that is none": ({"target": "torch.nn.Module.load_state_dict"}, "not a class"),
    "function of torch.nn": ({"target": "torch.nn.factory_kwargs"}, "torch.nn has no layer"),
    "parallel wrapper": ({"target": "torch.nn.DataParallel", "params": {"module": None}}, "torch.nn has no layer"),
    "other class of Lightning": ({"target": "pytorch_lightning.loggers.CSVLogger", "params": {}}, "not a class"),
    "scripts": ({"target": "scripts.upscale.main"}, "not a class"),
    "tests": ({"target": "tests.test_hostile_configs.one_line"}, "not a class"),
    "no word": ({"target": 3}, "expected a dotted name"),
    "no name": ({"target": "os"}, "expected a dotted name"),
    "empty": ({"target": ""}, "expected a dotted name"),
    "control characters": ({"target": "os.\x1b[2Jsystem"}, "expected a dotted name"),
    "relative": ({"target": "..os.system"}, "expected a dotted name"),
    "key beside": ({"target": DIS, "params": {}, "exec": "x"}, "unknown key 'exec'"),
    "target for a word": ({"target": DIS, "params": {"preset": {"target": FIXED}}}, "expected a string"),
    "number for a word": ({"target": DIS, "params": {"preset": 3}}, "got 3, expected a string"),
    "word for a number": ({"target": FIXED, "params": {"width": "x"}}, "got 'x', expected a whole number"),
    "not finite": ({"target": ADAM, "params": {"lr": float("nan")}}, "expected a number"),
    "list of words for numbers": ({"target": ADAM, "params": {"lr": 1.0, "betas": ["a", "b"]}}, "expected a list"),
    "word for a network": (
        {"target": "ldm.training.decoder_loss.DecoderLoss", "params": {"discriminator": "x", "flow": "y"}},
        "got 'x', expected a Module",
    ),
    "another object for a network": (
        {
            "target": "ldm.training.decoder_loss.DecoderLoss",
            "params": {"discriminator": {"target": ADAM, "params": {"lr": 1.0}}, "flow": "y"},
        },
        "got a Adam, expected a Module",
    ),
    "huge": ({"target": "torch.nn.Linear", "params": {"in_features": 1 << 40, "out_features": 1 << 20}}, "Linear"),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_that_may_not_be_built(name, tmp_path, monkeypatch):
    node, says = TARGETS[name]
    (tmp_path / "victim").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(config.ConfigError) as error:
        config.instantiate({"a": [node]})
    assert says in one_line(error) and os.listdir() == ["victim"]


def test_networks_that_do_not_fit_are_refused_while_they_grow(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.config.bounds.free_host_memory", lambda: 80 * 1024)
    large = {"target": "torch.nn.Linear", "params": {"in_features": 300, "out_features": 100}}
    with pytest.raises(config.ConfigError, match="do not fit into memory"):
        config.instantiate([large])
    with torch.device("meta"):
        config.instantiate([large] * 3)
        monkeypatch.setattr("ldm.config.bounds.MOST_MODULES", 100)
        deep = {"ch": 32, "ch_mult": [1], "num_res_blocks": 1000}
        with pytest.raises(config.ConfigError, match="has more than 100 layers"):
            config.instantiate({"target": "ldm.nets.autoencoder.AutoencoderKL", "params": deep})


@pytest.mark.parametrize("params", [{"in_features": 0, "out_features": 3}, {"in_features": 3, "out_features": 0}])
def test_layers_without_weights_are_refused(params):
    with pytest.raises(config.ConfigError, match="has a Linear of .* weights, expected sizes of 1 and more"):
        config.instantiate({"target": "torch.nn.Linear", "params": params})


# ---- files of YAML: (text, what the line says)

DEEP = "[" * 20000 + "]" * 20000
BOMB = "seed: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{key}: &{anchor} [{', '.join(f'*{chr(ord(anchor) - 1)}' for _ in range(9))}]\n"
    for key, anchor in zip(["steps", "flow", "init", "model", "data", "export"], "bcdefg", strict=True)
)
ECHO = 'flow: "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"\n' + "".join(
    f'{key}: "{"${" + before + "}"}{"${" + before + "}"}{"${" + before + "}"}{"${" + before + "}"}"\n'
    for before, key in zip(
        ["flow", "flows", "init", "model", "data", "export", "method", "networks"],
        ["flows", "init", "model", "data", "export", "method", "networks", "output"],
        strict=True,
    )
)
YAML = {
    "environment": ("seed: ${oc.env:HOME}", "a resolver"),
    "resolver by pieces": ("flow: oc.env\nseed: ${${flow}:HOME}", "a resolver"),
    "resolver in a word": ("seed: a ${oc.env:HOME} b", "a resolver"),
    "resolver in a list": ("init: [1, {a: '${oc.decode:x}'}]", "a resolver"),
    "relative interpolation": ("output: {a: '${.b}', b: 1}", "an interpolation"),
    "circle of interpolations": ("seed: ${steps}\nsteps: ${seed}", "circle"),
    "interpolation of itself": ("output: {a: '${output}'}", "circle"),
    "growing interpolations": (ECHO, "more than"),
    "growing anchors": (BOMB, "more than"),
    "anchor in itself": ("seed: &a [*a]", "itself"),
    "deep lists": (f"seed: {DEEP}", "nested deeper"),
    "deep mappings": ("seed: " + "{a: " * 300 + "1" + "}" * 300, "nested deeper"),
    "large number": ("seed: 0x" + "f" * 100, "whole number of"),
    "large decimal": ("seed: " + "9" * 5000, "not a YAML mapping"),
    "large file": ("# " + "x" * 600_000 + "\nseed: 1", "more than 524288 bytes"),
    "python tag": ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "unknown key": ("sede: 3", "unknown key 'sede'; the nearest known is seed"),
    "unknown key of control characters": ('"\\x1b[2J\\nx": 3', "unknown key"),
    "list as a key": ("[a]: 3", "not"),
    "include above": ("include: ../outside.yaml", "is not below"),
    "include by its path": ("include: {outside}", "is not below"),
    "include of a link": ("include: link.yaml", "is not below"),
    "include of a device": ("include: /dev/zero", "is not below"),
    "include of no name": ("include: {a: 1}", "list of file names"),
    "include of itself": ("include: card/../card.yaml", "circle"),
    "many includes": ("include: [" + ", ".join(["more.yaml"] * 40) + "]", "more than 32 files"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_not_a_configuration(name, tmp_path, monkeypatch):
    text, says = YAML[name]
    monkeypatch.setenv("HOME", "secret")
    folder = tmp_path / "weights"
    (folder / "card").mkdir(parents=True)
    (tmp_path / "outside.yaml").write_text("seed: 7\n")
    (folder / "more.yaml").write_text("seed: 7\n")
    (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")
    (folder / "card.yaml").write_text(text.replace("{outside}", str(tmp_path / "outside.yaml")))
    kind = FileNotFoundError if "there is no" in says else config.ConfigError
    with pytest.raises(kind) as error:
        config.load(folder / "card.yaml")
    assert says in one_line(error) and "secret" not in str(error.value)


@pytest.mark.parametrize("key", ["networks", "weights", "method", "flags", "flows", "documents", "output"])
@pytest.mark.parametrize("value", [[1], 5, "word"])
def test_a_card_with_no_mapping(tmp_path, key, value):
    card = {"networks": {"a": {}}, "weights": {"a": {}}, "method": {"target": DIS}, key: value}
    (tmp_path / "model.yaml").write_text(json.dumps(card))
    with pytest.raises(config.ConfigError, match=f"config.{key}: got .*, expected a mapping"):
        read_model(tmp_path / "model.yaml")


def test_an_override_with_no_mapping():
    found = find_weights(EMBEDDED)
    with pytest.raises(config.ConfigError, match="config.output: got 5, expected a mapping"):
        read_settings(found, overrides=["output=5"])


def test_choices_of_a_flag_that_are_no_list():
    with pytest.raises(ValueError, match="config.flags.steps: got choices 5, expected a list"):
        flags_of({"flags": {"steps": {"key": "seed", "choices": 5}}})


def test_an_honest_card_loads_where_it_was_copied_to(tmp_path):
    text = (EMBEDDED / "model.yaml").read_text()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.yaml").write_text("seed: 7\n")
    (tmp_path / "model.yaml").write_text(text.replace("[tiny/model.yaml]", "[tiny/model.yaml, sub/more.yaml]"))
    loaded = config.load(tmp_path / "model.yaml")
    assert loaded.seed == 7 and loaded.networks.flow.target == DIS
    config.instantiate(loaded.networks.flow)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("sd_weights=011", "011"),
        ("sd_weights=12:30", "12:30"),
        ("sd_weights=no", "no"),
        ("sd_weights=a #1, b", "a #1, b"),
        ("sd_weights=[set] a", "[set] a"),
        ("sd_weights=@x", "@x"),
        ("sd_weights=k=v", "k=v"),
        ("sd_weights='011'", "011"),
        ("sd_weights=null", None),
        ("seed=011", 11),
        ("seed=1e-5", 1e-5),
        ("checkpointing=yes", True),
        ("checkpointing=off", False),
        ("init=[000, 011, yes, 1, a #2]", ["000", "011", "yes", "1", "a #2"]),
        ("+ema=[011, 1, yes, true, 1.5, null]", ["011", 1, "yes", True, 1.5, None]),
        ("+ema={file: a #1, n: 1}", {"file": "a #1", "n": 1}),
        ("+ema=a: b", "a: b"),
        ("model.params.only=[000,011]", ["000", "011"]),
        ("model.params.root=2024", "2024"),
    ],
)
def test_words_are_taken_as_what_their_key_expects(tmp_path, word, value):
    card = "sd_weights: x\nseed: 3\ncheckpointing: false\ninit: [a, b]\n"
    card += "model: {target: basicsr_deg.clips.folder_clips, params: {root: null, only: []}}\n"
    (tmp_path / "a.yaml").write_text(card)
    loaded = config.plain(config.load(tmp_path / "a.yaml", overrides=[word]))
    for key in word.lstrip("+").partition("=")[0].split("."):
        loaded = loaded[key]
    assert loaded == value and type(loaded) is type(value)


@pytest.mark.parametrize("text", ["&a [*a]", "[&a [*a]]", "{a: &a {b: *a}}", "[" * 5000, "!!python/name:os.system"])
def test_words_that_are_no_values_are_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.yaml").write_text("seed: 3\n")
    with pytest.raises(config.ConfigError, match="is not a YAML value") as error:
        config.load(tmp_path / "a.yaml", overrides=[f"+ema={text}"])
    one_line(error)


# ---- code of the user

MINE = """
import torch

def helper(): ...

class Mine(torch.nn.Module):
    def __init__(self, width: int, name: str = "x"):
        super().__init__()
        self.width = width
"""


def test_code_of_the_user_needs_his_trust(tmp_path, monkeypatch):
    (tmp_path / "module_of_a_user.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.yaml").write_text("model: {target: module_of_a_user.Mine, params: {width: 3, name: x}}\n")
    with pytest.raises(config.ConfigError, match="not a class of this project.*--trust MODULE"):
        config.instantiate(config.load(tmp_path / "a.yaml"))
    for trust in (["module_of_a"], ["module_of_a_user.Mine"]):
        with pytest.raises(config.ConfigError, match="not a class of this project"):
            config.instantiate(config.load(tmp_path / "a.yaml", trust=trust))
    loaded = config.load(tmp_path / "a.yaml", trust=["module_of_a_user"])
    changed = config.override(loaded, ["model.params.width=5", "model.params.name=011"])
    assert config.trusted(changed.model) == ("module_of_a_user",)
    assert config.instantiate(changed.model).width == 5
    with pytest.raises(config.ConfigError, match="has no class or function 'torch'"):
        config.instantiate({"target": "module_of_a_user.torch"}, trust=["module_of_a_user"])
    config.save(changed, tmp_path / "b.yaml")
    with pytest.raises(config.ConfigError, match="not a class of this project"):
        config.instantiate(config.load(tmp_path / "b.yaml").model)  # a file cannot ask for it


def test_what_is_declared_buildable_is_defined_there():
    declared = 0
    for package in ("ldm", "basicsr_deg"):
        found = importlib.import_module(package)
        for info in pkgutil.walk_packages(found.__path__, f"{package}."):
            module = importlib.import_module(info.name)
            for name in getattr(module, "BUILDABLE", ()):
                made = vars(module)[name]
                assert (made.__module__, made.__qualname__) == (info.name, name)
                declared += 1
    assert declared > 20


STAGE = """
class Invert:
    def __init__(self, *, most: float = 255.0):
        self.most = most

    def __call__(self, frames, rng, *, notes=None, size=None):
        return (self.most - frame for frame in frames)
"""


def test_commands_pass_on_whom_the_user_trusts(tmp_path, monkeypatch):
    (tmp_path / "stage_of_a_user.py").write_text(STAGE)
    monkeypatch.syspath_prepend(tmp_path)
    protocol = "{scale: 1, stages: {invert: {target: stage_of_a_user.Invert}}}"
    (tmp_path / "p.yaml").write_text(f"degradation: {{target: basicsr_deg.pipeline.Degradation, params: {protocol}}}\n")
    words = ["-i", "x", "-o", "y", "--protocol", str(tmp_path / "p.yaml")]
    asked = degrade.degradation_of(degrade.arguments([*words, "--trust", "stage_of_a_user"]))
    assert config.instantiate(asked).stages["invert"].most == 255
    with pytest.raises(config.ConfigError, match="not a class of this project"):
        config.instantiate(degrade.degradation_of(degrade.arguments(words)))
    commands = {
        upscale: ["-i", "x", "-o", "y"],
        main: ["--base", "x.yaml"],
    }
    for command, words in commands.items():
        assert command.arguments([*words, "--trust", "a", "--trust", "b.c"]).trust == ["a", "b.c"]
