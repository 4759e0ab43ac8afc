"""The released project's two commands, on toy networks with random weights in files of the released form."""

import numpy as np
import pytest
import torch

from ldm import config, video
from scripts import upscale_jobs
from scripts import vsr_val_ddpm_text_T_vqganfin_oldcanvas_tile as tiles
from scripts import vsr_val_ddpm_text_T_vqganfin_w_latent as latents
from tests.scripts import toy


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command line of the released README, with small numbers."""
    folder = tmp_path_factory.mktemp("released")
    config.save(toy.settings("raft"), folder / "toy.yaml")
    one, two = toy.states("raft")
    torch.save({"state_dict": one, "global_step": 3}, folder / "unet.ckpt")
    torch.save({"state_dict": two}, folder / "vae.ckpt")
    for name, count in (("000", 6), ("001", 2)):
        toy.make_clip(folder / "seqs" / name, count, size=(16, 20))
    files = {"--config": "toy.yaml", "--ckpt": "unet.ckpt", "--vqgan_ckpt": "vae.ckpt", "--seqs-path": "seqs"}
    flags = "--dec_w 1.0 --colorfix_type adain --ddpm_steps 1 --input_size 64 --precision full --device cpu".split()
    return [word for flag, name in files.items() for word in (flag, str(folder / name))] + flags


def outputs(folder):
    return [name for name in toy.left_behind(folder) if "." in name]


def test_the_test_command(tmp_path, words, capfd):
    part = ["--select_idx", "0", "--n_gpus", "2", "--vqgantile_size", "96", "--vqgantile_stride", "64", "--C", "4"]
    assert tiles.main([*words, "--outdir", str(tmp_path), *part, "--new_flag", "1"]) == 0
    assert outputs(tmp_path) == ["000.json", *(f"000/{number}.png" for number in range(3, 9))]
    said = capfd.readouterr()
    assert "000: segments of 5 frames, patches of 96 pixels every 64, as released" in said.out
    made = video.read_clip(tmp_path / "000")
    assert made.shape == (6, 3, 64, 80) and made.std() > 0.02
    assert said.err == f"{tiles.PROGRAM}: without effect: --C --new_flag\n"


def test_the_test_command_uses_the_released_preset_and_defaults(words):
    args = tiles.arguments([*words[:8], "--outdir", "o"])
    assert (args.ddpm_steps, args.dec_w, args.colorfix_type, args.seed) == (1000, 0.5, "nofix", 42)
    settings = upscale_jobs.choose_settings(tiles.find_files(args), tiles.translate(args))
    params = settings.method.params
    assert (params.sampling.params.guidance, params.sampling.params.guidance_scale) == ("released", -10)
    assert (params.patch, params.stride, params.min_size) == (960, 750, 512)
    assert settings.output.rounding == "truncate" and settings.flow == "raft"


def test_autocast_needs_a_graphics_card(words, caplog):
    args = tiles.translate(tiles.arguments([*words, "--outdir", "o", "--precision", "autocast"]))
    assert args.flags["precision"] == "fp32"
    assert "computing in fp32" in caplog.text


@pytest.mark.parametrize(("index", "expected"), [(0, ["000"]), (1, ["001"]), (2, [])])
def test_sequences_are_shared_out(words, index, expected):
    args = tiles.arguments([*words, "--outdir", "o", "--n_gpus", "3", "--select_idx", str(index)])
    assert [job.output.name for job in tiles.find_jobs(args)] == expected


def test_weights_in_the_wrong_slot(tmp_path, words, capfd):
    swapped = [{"--ckpt": "--vqgan_ckpt", "--vqgan_ckpt": "--ckpt"}.get(word, word) for word in words]
    assert tiles.main([*swapped, "--outdir", str(tmp_path / "o")]) == 2
    assert "looks like video_vae_cfw.ckpt, expected mgldvsr_unet" in capfd.readouterr().err
    assert tiles.main([*words, "--outdir", str(tmp_path / "o"), "--n_gpus", "2", "--select_idx", "2"]) == 2
    assert not toy.left_behind(tmp_path)


def test_latents(tmp_path, words):
    folders = ["--outdir", str(tmp_path / "frames"), "--latent-dir", str(tmp_path / "latents")]
    assert latents.main([*words, *folders]) == 0
    stems = [f"000/{number}" for number in range(3, 9)] + ["001/3", "001/4"]
    assert outputs(tmp_path / "frames") == [f"{stem}.png" for stem in stems]
    assert outputs(tmp_path / "latents") == [f"{stem}.npy" for stem in stems]
    made = [np.load(tmp_path / "latents" / f"{stem}.npy") for stem in stems]
    assert {(latent.dtype.name, latent.shape) for latent in made} == {("float32", (4, 16, 16))}
    assert np.isfinite(made).all() and np.std(made) > 0.1
    assert video.read_clip(tmp_path / "frames" / "001").shape == (2, 3, 64, 64)


def test_latents_need_a_folder(tmp_path, words, capfd):
    assert latents.main([*words, "--outdir", str(tmp_path / "o")]) == 2
    name = "vsr_val_ddpm_text_T_vqganfin_w_latent.py"
    assert capfd.readouterr().err == f"{name}: --latent-dir is missing (--help lists the options)\n"


def test_frames_for_latents_show_the_centre_square():
    frame = toy.make_frames(1, 64, 96)[0]
    assert latents.prepare(frame, 64).equal(torch.from_numpy(frame).permute(2, 0, 1)[:, :, 16:80] / 255)
    odd = latents.prepare(toy.make_frames(1, 40, 50)[0], 64)
    assert odd.shape == (3, 64, 64) and odd.min() >= 0 and odd.max() <= 1
