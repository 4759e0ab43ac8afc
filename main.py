"""Train a model described by YAML: python main.py --train --base configs/tiny/autoencoder.yaml [key=value ...]"""

import argparse
import datetime
import sys
from pathlib import Path

from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from ldm import checkpoint, config


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-b", "--base", nargs="+", required=True, metavar="YAML", help="files, merged left to right")
    parser.add_argument("-t", "--train", action="store_true", help="train; without it the model is only described")
    parser.add_argument("-n", "--name", help="name of the run (default: the first YAML's)")
    parser.add_argument("-r", "--resume", metavar="CKPT", help="checkpoint to go on from")
    parser.add_argument("-s", "--seed", type=int, default=23, help="seed of weights and noise (default 23)")
    parser.add_argument("--gpus", default="", help="for example 0, or 0,1; empty trains on the CPU (default)")
    parser.add_argument("--logdir", default="logs", help="folder of the runs (default logs)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a value of the YAML files")
    args = parser.parse_intermixed_args(words)
    args.overrides += [word for word in args.base if "=" in word]  # --base takes every word up to the next flag
    args.base = [word for word in args.base if "=" not in word]
    return args


def load_initial_weights(model, entries: list[dict]) -> None:
    """Fill parts of the model from files: {file, modules (of the model), prefix (of their names there), tolerate}."""
    for entry in entries:
        state = checkpoint.read(entry["file"])
        prefix = entry.get("prefix", "")
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        for name in entry["modules"]:
            own = {k.removeprefix(f"{name}."): v for k, v in part.items() if k.startswith(f"{name}.")}
            checkpoint.load(model.get_submodule(name), own, tolerated_missing=tuple(entry.get("tolerate", ())))


def build_trainer(settings: dict, run: Path, gpus: str) -> Trainer:
    devices = [int(g) for g in gpus.split(",") if g.strip()]
    hardware = {"accelerator": "gpu", "devices": devices} if devices else {"accelerator": "cpu", "devices": 1}
    saving = ModelCheckpoint(run / "checkpoints", save_last=True, every_n_train_steps=500, save_top_k=0)
    logger = CSVLogger(run, name="", version="", flush_logs_every_n_steps=20)
    return Trainer(**hardware, logger=logger, callbacks=[saving], **settings)


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    try:
        settings = config.load(*args.base, overrides=args.overrides)
        seed_everything(args.seed, workers=True)
        model = config.instantiate(settings.model, "model")
        load_initial_weights(model, config.instantiate(settings.get("init", []), "init"))
        if not args.train:
            print(model)
            return 0
        data = config.instantiate(settings.data, "data")
        next(iter(data))  # a wrong folder shows here, before anything is written
        run = Path(args.logdir) / f"{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}_{args.name or Path(args.base[0]).stem}"
        run.mkdir(parents=True)
        config.save(settings, run / "config.yaml")
        trainer = build_trainer(config.instantiate(settings.lightning, "lightning"), run, args.gpus)
        trainer.fit(model, data, ckpt_path=args.resume)
        if "export" in settings:
            write_export(model, config.instantiate(settings.export, "export"))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    return 0


def write_export(model, export: dict) -> None:
    """The trained weights as safetensors: {file, half, drop: prefixes left out}."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(tuple(export.get("drop", ())))}
    if export.get("half"):
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    checkpoint.save(export["file"], state, {"trained_by": "main.py"})


if __name__ == "__main__":
    sys.exit(main())
