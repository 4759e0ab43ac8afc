import pytest
import torch

from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.raft import RAFT
from ldm.nets.text import OpenCLIPText
from ldm.weights.names import autoencoder_state, flow_state, renamed_by_rules, text_state

NEW = ("to_q", "to_k", "to_v", "to_out.0")
OLD = ("query", "key", "value", "proj_attn")


def tensors(*names, shape=(2, 2)):
    return {name: torch.full(shape, float(k)) for k, name in enumerate(names)}


@pytest.mark.parametrize("words", [NEW, OLD])
def test_old_and_new_names_of_the_attention_in_a_vae(words):
    names = [f"encoder.mid_block.attentions.0.{word}.weight" for word in words]
    found = autoencoder_state(tensors(*names))
    assert list(found) == [f"encoder.mid.attn_1.{letter}.weight" for letter in ("q", "k", "v", "proj_out")]
    assert all(value.shape == (2, 2, 1, 1) for value in found.values())


def test_levels_of_a_decoder_are_counted_from_the_other_end():
    names = ["decoder.up_blocks.0.resnets.1.conv1.bias", "decoder.up_blocks.2.resnets.0.conv_shortcut.bias",
             "decoder.up_blocks.1.upsamplers.0.conv.bias", "encoder.down_blocks.2.resnets.0.norm1.bias"]  # fmt: skip
    assert list(autoencoder_state(tensors(*names, shape=(2,)))) == [
        "decoder.up.2.block.1.conv1.bias", "decoder.up.0.block.0.nin_shortcut.bias", "decoder.up.1.upsample.conv.bias",
        "encoder.down.2.block.0.norm1.bias",
    ]  # fmt: skip


def test_a_file_of_old_and_new_names_is_refused():
    with pytest.raises(ValueError, match="mixes old and new"):
        autoencoder_state(
            tensors("encoder.mid_block.attentions.0.to_q.bias", "encoder.mid_block.attentions.0.query.bias")
        )


def test_names_without_a_rule_stay():
    assert renamed_by_rules({"conv_in.bias": 1}, [("^x", "y")]) == {"conv_in.bias": 1}


def test_q_k_and_v_are_stacked_and_position_ids_dropped():
    block = "text_model.encoder.layers.4.self_attn"
    names = [f"{block}.{letter}_proj.{leaf}" for letter in "kvq" for leaf in ("weight", "bias")]
    state = tensors(*names, shape=(1, 1)) | {"text_model.embeddings.position_ids": torch.arange(3)}
    found = text_state(state)
    assert list(found) == [f"transformer.resblocks.4.attn.in_proj_{leaf}" for leaf in ("weight", "bias")]
    assert found["transformer.resblocks.4.attn.in_proj_weight"].flatten().tolist() == [4, 0, 2]
    with pytest.raises(ValueError, match="k_proj.weight"):
        text_state({name: value for name, value in state.items() if "k_proj" not in name})


def test_a_norm_of_raft_is_held_under_both_names():
    found = flow_state(tensors("context_encoder.layer2.0.downsample.1.weight", "feature_encoder.conv.bias"))
    assert list(found) == ["cnet.layer2.0.downsample.1.weight", "fnet.conv2.bias", "cnet.layer2.0.norm3.weight"]


@torch.no_grad()
def test_the_tower_without_unused_parts_is_the_tower_before_its_last_block():
    toy = {"width": 16, "heads": 2, "vocab_size": 50, "context_length": 7}
    whole, short = OpenCLIPText(layers=3, **toy).eval(), OpenCLIPText(layers=2, skip_last=0, unused=False, **toy).eval()
    names = short.state_dict().keys()
    short.load_state_dict({name: value for name, value in whole.state_dict().items() if name in names})
    assert torch.equal(whole(), short())
    assert short.empty_prompt(pad=49).tolist() == [[48, 49, 49, 49, 49, 49, 49]]
    with pytest.raises(ValueError, match="skip_last=3 of 2 layers"):
        OpenCLIPText(layers=2, skip_last=3, **toy)


def test_fractions_of_a_width_make_whole_channels():
    vae = AutoencoderKL(ch=12, ch_mult=[1.0, 20 / 12, 28 / 12], num_res_blocks=1, norm_groups=4)
    assert [stage.block[-1].conv2.out_channels for stage in vae.encoder.down] == [12, 20, 28]
    with pytest.raises(ValueError, match="multiple of 5"):
        AutoencoderKL(ch=12, ch_mult=[1], norm_groups=5)


def test_entries_under_our_names_stay():
    text = OpenCLIPText(layers=2, width=8, heads=2, vocab_size=5, context_length=3)
    vae = AutoencoderKL(ch=8, ch_mult=[1, 2], num_res_blocks=1, norm_groups=4)
    with torch.device("meta"):
        raft = RAFT()
    for net, translate in ((text, text_state), (vae, autoencoder_state), (raft, flow_state)):
        state = net.state_dict()
        found = translate(state)
        assert found.keys() == state.keys() and all(found[name].shape == state[name].shape for name in state)
