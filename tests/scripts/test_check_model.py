"""scripts/check_model.py on a toy model with random weights: its tables, its verdicts and its exit status."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm import config
from ldm.metrics.measure import Measure, Recipe
from scripts import check_model
from tests.scripts import toy

CODED = {
    "target": "ldm.nets.autoencoder.AutoencoderKL",
    "params": {
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "z_channels": 24,
        "embed_dim": 24,
        "middle_attention": False,
        "patch": 2,
        "linear": True,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.make_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    toy.make_clip(folder / "one.mkv", 2, size=(64, 72))
    return folder


def run(gate, clips, *more):
    words = [gate, "-i", str(clips), "--protocol", "bicubic_x4", "--gt_size", "64x64", "--max_frames", "2", *more]
    return check_model.main(words)


def claims(out):
    """What the last table says of each claim."""
    rows = out.split("| claim | measured | holds |")[1].splitlines()[2:]
    return {cells[1].strip(): cells[3].strip() for row in rows if len(cells := row.split("|")) > 3}


def test_an_autoencoder_of_random_weights_passes_nothing(model, clips, capsys):
    assert run("autoencoder", clips, "--weights", str(model)) == 1
    found = claims(capsys.readouterr().out)
    assert found["at least 28 dB"] == found["better than the linear code"] == "no"


def test_an_autoencoder_alone_is_read_beside_its_configuration(clips, tmp_path, capsys):
    """A linear path fitted to the clip itself is the linear code, so it is not better."""
    net = config.instantiate(CODED)
    args = check_model.arguments(["autoencoder", "-i", str(clips), "--gt_size", "64x64", "--max_frames", "2"])
    (clip,) = check_model.load_clips(args)
    frames = torch.from_numpy(np.stack(clip.truth)).permute(0, 3, 1, 2).float() / 127.5 - 1
    net.fit_linear(frames)
    state = {f"first_stage_model.{name}": value for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "autoencoder.safetensors")
    card = tmp_path / "card.yaml"
    config.save({"networks": {"autoencoder": CODED}}, card)
    run("autoencoder", clips, "--weights", str(tmp_path), "--config", str(card))
    out = capsys.readouterr().out
    mean = [row.split("|") for row in out.splitlines() if row.startswith("| mean")]
    own, linear = (float(row[3]) for row in mean)
    assert own == pytest.approx(linear, abs=0.1) and "linear code of 24 numbers" in out
    assert claims(out)["better than the linear code"] == "no"


def test_seeds_of_a_random_network_differ_and_are_no_picture(model, clips, capsys, tmp_path):
    """The sequence decoder is not asked for: it may still have to be trained."""
    for name in ("mgldvsr_unet.safetensors", "model.yaml"):
        shutil.copy(model / name, tmp_path)
    assert run("seeds", clips, "--weights", str(tmp_path)) == 1
    found = claims(capsys.readouterr().out)
    assert found["two seeds less than 35 dB apart"] == "yes"
    assert found["at most 0.7 dB below bicubic"] == "no"


def test_steps_compare_the_default_with_one(model, clips, capsys, monkeypatch):
    def measures(names):
        score = Recipe("a stand-in", lambda before, look: float(look.frame.mean()))
        return [Measure(name, score, better="lower", reference=True) for name in names]

    monkeypatch.setattr(check_model, "measures", measures)
    for worse, holds in ((9, "yes"), (0, "no")):

        def sampled(model, clip, seed, *, steps, worse=worse):
            level = 100 + seed % 2 + (worse if steps == 1 else 0)
            return [np.full_like(frame, level) for frame in clip.truth]

        monkeypatch.setattr(check_model, "sampled", sampled)
        assert run("steps", clips, "--weights", str(model)) == (0 if holds == "yes" else 1)
        out = capsys.readouterr().out
        assert claims(out) == {"more steps are better than one, beyond the spread": holds}
        assert "| 44 | 1 |" in out and "| 42 | 2 |" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["steps", "--metric", "psnr"], "got metric psnr, expected a distance to the truth"),
        (["autoencoder", "--weights", "nowhere"], "nowhere: got no weights, expected a file, or a folder with"),
        (["steps", "--metric", "sharpness", "method.params.sampling.params.steps=1"], "expected a distance"),
        (["colours"], "argument gate: invalid choice: 'colours'"),
    ],
)
def test_what_is_wrong_is_one_line(words, line, clips, capsys):
    assert check_model.main([words[0], "-i", str(clips), *words[1:]]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1
