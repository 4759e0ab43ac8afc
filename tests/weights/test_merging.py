"""Low-rank changes and other U-Nets put into a file of stage 1: names at full size, arithmetic at toy width."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm import config
from ldm.weights.checkpoint import CheckpointError
from ldm.weights.merging import PREFIX, exchange_layers, merge_changes
from ldm.weights.stable_diffusion import layers_of_stable_diffusion
from scripts import merge_weights
from tests.methods import toy

GOLDEN = Path(__file__).parents[1] / "golden" / "j_stage1_keys.json.gz"
DOWN, MIDDLE, CONV, TIME = (
    "input_blocks.3.1.transformer_blocks.0.attn1.to_out.0",
    "middle_block.2.transformer_blocks.0.attn2.to_k",
    "output_blocks.1.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
)


def published_names():
    keys = json.loads(gzip.open(GOLDEN, "rt").read())
    return keys, [entry[0].removeprefix(PREFIX) for entry in keys["entries"] if entry[0].startswith(PREFIX)]


def test_every_layer_of_stable_diffusion_has_its_names():
    """686 entries, the number in SD 2.1's U-Net; the recorded names of its middle block; ends of both halves."""
    keys, own = published_names()
    layers = layers_of_stable_diffusion(own)
    entries = [name for name in own if name.rpartition(".")[0] in layers]
    assert len(entries) == 686 and not [name for name in entries if "spade" in name or "temporal" in name]
    names = list(layers.values())
    assert len({n.original for n in names}) == len({n.diffusers for n in names}) == len(layers)
    middle = {name.rpartition(".")[0].removeprefix(PREFIX) for name in keys["sd21"]["sd_entries_without_home"]}
    assert middle <= {layers[own].original for own in layers if own.startswith("middle_block.")}
    for own, original, diffusers in [
        ("input_blocks.1.1.proj_in", "input_blocks.1.1.proj_in", "down_blocks.0.attentions.0.proj_in"),
        ("input_blocks.3.0.op", "input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks.11.0.in_layers.2", "input_blocks.11.0.in_layers.2", "down_blocks.3.resnets.1.conv1"),
        ("middle_block.2.norm", "middle_block.1.norm", "mid_block.attentions.0.norm"),
        ("middle_block.4.emb_layers.1", "middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
        ("output_blocks.2.1.conv", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks.11.0.out_layers.3", "output_blocks.11.0.out_layers.3", "up_blocks.3.resnets.2.conv2"),
        ("output_blocks.8.2.conv", "output_blocks.8.2.conv", "up_blocks.2.upsamplers.0.conv"),
        ("out.2", "out.2", "conv_out"),
    ]:  # fmt: skip
        assert layers[own] == (original, diffusers)


def stage_one(seed=0, **changes):
    net = toy.randomise(config.instantiate(toy.settings().networks.unet), seed)
    state = {PREFIX + name: value.clone() for name, value in net.state_dict().items()}
    return state | {"first_stage_model.quant_conv.weight": torch.ones(2, 2)} | changes


def parts_of(shape, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator)
    return down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)


FORMS = {  # of the names of a change: for a layer, (lower part, upper part, alpha or None)
    "kohya": lambda n: [
        f"lora_unet_{n.diffusers.replace('.', '_')}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha")
    ],
    "kohya, names of Stable Diffusion": lambda n: [
        f"lora_unet_{n.original.replace('.', '_')}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha")
    ],
    "peft": lambda n: [f"unet.{n.diffusers}.lora_A.weight", f"unet.{n.diffusers}.lora_B.weight", None],
    "an adapter of peft": lambda n: [f"base_model.model.{n.diffusers}.lora_{x}.weight" for x in "AB"] + [None],
    "diffusers": lambda n: [f"unet.{n.diffusers}.lora.{x}.weight" for x in ("down", "up")] + [None],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_low_rank_change_is_added_wherever_it_belongs(form, scale):
    state = stage_one()
    layers, changes, deltas = layers_of_stable_diffusion(n.removeprefix(PREFIX) for n in state), {}, {}
    for seed, layer in enumerate((DOWN, MIDDLE, CONV, TIME)):
        weight = state[f"{PREFIX}{layer}.weight"]
        (down, up), (a, b, alpha) = parts_of(weight.shape, seed=seed), FORMS[form](layers[layer])
        changes |= {a: down, b: up} | ({alpha: torch.tensor(6.0)} if alpha else {})
        product = torch.einsum("or,ri->oi", up.reshape(len(up), 2), down.reshape(2, -1)).reshape(weight.shape)
        deltas[f"{PREFIX}{layer}.weight"] = scale * (3.0 if alpha else 1.0) * product
    merged = merge_changes(state, changes | {"lora_te_text_model_x.lora_up.weight": torch.ones(1, 1)}, scale=scale)
    assert merged.changed.keys() == deltas.keys() and merged.left["changes of text encoders"]
    for name, value in merged.state.items():
        torch.testing.assert_close(value, state[name] + deltas.get(name, 0))


