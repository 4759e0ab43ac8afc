"""The three trainings of the embedded model, as a story: a few steps each, then the files restore a clip."""

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import main
from ldm import checkpoint, config
from ldm.engine.assemble import load_method
from ldm.training.autoencoder import cosine_adam
from ldm.training.decoder import StageTwo

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny"
CARD = ROOT / "assets" / "tiny" / "model.yaml"
NARROW = {  # widths of the networks below those of the card
    "autoencoder": {"ch": 32, "ch_mult": [1, 1, 1]},
    "sequence_decoder": {"ch": 32, "ch_mult": [1, 1, 1], "num_fuse_block": 1},
    "unet": {"channel_mult": [1, 1], "attention_resolutions": [2]},
    "structure": {"channel_mult": [1, 1], "attention_resolutions": [2]},
}
WIDTHS = [f"networks.{net}.params.{k}={v}" for net, params in NARROW.items() for k, v in params.items()]
# Lightning advises on workers, folders and hardware, and lags behind torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def train(folder: Path, name: str, *words: str) -> int:
    fixed = ["lightning.log_every_n_steps=1", "+lightning.enable_progress_bar=false"]
    fixed += ["+data.params.num_workers=0", "+data.params.persistent_workers=false"]
    base = ["--train", "--base", str(TINY / f"{name}.yaml"), "--logdir", str(folder / "logs"), "--name", name]
    return main.main([*base, *WIDTHS, *fixed, *words])


def logged(folder: Path, name: str) -> list[dict[str, float]]:
    """The rows of the training's metrics.csv, without what is empty."""
    (run,) = (folder / "logs").glob(f"*_{name}")
    assert (run / "config.yaml").is_file()
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [{k: float(v) for k, v in row.items() if v} for row in rows]


def scenes(steps: int, frames: int, size: int) -> list[str]:
    place = "data.params.dataset.params"
    return [f"steps={steps}", "data.params.batch_size=1", f"{place}.frames={frames}", f"{place}.size={size}"]


def sampled_clips(folder: Path, count: int = 2, frames: int = 2, size: int = 32) -> Path:
    """Files as scripts/make_latents.py writes them."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)

    def pixels(side):
        return torch.randint(0, 256, (frames, 3, side, side), generator=generator, dtype=torch.uint8)

    for k in range(count):
        latent = torch.randn(frames, 4, size // 4, size // 4, generator=generator)
        save_file({"lq": pixels(size // 4), "gt": pixels(size), "latent": latent}, folder / f"{k}.safetensors")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the logs and the weights of all three trainings, two or three steps each."""
    folder = tmp_path_factory.mktemp("trained")
    first, weights = folder / "autoencoder.safetensors", folder / "weights"
    weights.mkdir()
    state = torch.random.get_rng_state()
    assert train(folder, "autoencoder", *scenes(3, 1, 32), f"export.file={first}") == 0
    given = f"init.0.file={first}"
    export = f"export.file={weights / 'mgldvsr_unet.safetensors'}"
    assert train(folder, "stage1", *scenes(2, 2, 32), given, export) == 0
    words = [f"latents={sampled_clips(folder / 'latents')}", "steps=4", "model.params.adversarial_start=2"]
    words += ["model.params.discriminator.params.ndf=8", given, f"init.1.file={first}", "data.params.batch_size=1"]
    assert train(folder, "stage2", *words, f"export.file={weights / 'video_vae_cfw.safetensors'}") == 0
    card = CARD.read_text().replace("../../configs", str(ROOT / "configs"))
    (weights / "wide.yaml").write_text(card)
    config.save(config.load(weights / "wide.yaml", overrides=WIDTHS), weights / "model.yaml")
    torch.random.set_rng_state(state)
    return folder


@pytest.mark.parametrize(
    ("name", "steps", "terms"),
    [
        ("autoencoder", 3, {"l1", "kl", "latent_std"}),
        ("stage1", 2, {"loss_simple"}),
        ("stage2", 4, {"l1", "gradient", "difference"}),
    ],
)
def test_every_step_of_a_training_has_finite_losses(trained, name, steps, terms):
    rows = [row for row in logged(trained, name) if terms <= row.keys()]
    assert len(rows) == steps
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)


