"""The recipe of the small StableVSR: what it exports is what inference and the table of its claims take."""

from ldm import config
from ldm.engine.assemble import CONFIGS, load_method
from ldm.engine.export import write_export
from ldm.methods.contract import Request, restore_clip
from ldm.training.control_folder import write_control_folder
from scripts import benchmark
from tests.methods.toy import clip, randomise

RECIPE = CONFIGS / "stablevsr"


def test_the_exported_folder_is_a_model(tmp_path):
    settings = config.load(RECIPE / "tiny_unet.yaml", overrides=[f"export_folder={tmp_path}"])
    assert f"use it with --weights {tmp_path}" not in write_export(config.instantiate(settings["model"]), settings)
    control = randomise(config.instantiate(settings["networks"]["control"]), 1)
    write_control_folder(control, tmp_path / "controlnet")
    method = load_method(tmp_path, overrides=["method.params.sampling.params.steps=2"])
    assert method.channels == 10 and method.factor == 4 and method.sampling.grid == "aligned"
    assert sum(weight.numel() for network in method.networks.values() for weight in network.parameters()) < 5e6
    restored = restore_clip(method, clip(2), Request((16, 16), 2))
    assert restored.shape == (2, 3, 64, 64) and restored.isfinite().all()
    costs = dict.fromkeys(("sampling", "decoding", "flow", "once"), [0.0, 4000.0])
    peaks = [method.peak(Request((180, 320), 300), levers, costs) for levers in method.levers()]
    assert min(peaks) < max(peaks) / 4


def test_both_trainings_agree_on_the_method():
    first, second = (config.load(RECIPE / f"tiny_{name}.yaml") for name in ("unet", "tcm"))
    for key in ("method", "plan", "networks", "weights", "scale_factor"):
        assert config.plain(first)[key] == config.plain(second)[key], key
    trained, used = config.plain(second)["model"]["params"], config.plain(second)["method"]["params"]
    grids = trained["objective"]["params"]["grid"], used["sampling"]["params"]["grid"]
    assert grids[0] == grids[1], "the control network is used with the warp that it was trained with"


def test_the_rows_of_the_claims_are_settings_of_the_method(tmp_path):
    ablation = benchmark.read_node(RECIPE / "ablation.yaml", "ablation")
    rows = [name for name in ablation.rows if name != "bicubic"]
    assert rows[:3] == ["frame_wise", "forward", "bidirectional"] and len(ablation.claims) >= 4
    words = ["--dataset", "own", "--root", str(tmp_path)]
    for name in rows:
        benchmark.arguments([*words, *ablation.rows[name].get("options", ())])


def test_a_part_of_a_configuration_holds_what_it_names():
    settings = config.load(RECIPE / "tiny_unet.yaml")
    part = config.part_of(settings, ("family", "networks", "no_such_key"))
    assert {"family", "networks", "plan", "texts", "text", "flows", "flow"} == set(part)
