"""Both stages of Upscale-A-Video: trained parameters, targets, draws, commands and exact resuming."""

import copy
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from torch import nn

import main
from basicsr_deg.clips import folder_clips
from basicsr_deg.training_clips import TrainingClips
from ldm import config
from ldm.engine.assemble import build_networks, find_weights, load_method, read_settings
from ldm.methods.contract import Request
from ldm.nets.autoencoder import AutoencoderKL
from ldm.nets.discriminator import PatchGAN
from ldm.nets.framewise import FramewiseAutoencoder
from ldm.nets.text import FixedContext, OpenCLIPText
from ldm.nets.video_unet import UNetVideoModel
from ldm.nets.video_vae import AutoencoderKLVideo
from ldm.ops.dis import DISFlow
from ldm.streaming.pipeline import Frame
from ldm.training.captions import CaptionedClips
from ldm.training.decoder_loss import DecoderLoss
from ldm.training.optimization import Adam
from ldm.training.recompute import recompute_blocks
from ldm.training.temporal_upscaler import TemporalUpscaling, UpscalingObjective, is_temporal, single_frames
from ldm.training.video_decoder import SampledLatents, VideoDecoderTraining
from tests.training.runs import differing, learned, rows, saved, write_clips

# Lightning advises on workers, folders and hardware, and lags behind torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

CONFIGS = Path(__file__).parents[2] / "configs" / "upscale_a_video"
UNET = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "attention": (False, True), "num_heads": 2,
    "only_cross_attention": (True, False), "cross_attention_dim": 16, "num_class_embeds": 400, "norm_num_groups": 8,
    "down_temporal_idx": (0, 1), "up_temporal_idx": (0, 1),
}  # fmt: skip
VAE = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def stage_one(*, text=None, objective=None, **settings):
    torch.manual_seed(0)
    networks = {"unet": UNetVideoModel(**UNET), "autoencoder": AutoencoderKLVideo(**VAE)}
    networks["text"] = text or FixedContext(width=16)
    own = {"objective": objective or UpscalingObjective(), "optimizer": Adam(lr=1e-3), "preview_steps": 2}
    return TemporalUpscaling(networks, **own | settings)


def batch_of(numbers, frames=2, size=32):
    gt = torch.stack([torch.rand(frames, 3, size, size, generator=torch.Generator().manual_seed(n)) for n in numbers])
    return {"gt": gt, "lq": gt[..., ::4, ::4], "index": torch.tensor(numbers)}


# ---- stage 1


def test_only_layers_that_the_image_model_lacks_are_trained():
    model = stage_one()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    added = {f"unet.{name}" for name, _ in model.unet.named_parameters() if is_temporal(name)}
    assert trained == added and any("shift_conv" in name for name in trained)
    assert any("resblocks_3d_spatial" in name for name in trained) and any("attn_temporal" in n for n in trained)
    image = UNetVideoModel(**UNET | {"down_temporal_idx": (), "mid_temporal": False, "up_temporal_idx": ()})
    rest = {n for n, _ in image.named_parameters() if "temporal" not in n}
    assert rest == {n for n, _ in model.unet.named_parameters()} - {n.removeprefix("unet.") for n in added}
    assert all(p.requires_grad for p in stage_one(trained="all").unet.parameters())


def test_a_step_changes_zero_layers_and_keeps_the_image_model():
    model = stage_one()
    before = copy.deepcopy(model.state_dict())
    optimizer = model.configure_optimizers()["optimizer"]
    for _ in range(2):  # what lies before a zero layer has a gradient from the second step on
        optimizer.zero_grad()
        model.losses(batch_of([0]), "train")["loss"].backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_image_model_is_trained_on_single_frames():
    model, batch = stage_one(trained="image"), batch_of([4, 7], frames=3)
    trained = {name for name, p in model.unet.named_parameters() if p.requires_grad}
    assert trained and not any(map(is_temporal, trained))
    frames = single_frames(batch | {"tokens": torch.tensor([[1], [2]])})
    assert frames["index"].tolist() == [12, 13, 14, 21, 22, 23]
    assert frames["tokens"].flatten().tolist() == [1, 1, 1, 2, 2, 2]
    assert torch.equal(frames["gt"][4, 0], batch["gt"][1, 1]) and frames["lq"].shape == (6, 1, 3, 8, 8)
    seen = []
    model.unet.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].shape[:2]))
    model.losses(batch, "train")["loss"].backward()
    assert seen == [(6, 1)]