def test_the_discriminator_starts_when_it_should(trained):
    rows = logged(trained, "stage2")
    assert [("adversarial" in row, "discriminator" in row) for row in rows] == [(False, False)] * 2 + [(True, True)] * 2


def test_the_trained_files_restore_a_clip(trained):
    """The whole path: the files load strictly, by their names and shapes, into the networks of the card."""
    method = load_method(trained / "weights")
    trained_vae = checkpoint.read(trained / "autoencoder.safetensors")
    for name, value in method.autoencoder.state_dict().items():
        kept = trained_vae[f"first_stage_model.{name}"].half().float()  # stage 1 keeps it frozen, and writes halves
        assert torch.equal(value, kept), name
    out = method.restore(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, 3, 64, 64) and torch.isfinite(out).all()


def test_stage_two_keeps_the_encoder_and_trains_the_decoder(trained):
    first = checkpoint.read(trained / "autoencoder.safetensors")
    second = checkpoint.read(trained / "weights" / "video_vae_cfw.safetensors")
    assert not [name for name in second if name.startswith("loss.")]
    for name, value in second.items():
        if name.startswith(("encoder.", "quant_conv.")):
            assert torch.equal(value, first[f"first_stage_model.{name}"].half()), name
    last = "decoder.conv_out.weight"
    assert not torch.equal(second[last], first[f"first_stage_model.{last}"].half())


def test_stage_one_trains_the_unet_and_the_structure_encoder(trained):
    state = checkpoint.read(trained / "weights" / "mgldvsr_unet.safetensors")
    assert state["model.diffusion_model.out.2.weight"].abs().max() > 0  # starts at zero
    assert set(checkpoint.slots_held(state, checkpoint.STAGE_ONE)) == {"unet", "structure", "autoencoder"}


# ---- parts


def test_the_optimizers_of_stage_two_share_nothing_and_leave_the_encoder_alone():
    settings = config.load(TINY / "stage2.yaml", overrides=WIDTHS)
    model: StageTwo = config.instantiate(settings.model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"decoder", "post_quant_conv", "loss"}
    groups = [o["optimizer"].param_groups[0]["params"] for o in model.configure_optimizers()]
    own = [{id(p) for p in group} for group in groups]
    assert own[1] == {id(p) for p in model.loss.parameters()} and not own[0] & own[1]
    assert own[0] == {id(p) for name, p in model.named_parameters() if name in trainable} - own[1]


@pytest.mark.parametrize("steps", [1, 2, 3, 19, 20, 100])
def test_the_rate_rises_and_falls_to_zero(steps):
    made = cosine_adam([torch.nn.Parameter(torch.zeros(1))], 1e-3, steps)
    rates = []
    for _ in range(steps):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    last = made["optimizer"].param_groups[0]["lr"]
    assert all(0 < rate <= 1e-3 * (1 + 1e-9) for rate in rates) and (last < 1e-6 or steps == 1)
    assert steps < 19 or max(rates) > 0.95e-3 and rates[0] < 0.5e-3


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("autoencoder", ["stesp=3"], "nearest known is steps"),
        ("autoencoder", ["model.params.autoencoder=null", "+model.params.lrr=1"], "has no argument 'lrr'"),
        ("autoencoder", ["pictures=nowhere"], "nowhere"),
        ("stage1", ["init.0.file=nowhere.safetensors"], "no weight file nowhere.safetensors"),
        ("stage1", ["init=[]", "model.params.timestep_per=batch"], "expected clip or frame"),
        ("stage2", ["init=[]", "latents=nowhere"], "expected what make_latents.py writes"),
    ],
)
def test_a_wrong_training_says_so_in_one_line_and_leaves_nothing(tmp_path, capsys, name, words, says):
    assert train(tmp_path, name, *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("main.py: ") and says in line
    assert not list(tmp_path.iterdir())


def test_without_train_the_model_is_only_described(tmp_path, capsys):
    assert main.main(["--base", str(TINY / "autoencoder.yaml"), *WIDTHS, "--logdir", str(tmp_path / "logs")]) == 0
    assert "AutoencoderKL" in capsys.readouterr().out and not list(tmp_path.iterdir())
