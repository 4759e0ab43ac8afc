"""main.py: its options, and errors of one line with exit status 2 that leave no files."""

import cv2
import numpy as np
import pytest
import torch
from pytorch_lightning.strategies import FSDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only

import main
from ldm import config
from ldm.training.decoder import StageTwo
from ldm.training.diffusion import StageOne
from ldm.training.initial import left_random
from ldm.training.preflight import check_strategy, lock_run, resume_hint
from ldm.weights import checkpoint
from tests.marks import mostly_slow
from tests.training import runs

# Lightning warns about workers, folders and hardware, and uses deprecated parts of torch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {1: runs.write_clips(root / "clips"), 2: runs.write_set(root / "set")}


def refused(capfd, folder, words) -> str:
    """The error line of a command that must not change `folder`."""
    before = sorted(folder.rglob("*"))
    capfd.readouterr()
    assert main.main(words) == 2
    said = capfd.readouterr().err.splitlines()
    assert all(line.startswith("main.py: ") for line in said if "clips taken" not in line and "stage-2 set" not in line)
    assert sorted(folder.rglob("*")) == before
    return said[-1]  # warnings come before it


@mostly_slow(
    ("stage", "words", "says"),
    [
        (1, ["stesp=3"], "nearest known is steps"),
        (1, ["steps=abc"], "config.steps: got 'abc', expected a whole number from 1"),
        (1, ["steps=0"], "config.steps: got 0"),
        (1, ["accumulate=0"], "config.accumulate: got 0"),
        (1, ["batch_size=1.5"], "config.batch_size: got 1.5"),
        (1, ["learning_rate=0"], "config.learning_rate: got 0"),
        (1, ["--seed", "-1"], "config.seed: got -1"),
        (1, ["seed=4294967296"], "config.seed"),
        (1, ["ema=1"], "config.ema: got 1"),
        (1, ["checkpointing=maybe"], "config.checkpointing: got 'maybe'"),
        (1, ["checkpoints.every=0"], "config.checkpoints.every: got 0"),
        (1, ["checkpoints.keep=0"], "config.checkpoints.keep: got 0"),
        (1, ["checkpoints.best=val/loss"], "without data.params.validation"),
        (1, ["pictures=null"], "config.pictures: got None"),
        (1, ["model=null"], "config.model: got None"),
        (1, ["+export={file: x.ckpt}"], "config.export.file: got 'x.ckpt'"),
        (1, ["init=3"], "config.init: got 3"),
        (1, ["init=[{file: nowhere.ckpt, modules: [first_stage_model]}]"], "there is no weight file nowhere.ckpt"),
        (1, ["model.params.trained=some"], "got trained='some', expected one of released, repaired, all"),
        (1, ["model.params.scale_factor=0"], "scale_factor=0"),
        (1, ["+model.params.lrr=1"], "has no argument 'lrr'"),
        (1, ["degradation=null"], "samples without 'lq'"),
        (1, ["dataroot_gt=nowhere"], "got nowhere, which is not there"),
        (1, ["num_frames=9"], "got only clips of less than 9 frames"),
        (1, ["gt_size=64"], "expected at least 64 pixels a side"),
        (1, ["+data.params.validation=3"], "got 3, expected a Dataset"),
        (1, ["lightning.max_steps=3"], "config.lightning.max_steps is set by main.py"),
        (1, ["lightning.precision=17"], "precision"),
        (1, ["lightning.precision=bf16-true"], "got precision bf16-true, expected 32 or bf16-mixed"),
        (1, ["lightning.strateggy=ddp"], "nearest known is strategy"),
        (1, ["lightning.devices=auto", "--scale_lr", "True"], "expected devices as a number"),
        (1, ["--gpus", "first"], "got --gpus 'first', expected numbers"),
        (1, ["--base", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (1, ["--nme", "x"], "unrecognized arguments: --nme"),
        (1, ["--scale_lr", "maybe"], "got override 'maybe'"),
        (2, ["dataroot_lt=nowhere"], "dataroot_lt: got nowhere, which is not there"),
        (2, ["num_frames=9"], "got only clips of less than 9 frames"),
        (2, ["perceptual=lpips"], "LPIPS with random weights"),
        (2, ["lightning.gradient_clip_val=1"], "gradient"),
        (2, ["model.params.loss.params.form=best"], "got form 'best'"),
    ],
    fast=8,
)
def test_a_wrong_training_is_one_line_and_leaves_no_files(tmp_path, data, capfd, stage, words, says):
    assert says in refused(
        capfd, tmp_path, runs.command(stage, data[stage], *runs.narrow(stage), *words, folder=tmp_path)
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
def test_a_missing_gpu_is_refused(tmp_path, data, capfd):
    for word in ("0", "0,"):
        words = runs.command(1, data[1], *runs.narrow(1), "--gpus", word, folder=tmp_path)
        assert "got device 'cuda:0'" in refused(capfd, tmp_path, words)


def test_nothing_to_train(tmp_path, capfd):
    assert "nothing to train" in refused(capfd, tmp_path, ["--train"])
    (tmp_path / "empty.yaml").write_text("steps: 3\n")
    assert "config.model: got None" in refused(capfd, tmp_path, ["--train", "--base", str(tmp_path / "empty.yaml")])


@pytest.mark.slow  # one training
def test_the_value_of_checkpoints_best_must_be_logged(tmp_path, data, capfd):
    words = runs.command(1, data[1], *runs.narrow(1), "checkpoints.best=train/lss", folder=tmp_path)
    assert main.main(words) == 2
    assert "checkpoints.best=train/lss, expected one of train/loss, train/" in capfd.readouterr().err


@pytest.mark.slow  # a training
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_clip_during_training_is_one_line(tmp_path, capfd, workers):
    words = runs.write_clips(tmp_path / "clips", count=2)
    for bad in (tmp_path / "clips" / "clip1").iterdir():
        assert cv2.imwrite(str(bad), np.zeros((8, 8, 3), np.uint8))
    words = runs.command(1, words, *runs.narrow(1), f"num_workers={workers}", folder=tmp_path)
    seed = next(s for s in range(9) if not np.random.default_rng([s, 0, 1]).permutation(2)[0])  # the good one first
    assert main.main([*words, "--seed", str(seed)]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == (
        "main.py: clip1: got frames of 8x8, expected at least 32 pixels a side; lower gt_size or leave this clip out"
    )


# ---- losses that are not finite


@mostly_slow(("stage", "term"), [(1, "denoising"), (2, "l1")])
def test_a_loss_that_is_not_finite_stops_and_saves_its_batch(tmp_path, data, capfd, stage, term):
    words = runs.command(stage, data[stage], *runs.narrow(stage), "learning_rate=1.0e+30", folder=tmp_path)
    assert main.main(words) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    run = runs.run_of(tmp_path)
    batch = run / "bad_batch_process0.safetensors"
    assert (
        f"got a {term} loss of " in line and " at step 1, " in line and line.endswith(f"the batch is saved in {batch}")
    )
    kept = checkpoint.read(batch)
    assert kept["index"].tolist() == [1] and {"gt", "lq"} <= kept.keys() and torch.isfinite(kept["gt"]).all()


@pytest.mark.slow  # a training
@pytest.mark.parametrize(("stage", "kind"), [(2, StageTwo), (1, StageOne)])
def test_a_gradient_that_overflows_reaches_no_checkpoint(tmp_path, data, capfd, monkeypatch, stage, kind):
    def overflow(module, _batch, number):
        if number == 2:
            next(p for p in module.parameters() if p.requires_grad).register_hook(lambda slope: slope * torch.inf)

    monkeypatch.setattr(kind, "on_train_batch_start", overflow)
    words = runs.command(stage, data[stage], *runs.narrow(stage), "checkpoints.every=1", folder=tmp_path)
    assert main.main(words) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    batch = runs.run_of(tmp_path) / "bad_batch_process0.safetensors"
    assert "main.py: got a gradient of " in line and " at step 2 " in line and line.endswith(f"saved in {batch}")
    assert checkpoint.read(batch)["index"].tolist() == [2]
    last = runs.saved(runs.run_of(tmp_path))
    assert last["global_step"] == 2
    assert all(value.isfinite().all() for value in last["state_dict"].values() if value.is_floating_point())


# ---- options


def parsed(*words):
    return main.arguments(list(words))


def test_switches_take_an_optional_value():
    args = parsed("--train", "--base", "a.yaml", "b.yaml", "x=1", "--scale_lr", "False", "--no-test", "y=2")
    assert (args.train, args.scale_lr, args.no_test) == (True, False, True)
    assert args.base == ["a.yaml", "b.yaml"] and sorted(args.overrides) == ["x=1", "y=2"]
    assert parsed("-t", "True", "-b", "a.yaml").train and not parsed("--train", "no", "-b", "a.yaml").train
    assert not parsed("-b", "a.yaml").scale_lr and parsed("-b", "a.yaml", "--scale_lr").scale_lr


@pytest.mark.parametrize("word", ["", ","])
def test_no_device_number_means_the_cpu(word):
    assert main.devices_of(word) == {"accelerator": "cpu", "devices": 1}


@pytest.mark.parametrize(
    ("word", "devices", "strategy"), [("0", [0], None), ("0,", [0], None), ("1, 3", [1, 3], "ddp_find")]
)
def test_device_numbers_are_gpus(monkeypatch, word, devices, strategy):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    hardware = main.devices_of(word)
    assert hardware["accelerator"] == "gpu" and hardware["devices"] == devices
    assert hardware.get("strategy", "None").startswith(strategy or "None")


@pytest.mark.parametrize(("flags", "factor"), [([], 1), (["--scale_lr", "True"], 6)])
def test_scale_lr_multiplies_by_all_batches_of_a_step(flags, factor):
    base = [str(path) for path in runs.COMMANDS[1]]
    args = parsed("--train", "--base", *base, *flags, "accumulate=2", "batch_size=3", "learning_rate=5e-5")
    assert main.read_settings(args, None).learning_rate == pytest.approx(factor * 5e-5, rel=1e-12)
    args.overrides.append("lightning.devices=2")
    assert main.read_settings(args, None).learning_rate == pytest.approx(5e-5 * (2 * factor if flags else 1), rel=1e-12)
    args.overrides.append("lightning.num_nodes=3")
    assert main.read_settings(args, None).learning_rate == pytest.approx(5e-5 * (6 * factor if flags else 1), rel=1e-12)


def test_the_seed_option_sets_all_seeds():
    args = parsed("--base", *map(str, runs.COMMANDS[1]), "--seed", "5")
    settings = config.plain(main.read_settings(args, None))
    assert settings["data"]["params"]["train"]["params"]["seed"] == 5
    assert settings["model"]["params"]["objective"]["params"]["seed"] == 5


@pytest.mark.parametrize(("best", "mode"), [("val/psnr", "max"), ("val/loss", "min"), ("train/loss", "min")])
def test_the_best_checkpoint_has_the_highest_psnr_or_the_lowest_loss(tmp_path, best, mode):
    args = parsed("--base", *map(str, runs.COMMANDS[1]), f"checkpoints.best={best}", "+data.params.validation={}")
    calls = main.callbacks_of(main.read_settings(args, None), tmp_path)
    (found,) = [call for call in calls if getattr(call, "monitor", None) == best]
    assert found.mode == mode


def test_a_worker_error_is_reported_by_its_last_line():
    text = 'Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  File "x"\nValueError: a: b\n'
    assert main.in_one_line(ValueError(text)) == "a: b"
    assert main.in_one_line(ValueError("a\nb")) == "a" and main.in_one_line(OSError()) == "OSError"


def test_only_the_first_process_creates_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as torchrun and srun start them, all at once
    main.prepare_folder(tmp_path / "run", config.load(*runs.COMMANDS[1]), None)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    (tmp_path / "run").mkdir()
    main.prepare_folder(tmp_path / "run", config.load(*runs.COMMANDS[1]), None)
    assert (tmp_path / "run" / "config.yaml").exists()


def test_pictures_with_sharded_weights_are_refused():
    settings = config.plain(config.load(*runs.COMMANDS[1], overrides=["pictures.every=5"]))
    check_strategy(SingleDeviceStrategy("cpu"), settings)
    with pytest.raises(ValueError, match="got FSDPStrategy.* set pictures.every=0"):
        check_strategy(FSDPStrategy(), settings)
    check_strategy(FSDPStrategy(), settings | {"pictures": {"every": 0}})


@pytest.mark.slow  # two trainings
def test_unfilled_frozen_weights_are_named_by_a_training(tmp_path, data, capsys):
    runs.train(2, data[2], "flow=spynet", "steps=1", folder=tmp_path)
    first = "loss.flownet.basic_module.0.basic_module.0.weight"
    line = f"loss: 60 frozen weights, such as {first}, stay random: this configuration has no `init`"
    assert line in capsys.readouterr().out.splitlines()
    runs.train(2, data[2], "steps=1", folder=tmp_path / "dis")
    assert "loss.flownet" not in capsys.readouterr().out


def test_unfilled_frozen_weights_are_reported():
    model = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1).requires_grad_(False) for name in ("a", "b")})
    (said,) = left_random(model, [{"file": "x", "modules": ["a"]}])
    assert said == "b: 2 frozen weights, such as b.weight, stay random: no entry of `init` fills them"


def test_latents_of_another_factor_are_refused_before_the_first_step(tmp_path, capfd):
    data = runs.write_set(tmp_path / "data", shrink=4)  # the networks have 2
    words = runs.command(2, data, *runs.narrow(2), folder=tmp_path)
    line = refused(capfd, tmp_path, words)
    assert "got latents of 8x8 for frames of 32x32, expected 1/2 of their sides" in line


def test_without_train_the_model_is_only_printed(tmp_path, capsys):
    words = runs.command(1, [], *runs.narrow(1), folder=tmp_path)
    assert main.main(words[1:]) == 0
    assert "AutoencoderKL" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_locked_run_is_refused(tmp_path):
    with lock_run(tmp_path / "run", new=True):
        with (
            pytest.raises(ValueError, match="another training is writing there"),
            lock_run(tmp_path / "run", new=False),
        ):
            pass
    with lock_run(tmp_path / "run", new=False):
        pass


def test_the_resume_hint(tmp_path):
    assert "no checkpoint yet" in resume_hint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert resume_hint(tmp_path) == f"--resume {tmp_path} continues from its last checkpoint"