def test_gradients_equal_finite_differences():
    model = stage_one(trained="all").double()
    for parameter in model.unet.parameters():
        nn.init.normal_(parameter, 0.0, 0.1)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch_of([3], frames=3).items()}
    loss = model.losses(batch, "train")["loss"]
    loss.backward()
    slope, step = 0.0, 1e-4
    torch.manual_seed(1)
    directions = {n: torch.randn_like(p) for n, p in model.unet.named_parameters()}
    slope = sum((p.grad * directions[n]).sum() for n, p in model.unet.named_parameters()).item()
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for n, p in model.unet.named_parameters():
                p.add_(directions[n], alpha=sign * step)
            values.append(model.losses(batch, "train")["loss"].item())
    # time steps reach the network through a sinusoid in float32, which is the same on both sides
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-3)


def test_the_loss_of_the_true_velocity_is_zero():
    model, batch = stage_one(), batch_of([5, 6])
    objective, index, z = model.objective, batch["index"], model.latents(batch)
    i, noise = objective.steps("train", index), objective.normal("train.noise", index, z)
    seen = {}

    def oracle(x, low_res, t, context, level):
        seen.update(x=x, low_res=low_res, t=t, level=level)
        a = objective.schedule.abar[t].view(-1, 1, 1, 1, 1).float()
        return a.sqrt() * noise - (1 - a).sqrt() * z

    model.unet.forward = oracle
    assert model.losses(batch, "train")["loss"].item() < 1e-9
    assert torch.equal(seen["t"], i) and len(set(i.tolist())) == 2  # one of each clip
    level = objective.levels("train", index)
    assert torch.equal(seen["level"], level)
    expected = objective.noised_frames(batch["lq"], level, "train", index)
    assert torch.equal(seen["low_res"], expected)


def test_noise_levels_cover_their_range_and_are_applied():
    objective = UpscalingObjective(highest_noise=350)
    levels = objective.levels("train", torch.arange(4000))
    assert levels.min() == 0 and levels.max() == 350 and 150 < levels.float().mean() < 200
    lq = torch.rand(2, 2, 3, 16, 16)
    low = objective.noised_frames(lq, torch.tensor([0, 350]), "train", torch.tensor([0, 1]))
    error = (low - (2 * lq - 1)).flatten(1).std(1)
    assert error[0] < 0.02 and error[1] > 0.3


def test_captions_are_dropped_with_their_probability():
    text = OpenCLIPText(width=16, layers=2, heads=2, vocab_size=60, context_length=9)
    index = torch.arange(400)
    share = UpscalingObjective(caption_dropout=0.25).dropped("train", index).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.06)
    batch = {"tokens": torch.randint(1, 58, (6, 9)), "index": torch.arange(6)}
    for dropout, expected in ((0.0, text(batch["tokens"])), (1.0, text().expand(6, -1, -1))):
        model = stage_one(text=text, objective=UpscalingObjective(caption_dropout=dropout))
        torch.testing.assert_close(model.context(batch, "train"), expected)
    assert model.context({"index": batch["index"]}, "train").shape[0] == 1


def test_recomputed_blocks_give_the_same_gradient():
    gradients = []
    for recompute in (False, True):
        model = stage_one()
        if recompute:
            assert recompute_blocks(model) > 10
        model.losses(batch_of([1]), "train")["loss"].backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert not differing(gradients[0], gradients[1])


def test_previews_depend_only_on_the_sample():
    model, batch = stage_one().eval(), batch_of([5])
    state = torch.get_rng_state()
    out = model.restore(batch)
    assert out.shape == batch["gt"].shape and 0 <= out.min() and out.max() <= 1
    assert torch.equal(out, model.restore(batch)) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"trained": "some"}, "trained='some'"),
        ({"scale_factor": 0.0}, "scale_factor=0"),
        ({"preview_steps": 0}, "preview_steps=0"),
        ({"objective": UpscalingObjective(highest_noise=351)}, "highest_noise=351, expected at most 350"),
    ],
)
def test_invalid_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        stage_one(**settings)
    for wrong in ({"highest_noise": 1000}, {"caption_dropout": 1.5}):
        with pytest.raises(ValueError, match="expected 0 to 999 and 0 to 1"):
            UpscalingObjective(**wrong)


# ---- stage 2


def autoencoder(condition=32):
    return AutoencoderKLVideo(**VAE | {"block_out_channels": (8, 8, 32)}, condition_channels=condition)


def stage_two(*, condition=32, **settings):
    torch.manual_seed(0)
    loss = DecoderLoss(
        discriminator=PatchGAN(ndf=4, n_layers=1), flow=DISFlow("ultrafast"), weights={"consistency": 0}, start=0
    )
    return VideoDecoderTraining(autoencoder(condition), loss, optimizer=Adam(lr=1e-3), **settings)


