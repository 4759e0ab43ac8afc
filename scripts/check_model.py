"""Check the quality of a trained model: its autoencoder, its seeds, or its steps.

python scripts/check_model.py autoencoder -i clips/ --weights logs/tiny
python scripts/check_model.py seeds -i clips/ --weights logs/tiny
python scripts/check_model.py steps -i clips/ --weights logs/tiny --metric stlpips

autoencoder: reconstruct frames, and compare with the best linear code of the same size.
seeds: decode samples of two seeds: they are sharper than bicubic interpolation, and differ from each other.
steps: compare the perceptual distance of samples with the default number of steps and with one step, over some seeds.

Sampling is that of the pictures of a training: whole clips, without guidance and without a sequence decoder. --weights
is the folder of an export or of a run of main.py, or a file. The clips are the ground truth; they are shrunk, cropped
and degraded by a protocol of configs/degradations. The exit status is 1 if a claim does not hold. Words like
method.params.sampling.params.steps=8 change settings of the model.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin while waiting are slow on a busy machine

import numpy as np
import torch

from ldm import config, video
from ldm.engine.assemble import EMBEDDED
from ldm.metrics.fidelity import psnr, rgb8
from ldm.metrics.gates import LinearCode, kept
from ldm.metrics.protocol import measures
from ldm.metrics.sharpness import edge_sharpness
from ldm.ops.resize import resize
from ldm.training.diffusion import Objective, StageOne
from ldm.training.initial import start_from
from ldm.training.optimization import Adam
from scripts.ablate import SCALE, SMALLEST, find_clips, fitted
from scripts.command import Parser, exit_status, integer_from, non_negative_int, size_from, tell, with_bar
from scripts.degrade import find_protocol, generator

PROGRAM = "check_model.py"
LEAST_PSNR, LEAST_SHARPNESS, MOST_LOW_FREQUENCY = 28.0, 0.85, 0.05  # limits for the autoencoder
MOST_LOSS, MOST_ALIKE = 0.7, 35.0  # dB: loss against bicubic interpolation; PSNR between two seeds
AUTOENCODER, STAGE_ONE = "autoencoder.safetensors", "mgldvsr_unet.safetensors"  # file names of configs/tiny
CARDS, LAST = ("model.yaml", "config.yaml"), Path("checkpoints", "last.ckpt")
SEVERAL_STEPS = "+method.params.sampling.params.initial=noised"  # also where a student is the default
PARTS = {  # of a stage-1 file: the network's name in a configuration, and its module in the training
    "unet": "model.diffusion_model",
    "structure": "structcond_stage_model",
    "autoencoder": "first_stage_model",
    "text": "cond_stage_model.model",
}


class Finding(NamedTuple):
    """Result of a check: the claim, the measured value, and whether the claim holds."""

    claim: str
    measured: str
    holds: bool


class Clip(NamedTuple):
    """A clip: T frames of the ground truth, each (H, W, 3) uint8, and degraded frames (T, H / 4, W / 4, 3) uint8."""

    name: str
    truth: list[np.ndarray]
    lq: np.ndarray


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add, size = parser.add_argument, size_from(SMALLEST, "WIDTHxHEIGHT like 320x176, from 64x64")
    add("gate", choices=list(GATES), help="the check to run")
    add("-i", "--input", nargs="+", required=True, metavar="CLIP", help="videos or folders: the truth")
    add("--weights", type=Path, default=EMBEDDED, metavar="PATH", help="folder or file (default: the embedded model)")
    add("--config", nargs="+", default=[], metavar="YAML", help="model configuration (default: that of the weights)")
    add("--protocol", default="realbasicvsr_mild", help="degradation: a file of configs/degradations, or a path")
    add("--seed", type=non_negative_int, default=42, help="the first noise seed, and the degradation's (default: 42)")
    add("--seeds", type=integer_from(2), default=3, help="noise seeds (default: 3)")
    add("--max_frames", type=integer_from(2), default=5, help="of each clip (default: 5)")
    add("--gt_size", type=size, default=(320, 176), metavar="WxH", help="the truth (default: 320x176)")
    add("--metric", default="stlpips", help="perceptual distance of the steps, lower is better (default: stlpips)")
    return parser.parse_with_overrides(words, ("input", "config"))


def load_clips(args: argparse.Namespace) -> list[Clip]:
    """Read, shrink, crop and degrade the clips. Raises ValueError for a clip that is too short or too small."""
    protocol = find_protocol(args.protocol)
    degradation = config.instantiate(config.load(protocol).degradation)
    clips = []
    for name, path in find_clips(args.input).items():
        frames = video.read(video.probe(path), 0, args.max_frames, as_rgb8=True)
        truth = [fitted(frame, args.gt_size) for frame in frames]
        if len(truth) < 2 or min(truth[0].shape[:2]) < SMALLEST:
            got = f"{len(truth)} frames" if len(truth) < 2 else f"{truth[0].shape[1]}x{truth[0].shape[0]}"
            raise ValueError(f"{path}: got {got}, expected at least 2 frames of {SMALLEST} pixels a side")
        lq = degradation(np.stack(truth), generator(args.seed, protocol.stem, name))
        clips.append(Clip(name, truth, np.rint(lq * 255).astype(np.uint8)))
    return clips


# ---- models


def find_file(place: Path, names: tuple[str | Path, ...]) -> Path:
    """Return the weight file: `place` itself, or the first of `names` in it. Raises FileNotFoundError."""
    files = [place, *(place / name for name in names)]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{place}: got no weights, expected a file, or a folder with {names[0]}")
    return found


def read_settings(args: argparse.Namespace, file: Path, *, needed: Iterable[str]):
    """Read the configuration: --config, or the file beside the weights or in their run.

    Raises FileNotFoundError if there is none, and ConfigError if a network of `needed` is missing.
    """
    folders = [file.parent, file.parent.parent]
    cards = args.config or [folder / name for folder in folders for name in CARDS if (folder / name).is_file()][:1]
    if not cards:
        raise FileNotFoundError(f"{file}: got no {' or '.join(CARDS)} beside it; name the configuration with --config")
    settings = config.override(config.load(*cards), [SEVERAL_STEPS, *args.overrides])
    for name in needed:
        config.check_target(settings, f"networks.{name}")
    return settings


def load_autoencoder(args: argparse.Namespace) -> torch.nn.Module:
    """Load the image autoencoder from its own file or that of stage 1."""
    file = find_file(args.weights, (AUTOENCODER, STAGE_ONE, LAST))
    net = config.instantiate(read_settings(args, file, needed=["autoencoder"]).networks.autoencoder)
    holder = torch.nn.ModuleDict({PARTS["autoencoder"]: net})
    start_from(holder, [{"file": str(file), "modules": [PARTS["autoencoder"]]}])
    return net.eval().requires_grad_(False)


def load_stage_one(args: argparse.Namespace) -> tuple[StageOne, int]:
    """Return the stage-1 model, as in training, and the default number of sampling steps."""
    file = find_file(args.weights, (STAGE_ONE, LAST))
    settings = read_settings(args, file, needed=PARTS)
    sampling, factor = config.instantiate(settings.method.params.sampling), settings.method.params.scale_factor
    networks = {name: config.instantiate(settings.networks[name]) for name in PARTS}
    objective = Objective(prediction=sampling.prediction)
    model = StageOne(networks, objective=objective, optimizer=Adam(lr=1.0), scale_factor=factor)
    modules = [module for name, module in PARTS.items() if networks[name].state_dict()]
    start_from(model, [{"file": str(file), "modules": modules}])
    return model.eval().requires_grad_(False), sampling.steps


# ---- the autoencoder


def coder(net: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that encodes a frame to the mean of the posterior and decodes it."""

    def code(frame: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            y = net.decode(net.posterior(net.encode(x)).mean)
        return rgb8(y[0].float() / 2 + 0.5)

    return code


def tell_row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    tell(f"| {' | '.join(map(str, cells))} |")


def check_autoencoder(args: argparse.Namespace, clips: list[Clip]) -> Iterator[Finding]:
    """Print the quality of reconstructions, and compare it with the limits and a linear code."""
    net = load_autoencoder(args)
    numbers = net.post_quant_conv.in_channels
    linear = LinearCode([frame for clip in clips for frame in clip.truth], numbers=numbers, side=net.downsampling)
    rows = {"autoencoder": coder(net), f"linear code of {numbers} numbers": linear}
    means = {}
    tell_row("clip", "code", "PSNR, dB", "sharpness", "low-frequency error")
    tell_row(*["---"] * 5)
    for name, code in rows.items():
        figures = [kept(code, clip.truth) for clip in with_bar(clips, name)]
        means[name] = {key: float(np.mean([one[key] for one in figures])) for key in figures[0]}
        for clip, one in [*((clip.name, one) for clip, one in zip(clips, figures, strict=True)), ("mean", means[name])]:
            tell_row(clip, name, f"{one['psnr']:.2f}", f"{one['sharpness']:.3f}", f"{one['low_frequency']:.3f}")
    own, best = means.values()
    yield Finding(f"at least {LEAST_PSNR:g} dB", f"{own['psnr']:.2f} dB", own["psnr"] >= LEAST_PSNR)
    sharp = own["sharpness"]
    yield Finding(f"sharpness of at least {LEAST_SHARPNESS}", f"{sharp:.3f}", sharp >= LEAST_SHARPNESS)
    more = own["psnr"] - best["psnr"], sharp - best["sharpness"]
    yield Finding("better than the linear code", f"{more[0]:+.2f} dB, sharpness {more[1]:+.3f}", min(more) > 0)
    low = own["low_frequency"]
    yield Finding("colour is kept: low-frequency error at most 5 %", f"{100 * low:.1f} %", low <= MOST_LOW_FREQUENCY)


# ---- samples


def as_batch(frames: np.ndarray) -> torch.Tensor:
    """(T, H, W, 3) uint8 -> (1, T, 3, H, W) in [0, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255


def sampled(model: StageOne, clip: Clip, seed: int, *, steps: int) -> list[np.ndarray]:
    """Sample latents for a degraded clip and decode them with the image decoder."""
    model.preview_steps = steps
    batch = {"lq": as_batch(clip.lq), "gt": as_batch(np.stack(clip.truth)), "index": torch.tensor([seed])}
    return [rgb8(frame) for frame in model.restore(batch)[0]]


def enlarged(clip: Clip) -> list[np.ndarray]:
    """Enlarge a degraded clip by bicubic interpolation."""
    (lq,) = as_batch(clip.lq)
    return [rgb8(frame) for frame in resize(lq, (lq.shape[-2] * SCALE, lq.shape[-1] * SCALE)).clamp(0, 1)]


def mean_of(figure: Callable, frames: list[np.ndarray], truth: list[np.ndarray]) -> float:
    return float(np.mean([figure(frame, wanted) for frame, wanted in zip(frames, truth, strict=True)]))


def check_seeds(args: argparse.Namespace, clips: list[Clip]) -> Iterator[Finding]:
    """Print PSNR and sharpness of samples, and compare them with bicubic interpolation and with another seed."""
    model, steps = load_stage_one(args)
    rows = []
    tell_row("clip", "PSNR: bicubic", "samples", "sharpness: bicubic", "samples", "two seeds, dB")
    tell_row(*["---"] * 6)
    for clip in with_bar(clips, "seeds"):
        one, other = (sampled(model, clip, seed, steps=steps) for seed in (args.seed, args.seed + 1))
        bicubic, truth = enlarged(clip), clip.truth
        pairs = [mean_of(figure, frames, truth) for figure in (psnr, edge_sharpness) for frames in (bicubic, one)]
        rows.append([*pairs, mean_of(psnr, one, other)])
        tell_row(clip.name, *(f"{value:.3f}" for value in rows[-1]))
    plain, own, soft, sharp, alike = np.mean(rows, axis=0)
    yield Finding("samples are sharper than bicubic", f"{sharp:.3f} against {soft:.3f}", sharp > soft)
    yield Finding(f"at most {MOST_LOSS} dB below bicubic", f"{own - plain:+.2f} dB", own >= plain - MOST_LOSS)
    yield Finding(f"two seeds less than {MOST_ALIKE:g} dB apart", f"{alike:.1f} dB", alike < MOST_ALIKE)


def check_steps(args: argparse.Namespace, clips: list[Clip]) -> Iterator[Finding]:
    """Print the distance of samples per seed, and compare several steps with one. Raises ValueError for the metric."""
    (probe,) = measures([args.metric])
    if probe.missing:
        raise ValueError(f"{args.metric}: {probe.missing}")
    if probe.better != "lower" or not probe.reference:
        raise ValueError(f"got metric {args.metric}, expected a distance to the truth")
    model, default = load_stage_one(args)
    values = {default: [], 1: []}
    if len(values) < 2:
        raise ValueError("got 1 step as the default, expected more; add method.params.sampling.params.steps=10")
    tell_row("seed", "steps", args.metric)
    tell_row(*["---"] * 3)
    for steps, means in values.items():
        for seed in with_bar(range(args.seed, args.seed + args.seeds), f"{steps} steps"):
            means.append(float(np.mean([distance(model, clip, seed, steps, args.metric) for clip in clips])))
            tell_row(seed, steps, f"{means[-1]:.4f}")
    many, one = (np.array(means) for means in values.values())
    spread = max(many.std(ddof=1), one.std(ddof=1))
    measured = f"{many.mean():.4f} against {one.mean():.4f}, spread {spread:.4f}"
    yield Finding("more steps are better than one, beyond the spread", measured, one.mean() - many.mean() > spread)


def distance(model: StageOne, clip: Clip, seed: int, steps: int, metric: str) -> float:
    """Return the mean distance of a sampled clip to the ground truth."""
    (measure,) = measures([metric])
    for frame, truth in zip(sampled(model, clip, seed, steps=steps), clip.truth, strict=True):
        measure.push(frame, truth)
    if measure.missing:
        raise ValueError(f"{metric}: {measure.missing}")
    return next(iter(measure.figures().values()))


GATES = {"autoencoder": check_autoencoder, "seeds": check_seeds, "steps": check_steps}


def run(args: argparse.Namespace) -> int:
    found = list(GATES[args.gate](args, load_clips(args)))
    tell("")
    tell_row("claim", "measured", "holds")
    tell_row(*["---"] * 3)
    for finding in found:
        tell_row(finding.claim, finding.measured, "yes" if finding.holds else "no")
    return 0 if all(finding.holds for finding in found) else 1


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
