"""Sample the latents stage 2 trains on: python scripts/make_latents.py --stage_one FILE --data YAML -o FOLDER --count N

For each clip of the YAML's dataset: `lq` and `gt` (T, 3, h, w) uint8 and the sampled, scaled `latent` (T, c, h/f, w/f)
float16, one safetensors file a clip. Files that are there already are kept, so a stopped run goes on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import torch
from rich.progress import track

from ldm import checkpoint, config
from ldm.engine.assemble import EMBEDDED
from ldm.ops.resize import resize
from ldm.ops.stream import together


def sampled_latents(method, lq: torch.Tensor, size: tuple[int, int], seed: int) -> torch.Tensor:
    """(T, c, h, w) latents that the method draws for one clip (T, 3, h, w) in [0, 1], enlarged to `size`."""
    return together(method.latents(resize(lq, size).clamp(0, 1), seed=seed), "x")[0]


def load_stage_one(card: Path, weights: Path):
    """The method of `card` with the networks of stage 1 filled; its sequence decoder keeps random weights, unused."""
    settings = config.load(card)
    networks = {name: config.instantiate(node) for name, node in settings.networks.items()}
    slots = {name: networks[name] for name in ("unet", "structure", "autoencoder")}
    checkpoint.load_slots(slots, checkpoint.read(weights), checkpoint.STAGE_ONE)
    return config.instantiate(settings.method, networks=networks)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", type=Path, default=EMBEDDED / "model.yaml", help="the model's configuration")
    parser.add_argument("--stage_one", type=Path, default=EMBEDDED / "mgldvsr_unet.safetensors", help="trained weights")
    parser.add_argument("--data", nargs="+", required=True, metavar="YAML", help="configuration whose dataset is used")
    parser.add_argument("-o", "--output", type=Path, default=Path("logs/tiny/latents"), help="folder to write")
    parser.add_argument("--count", type=int, help="clips (default: all of the dataset)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes the data configuration")
    args = parser.parse_intermixed_args(words)
    args.overrides += [word for word in args.data if "=" in word]
    args.data = [word for word in args.data if "=" not in word]
    try:
        method = load_stage_one(args.card, args.stage_one)
        dataset = config.instantiate(config.load(*args.data, overrides=args.overrides).data.params.dataset)
        args.output.mkdir(parents=True, exist_ok=True)
        for i in track(range(args.count or len(dataset)), description="latents"):
            path = args.output / f"{i:06d}.safetensors"
            if path.exists():
                continue
            item = dataset[i]
            latent = sampled_latents(method, item["lq"], tuple(item["gt"].shape[-2:]), seed=i)
            pixels = {key: (item[key] * 255).round().to(torch.uint8) for key in ("lq", "gt")}
            checkpoint.save(path, {**pixels, "latent": latent.half()})
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"make_latents.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