def test_layers_that_the_image_autoencoder_lacks_are_trained():
    model = stage_two()
    trained = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("loss.")}
    image = autoencoder(None)
    own = {n for n, _ in model.named_parameters() if not n.startswith("loss.")}
    assert trained == own - {n for n, _ in image.named_parameters()}
    whole = stage_two(trained="decoder")
    assert all(p.requires_grad for p in whole.decoder.parameters())
    assert not any(p.requires_grad for p in [*whole.encoder.parameters(), *whole.quant_conv.parameters()])


def test_latents_are_given_or_encoded():
    model, batch = stage_two(), batch_of([2], frames=3)
    y = model.reconstruct(batch)
    assert y.shape == batch["gt"].shape and y.requires_grad and torch.equal(y, model.reconstruct(batch))
    latent = torch.rand(1, 3, 4, 8, 8)
    vae = autoencoder()
    vae.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("loss.")})
    given = model.reconstruct(batch | {"latent": latent})
    torch.testing.assert_close(given, vae.decode(latent / model.scale_factor, 2 * batch["lq"] - 1))
    assert (given - y).abs().max() > 1e-3


def test_latents_of_another_autoencoder_are_decoded():
    torch.manual_seed(1)
    image = AutoencoderKL(ch=8, ch_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4, middle_attention=False)
    framewise = FramewiseAutoencoder(image)
    model, batch = stage_two(latents=SampledLatents(seed=5, encoder=framewise)), batch_of([2], frames=3)
    moments = image.posterior(image.encode(batch["gt"][0] * 2 - 1))
    z = model.latents.sample(autoencoder(), batch)
    noise = (z[0] - moments.mean) / moments.logvar.mul(0.5).exp()
    assert z.shape == (1, 3, 4, 8, 8) and noise.std().item() == pytest.approx(1, abs=0.2)
    assert not any(p.requires_grad for p in framewise.parameters())
    torch.testing.assert_close(framewise.decode(z, batch["lq"])[0], image.decode(z[0]))


def test_an_autoencoder_without_condition_is_refused():
    with pytest.raises(ValueError, match="without a condition path"):
        stage_two(condition=None)


# ---- what a training starts from


@pytest.mark.parametrize(("stage", "module"), [("unet", "unet"), ("decoder", "decoder")])
def test_the_configuration_tolerates_only_layers_that_the_image_model_lacks(stage, module):
    if stage == "unet":
        with torch.device("meta"):
            names = {name for name in UNetVideoModel().state_dict()}
        image = {name for name in names if not is_temporal(name)}
    else:
        with torch.device("meta"):
            nets = [AutoencoderKLVideo(condition_channels=width) for width in (128, None)]
        names, image = (set(net.decoder.state_dict()) for net in nets)
        assert image < names
    entries = config.plain(config.load(CONFIGS / f"{stage}.yaml"))["init"]
    (patterns,) = [entry["tolerate"] for entry in entries if entry["modules"] == [module]]
    tolerated = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert tolerated == names - image


# ---- captions


class Words:
    """Tokenizer for tests: the ids are the lengths of the words."""

    def __call__(self, texts):
        return torch.tensor([([len(word) for word in text.split()] + [0] * 4)[:4] for text in texts])


def test_captions_come_from_text_files(tmp_path):
    write_clips(tmp_path / "clips", count=3, frames=2)
    clips = TrainingClips(folder_clips(root=str(tmp_path / "clips")), frames=2, gt_size=32, variation=None)
    texts = tmp_path / "captions"
    texts.mkdir()
    with pytest.raises(ValueError, match="expected a folder of CLIP.txt files"):
        CaptionedClips(clips, folder=str(texts), tokenizer=Words())
    (texts / "clip0.txt").write_text("a red cat\nanother scene\n")
    (texts / "clip1.txt").write_bytes(b"\xff\xfe")
    captioned = CaptionedClips(clips, folder=str(texts), tokenizer=Words(), ending="sharp")
    assert len(captioned) == 3
    by_name = {clips.name(k): k for k in range(3)}
    item = captioned[by_name["clip0"]]
    assert item["tokens"].tolist() == [1, 3, 3, 5] and torch.equal(item["gt"], clips[by_name["clip0"]]["gt"])
    assert captioned[by_name["clip2"]]["tokens"].tolist() == [0, 0, 0, 0]
    assert captioned.caption("elsewhere/clip0.mp4") == "a red cat sharp"
    with pytest.raises(ValueError, match="clip1.txt is not a text"):
        captioned[by_name["clip1"]]