def test_old_names_of_attention_processors_and_half_precision():
    state = {name: value.half() for name, value in stage_one().items()}
    layers = layers_of_stable_diffusion(n.removeprefix(PREFIX) for n in state)
    name = layers[DOWN].diffusers.removesuffix(".to_out.0")
    down, up = parts_of(state[f"{PREFIX}{DOWN}.weight"].shape)
    changes = {
        f"unet.{name}.processor.to_out_lora.{part}.weight": value for part, value in (("down", down), ("up", up))
    }
    merged = merge_changes(state, changes)
    (changed,) = merged.changed
    assert changed == f"{PREFIX}{DOWN}.weight" and merged.state[changed].dtype == torch.float16
    torch.testing.assert_close(merged.state[changed], (state[changed].float() + up @ down).half())


def other_unet(state, *, form):
    """Another U-Net in Stable Diffusion's names or diffusers', with linear projections as 1x1 convolutions."""
    layers, out = layers_of_stable_diffusion(n.removeprefix(PREFIX) for n in state), {}
    for name, value in state.items():
        layer, _, leaf = name.removeprefix(PREFIX).rpartition(".")
        if layer in layers:
            new = f"{PREFIX}{layers[layer].original}" if form == "original" else layers[layer].diffusers
            out[f"{new}.{leaf}"] = value[..., None, None] if layer.endswith("proj_in") and leaf == "weight" else value
    return out | {"cond_stage_model.x": torch.ones(1)}


@pytest.mark.parametrize("form", ["original", "diffusers"])
def test_another_u_net_takes_the_place_of_the_frozen_layers_alone(form):
    state, wanted = stage_one(), stage_one(seed=5)
    merged = exchange_layers(state, other_unet(wanted, form=form))
    for name, value in merged.state.items():
        own = "spade" in name or "temporal" in name or name.startswith(f"{PREFIX}middle_block.3.norm")
        source = state if own or not name.startswith(PREFIX) else wanted
        assert torch.equal(value, source[name]), name
    assert 100 < len(merged.changed) < len(state)


def test_the_lost_blocks_of_the_published_file_and_trained_layers_stay():
    """B3: proj_out of zeros marks them. Layers that differ from the base were trained."""
    idle = {f"{PREFIX}middle_block.2.proj_out.weight": torch.zeros(32, 32)}
    state, wanted = stage_one(**idle), stage_one(seed=5)
    base = {name: value.half() for name, value in other_unet(stage_one(), form="original").items()}
    base[f"{PREFIX}out.2.weight"] = base[f"{PREFIX}out.2.weight"] + 1
    merged = exchange_layers(state, other_unet(wanted, form="diffusers"), base=base)
    same = {name for name, value in merged.state.items() if torch.equal(value, state[name])}
    assert {
        f"{PREFIX}{n}" for n in ("middle_block.2.proj_in.weight", "middle_block.4.in_layers.2.weight", "out.2.bias")
    } <= same
    assert f"{PREFIX}middle_block.0.in_layers.2.weight" not in same
    assert [len(names) for names in merged.left.values()][1] == 1


@pytest.mark.parametrize(
    ("name", "shape", "line"),
    [
        ("lora_unet_nothing.lora_down.weight", (2, 4), "1 changes that no layer takes: nothing"),
        ("lora_unet_conv_in.hada_w1_a", (2, 4), "1 changes that no layer takes: lora_unet_conv_in.hada_w1_a"),
        ("lora_unet_conv_in.lora_down.weight", (2, 4), "got only down, expected a lower and an upper part"),
    ],
)
def test_other_changes_are_refused(name, shape, line):
    with pytest.raises(CheckpointError, match=line):
        merge_changes(stage_one(), {name: torch.ones(shape)})


def test_files_that_do_not_fit_are_refused():
    changes = {f"lora_unet_conv_in.lora_{part}.weight": torch.ones(7, 7, 1, 1) for part in ("up", "down")}
    with pytest.raises(CheckpointError, match=r"parts of \(7, 7, 1, 1\) and \(7, 7, 1, 1\) for a weight of"):
        merge_changes(stage_one(), changes)
    with pytest.raises(CheckpointError, match="entries are not in the other file"):
        exchange_layers(stage_one(), {"conv_in.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match="expected a file of stage 1"):
        merge_changes({"x.weight": torch.ones(1)}, changes)


def test_the_command_records_hashes_and_changes(tmp_path, capsys):
    state = stage_one()
    down, up = parts_of(state[f"{PREFIX}{DOWN}.weight"].shape)
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_"
    save_file(state, tmp_path / "unet.safetensors")
    save_file({f"{name}A.weight": down, f"{name}B.weight": up}, tmp_path / "lora.safetensors")
    words = [tmp_path / "unet.safetensors", "--lora", tmp_path / "lora.safetensors", "-o", tmp_path / "out.safetensors"]
    assert merge_weights.main([*map(str, words)]) == 0
    record = json.loads((tmp_path / "out.safetensors.json").read_text())
    assert [*record["changed"]] == [f"{PREFIX}{DOWN}.weight"] and record["files"].keys() == {"weights", "lora"}
    assert record["files"]["lora"]["sha256"] == merge_weights.checkpoint.sha256(tmp_path / "lora.safetensors")
    torch.testing.assert_close(
        load_file(tmp_path / "out.safetensors")[f"{PREFIX}{DOWN}.weight"], state[f"{PREFIX}{DOWN}.weight"] + up @ down
    )
    assert "changed 1 entries of attention" in capsys.readouterr().out
    assert merge_weights.main([*map(str, words)]) == 2 and "exists" in capsys.readouterr().err