# ---- the commands


WORDS = {
    "unet": ["gt_size=32", "num_frames=2"],
    "decoder": ["gt_size=32", "num_frames=2", "model.params.loss.params.start=1"],
}


def train(stage, folder, name, *words):
    clips = folder / "clips"
    data = [f"dataroot_gt={clips}"] if clips.exists() else write_clips(clips)
    flags = ["--gpus", "", "--name", name, "--logdir", str(folder / "logs")]
    own = [*WORDS[stage], "pictures.every=0", *data, *words]
    assert main.main(["--train", "--base", str(CONFIGS / f"toy_{stage}.yaml"), *flags, *own]) == 0
    (run,) = (folder / "logs").glob(f"*_{name}")
    return run


@pytest.mark.parametrize("stage", ["unet", "decoder"])
@pytest.mark.slow  # three trainings
def test_the_toy_commands_train_and_resume_exactly(stage, tmp_path):
    whole = train(stage, tmp_path, "whole", "steps=3", "checkpoints.every=2")
    half = train(stage, tmp_path, "half", "steps=2", "checkpoints.every=2")
    assert main.main(["--train", "--resume", str(half), "steps=3"]) == 0
    assert not differing(learned(saved(whole)), learned(saved(half)))
    name = "train/loss" if stage == "unet" else "train/total"
    assert any(name in row for row in rows(whole))
    keys = saved(whole)["state_dict"]
    expected = "unet.mid_temp_block.shift_conv.weight" if stage == "unet" else "decoder.condition_fuse.scale.weight"
    assert expected in keys


@pytest.mark.slow  # three trainings
def test_the_small_model_is_trained_and_taken_apart(tmp_path):
    words = [f"folder={tmp_path}", f"clips={tmp_path / 'clips'}", "data.params.train.params.count=1", "steps=1"]
    words += ["batch_size=1", "pictures.every=0", "checkpoints.every=1", "data.params.num_workers=0"]
    for stage in ("frames", "unet", "decoder"):
        flags = ["--gpus", "", "--name", stage, "--logdir", str(tmp_path / "logs")]
        assert main.main(["--train", "--base", str(CONFIGS / f"tiny_{stage}.yaml"), *flags, *words]) == 0
    found = find_weights(tmp_path, configs=[CONFIGS / "tiny_rows.yaml"])
    networks = build_networks(read_settings(found, configs=[CONFIGS / "tiny_rows.yaml"]), found)
    alone, unet = networks["frame_unet"].state_dict(), networks["unet"].state_dict()
    changed = {name for name, value in unet.items() if not torch.equal(value, alone[name])}
    assert changed and all(map(is_temporal, changed))
    for vae in ("vae_3d", "vae_video"):
        method = load_method(tmp_path, overrides=[f"vae={vae}", "method.params.sampling.params.steps=1"])
        run = method.stream(Request((16, 16), 1))
        run.push(Frame(0, {"lq": torch.rand(1, 3, 16, 16)}))
        assert [frame["sr"].shape for frame in run.pull(finish=True)] == [(1, 3, 64, 64)]


def test_the_rows_of_the_ablation_take_networks_of_the_small_model():
    ablation = config.instantiate(config.load(CONFIGS / "ablation.yaml").ablation)
    networks = config.load(CONFIGS / "tiny_rows.yaml").networks
    swapped = [pair for row in ablation.rows.values() for pair in (row.get("networks") or {}).items()]
    assert networks.frame_unet == networks.unet
    assert len(swapped) == 2 and all(name in networks for pair in swapped for name in pair)


@pytest.mark.slow  # twelve steps
def test_an_overfitted_clip_is_learned():
    """One clip with the same draw in every step."""
    model = stage_one(trained="all")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(12):
        loss = model.losses(batch_of([7]), "train")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_captioned_set_of_the_configuration(tmp_path):
    write_clips(tmp_path / "clips", count=2, frames=2, size=64)
    (tmp_path / "clip0.txt").write_text("a red cat")
    words = ["train_set=captioned", f"captions={tmp_path}", f"dataroot_gt={tmp_path / 'clips'}", "num_frames=2"]
    settings = config.load(CONFIGS / "toy_unet.yaml", overrides=words)
    data = config.instantiate(settings.data)
    tokens = torch.stack([data.train[k]["tokens"] for k in range(2)])
    assert tokens.shape == (2, 77) and sorted(tokens.ne(0).sum(1).tolist()) == [2, 10]
