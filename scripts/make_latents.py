"""Make the training set of stage 2: clips with latents that are sampled by a stage-1 model.

python scripts/make_latents.py -i CLIPS --protocol realbasicvsr --weights PLACE -o OUT        degrades the clips itself
python scripts/make_latents.py --gt CLIPS --lq CLIPS --weights PLACE -o OUT                   existing pairs
python scripts/make_latents.py --data YAML [key=value ...] --weights PLACE -o OUT             examples of a training set

Writes OUT/gt, OUT/lq and, with --samples, OUT/sample: CLIP/00000000.png; OUT/latent: CLIP/00000000.npy, float32
(c, h, w), scaled. Resizing, padding, windows, flow and guidance are those of the model's configuration, as in
upscaling. With --crop, CLIP becomes CLIP_s001, CLIP_s002 ...; a long clip becomes CLIP_p001, CLIP_p002 ...; no frame is
dropped. An interrupted run resumes; OUT/manifest.json records its settings.
"""

import argparse
import hashlib
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import numpy as np
import torch

from basicsr_deg import latent_clips
from basicsr_deg.clips import find_clips, some
from ldm import config
from ldm.engine.assemble import CARD, CONFIGS, EMBEDDED, Weights, build_method, read_settings, weight_files
from ldm.engine.device import usable_device
from ldm.engine.finished import stored_manifest
from ldm.engine.provenance import versions
from ldm.files import write_atomically
from ldm.methods.mgld.method import MGLD
from ldm.picture import pixels
from ldm.streaming.pipeline import stack
from ldm.weights import checkpoint
from ldm.weights.files import WeightFile, find_all
from scripts.command import Parser, add_trust, exit_status, non_negative_int, positive_int, with_bar
from scripts.degrade import find_protocol, generator, read_degradation

PROGRAM = "make_latents.py"
LAST = Path("checkpoints/last.ckpt")  # in the folder of a run
RELEASED = CONFIGS / "mgldvsr" / CARD  # for weights without a model.yaml beside them
LOG = logging.getLogger("scripts.make_latents")
Pair = tuple[np.ndarray, np.ndarray]  # sharp and degraded frames, (T, H, W, 3) and (T, h, w, 3) uint8 RGB


class Job(NamedTuple):
    """A clip to make: its name, and a function that reads its frames."""

    name: str
    read: Callable[[], Pair]


def jobs_of_dataset(dataset, count: int | None) -> list[Job]:
    """Return jobs for the first examples of a training set."""

    def read(number: int) -> Pair:
        item = dataset[number]
        return tuple(pixels(item[kind]) for kind in ("gt", "lq"))

    return [Job(f"{number:06d}", partial(read, number)) for number in range(count or len(dataset))]


class Cutter:
    """Divide clips on the disk into parts and crops.

    `pair(gt, lq, name)` returns sharp and degraded frames, made from the sharp ones and the given degraded ones, if
    any. Frames are cropped to multiples of `unit`, at the right and at the bottom.
    """

    def __init__(self, gt: list, lq: list | None, pair: Callable[..., Pair], *, unit: int):
        self.gt, self.lq, self.pair, self.unit = gt, lq, pair, unit
        self._frames = lru_cache(maxsize=2)(self._read)  # the crops of a clip are made in sequence

    def jobs(self, *, part: int, crop: int | None, step: int) -> Iterator[Job]:
        """Generate the jobs of all parts and crops of all clips."""
        for number, sequence in enumerate(self.gt):
            spans = parts_of(sequence.exact_length(), part)
            height, width = sequence.frames([0])[0].shape[:2]
            unit = self.unit
            if self.lq is not None:
                unit = math.lcm(unit, ratio((height, width), self.lq[number].frames([0])[0].shape[:2], sequence.name))
            boxes = boxes_of(height, width, crop=crop, step=step, unit=unit, name=sequence.name)
            for p, span in enumerate(spans, 1):
                name = sequence.name.replace("/", "_") + (f"_p{p:03d}" if len(spans) > 1 else "")
                for s, box in enumerate(boxes, 1):
                    full = name + (f"_s{s:03d}" if crop else "")
                    yield Job(full, partial(self.read, number, span, box, full))

    def read(self, number: int, span: tuple[int, int], box: tuple[int, int, int, int], name: str) -> Pair:
        """Return the frames of a job."""
        gt, lq = self._frames(number, span)
        if lq is not None:
            scale = ratio(gt.shape[1:3], lq.shape[1:3], name)
            if any(side % scale for side in box):
                raise ValueError(f"{name}: got the crop {box}, expected multiples of {scale}; change --crop and --step")
            lq = cut(lq, tuple(side // scale for side in box))
        return self.pair(cut(gt, box), lq, name)

    def _read(self, number: int, span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        clips = [side[number] for side in (self.gt, self.lq) if side is not None]
        gt, *lq = (latent_clips.stacked(clip.frames(range(*span)), clip.name) for clip in clips)
        return gt, lq[0] if lq else None


def parts_of(count: int, part: int) -> list[tuple[int, int]]:
    """Divide `count` frames into the fewest parts of nearly equal length: [(start, stop), ...]."""
    edges = np.linspace(0, count, math.ceil(count / part) + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def boxes_of(height: int, width: int, *, crop: int | None, step: int, unit: int, name: str) -> list[tuple]:
    """Return (top, left, height, width) of all crops, row by row; the last ones end at the border."""
    if crop is None:
        size = (height // unit * unit, width // unit * unit)
        if 0 in size:
            raise ValueError(f"{name}: got frames of {width}x{height}, expected at least {unit} pixels a side")
        return [(0, 0, *size)]
    if min(height, width) < crop:
        raise ValueError(f"{name}: got frames of {width}x{height}, expected at least the {crop} pixels of --crop")
    tops, lefts = ([*range(0, side - crop, step), side - crop] for side in (height, width))
    return [(top, left, crop, crop) for top in tops for left in lefts]


def cut(clip: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Crop frames to (top, left, height, width)."""
    top, left, height, width = box
    return np.ascontiguousarray(clip[:, top : top + height, left : left + width])


def ratio(gt: tuple[int, int], lq: tuple[int, int], name: str) -> int:
    """Return the integer scale between sharp and degraded frames. Raises ValueError if there is none."""
    (height, width), (h, w) = gt, lq
    if height % h or height // h * w != width:
        raise ValueError(f"{name}: got {w}x{h} beside sharp {width}x{height}, expected a whole fraction of both sides")
    return height // h


def degraded(gt: np.ndarray, _lq: None, name: str, *, degradation, draw: Callable) -> Pair:
    """Degrade sharp frames with the random numbers of `draw(name)`."""
    return gt, (degradation(gt, draw(name)) * 255).round().astype(np.uint8)


def address(seed: int, name: str) -> int:
    """Return the seed of the noise of a clip, which does not depend on other clips."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big")


def pairs_of(gt: list, lq: list) -> list:
    """Return the degraded sequences in the order of the sharp ones. Raises ValueError for missing or shorter ones."""
    there = {sequence.name: sequence for sequence in lq}
    lengths = {name: sequence.exact_length() for name, sequence in there.items()}
    if missing := [sequence.name for sequence in gt if lengths.get(sequence.name) != sequence.exact_length()]:
        raise ValueError(f"got no degraded clips of equal length for {some(missing)}, expected one for each sharp clip")
    return [there[sequence.name] for sequence in gt]


@torch.inference_mode()
def sampled_latents(method: MGLD, lq: np.ndarray, size: tuple[int, int], seed: int) -> torch.Tensor:
    """Sample scaled latents (T, c, h, w) for frames (T, h, w, 3) uint8 that are restored at `size`."""
    geometry = method.geometry(lq.shape[1:3], upscale=size[0] / lq.shape[1])
    work = geometry.enlarge(torch.from_numpy(lq).permute(0, 3, 1, 2))
    if tuple(work.shape[-2:]) != tuple(size):
        (height, width), (h, w) = size, work.shape[-2:]
        raise ValueError(f"got sharp frames of {width}x{height}, which the method restores at {w}x{h}; change --crop")
    return stack(method.latents(work, seed=seed), "x")[0].cpu()


@torch.inference_mode()
def decoded(method: MGLD, latents: torch.Tensor) -> np.ndarray:
    """Decode scaled latents by the image autoencoder to frames (T, H, W, 3) uint8."""
    frames, codec = [], method.codec(method.levers()[0])
    for latent in latents:
        with codec.autocast():
            frame = codec.autoencoder.decode(latent[None].to(method.device) / codec.scale_factor)
        frames.append(pixels((frame.float().cpu() + 1) / 2))
    return np.concatenate(frames)


def make_clip(method: MGLD, job: Job, *, seed: int, samples: bool) -> dict[str, np.ndarray]:
    """Read and restore a clip; return its frames by kind. Raises ValueError or FloatingPointError."""
    try:
        gt, lq = job.read()
        latents = sampled_latents(method, lq, gt.shape[1:3], address(seed, job.name) % 2**31)
    except (ValueError, FloatingPointError) as error:
        line = str(error)
        raise type(error)(line if line.startswith(job.name) else f"{job.name}: {line}") from error
    content = {"gt": gt, "lq": lq, "latent": latents.numpy()}
    if samples:
        content["sample"] = decoded(method, latents)
    return content


def compare_manifest(path: Path, manifest: Mapping) -> None:
    """Raise ValueError for a folder that was started with other settings, or has no manifest."""
    if not path.exists():
        if there := [name for name in latent_clips.FOLDERS if (path.parent / name).exists()]:
            raise ValueError(f"{path.parent}: holds {there[0]} without a manifest.json; name another folder")
        return
    stored_manifest(path, {"settings": manifest["settings"]}, remedy="repeat that, or name another folder")


def find_weights(args: argparse.Namespace, data: Mapping) -> tuple[Mapping, Weights]:
    """Return the configuration, and the stage-1 file of the arguments or of the training configuration `data`.

    Files of flow networks beside it are included. Raises FileNotFoundError, ConfigError or ValueError.
    """
    place = args.weights or Path(str(data.get("weights") or EMBEDDED))
    place = place / LAST if (place / LAST).is_file() else place
    folder = place.parent if place.is_file() else place
    cards = [folder / CARD]
    if folder.name == LAST.parent.name:
        cards.append(folder.parent / "config.yaml")  # of its training
    card = args.card or next((path for path in cards if path.is_file()), RELEASED)
    flow = [f"flow={args.flow}"] if args.flow else []
    settings = read_settings(Weights({}, card), overrides=[*flow, *args.overrides], trust=args.trust)
    entries = weight_files(settings)
    stage_one = stage_one_of(entries)
    named = {stage_one.name: place} if place.is_file() else find_all(folder, [stage_one])
    beside = {entry.name: entry.find(folder) for entry in entries if entry.only}
    return settings, Weights(named | {name: path for name, path in beside.items() if path}, card, folder)


def stage_one_of(entries: Iterable[WeightFile]) -> WeightFile:
    """Return the weight file of the U-Net. Raises ValueError if there is none."""
    for entry in entries:
        if "unet" in entry.fills:
            return entry
    raise ValueError("got config.weights without an entry that fills unet, expected the file of stage 1")


def read_data(words: list[str] | None, trust: Iterable[str] = ()) -> Mapping:
    """Return the training configuration of --data; empty without it."""
    if words is None:
        return {}
    files = [word for word in words if "=" not in word]
    node = config.load(*files, overrides=[word for word in words if "=" in word], trust=trust)
    config.check_target(node, "data.params.train")
    return node


def choose_source(args: argparse.Namespace, data: Mapping, unit: int) -> tuple[list[Job], dict]:
    """Return the jobs, and a description of their source for the manifest."""
    ways = [args.input is not None, args.gt is not None and args.lq is not None, args.data is not None]
    if sum(ways) != 1 or (args.gt is None) != (args.lq is None):
        raise ValueError("expected either -i CLIPS, or --gt CLIPS --lq CLIPS, or --data YAML")
    if args.data is not None:
        dataset = config.instantiate(data.data.params.train)
        return jobs_of_dataset(dataset, args.count), {"dataset": config.plain(data)["data"]["params"]["train"]}
    cuts = {"part": args.part, "crop": args.crop, "step": args.step}
    if args.input is not None:
        protocol = read_degradation(args.protocol, scale=args.scale, trust=args.trust)
        draw = partial(generator, args.seed, find_protocol(args.protocol).stem)  # as scripts/degrade.py
        pair = partial(degraded, degradation=config.instantiate(protocol), draw=draw)
        footage = Cutter(sequences_in(args.input), None, pair, unit=math.lcm(unit, args.scale))
        about = {"clips": str(args.input), "protocol": args.protocol, "degradation": config.plain(protocol)}
    else:
        gt, lq = sequences_in(args.gt), sequences_in(args.lq)
        footage = Cutter(gt, pairs_of(gt, lq), lambda gt, lq, _name: (gt, lq), unit=unit)
        about = {"gt": str(args.gt), "lq": str(args.lq)}
    return list(footage.jobs(**cuts))[: args.count], about | cuts


def sequences_in(root: Path) -> list:
    """Return the clips of a folder, and log its layout. Raises ValueError."""
    what, sequences = find_clips(root)
    LOG.info("%s", what)
    return sequences


def run(args: argparse.Namespace) -> None:
    data = read_data(args.data, args.trust)
    settings, found = find_weights(args, data)
    file = found.files[stage_one_of(weight_files(settings)).name]
    # latents are not decoded by the sequence decoder, which stage 2 trains
    method = build_method(settings, found, device=usable_device(args.device), unfilled=["sequence_decoder"])
    unit = method.networks["autoencoder"].downsampling * method.networks["unet"].downsampling
    if args.crop and args.crop % unit:
        raise ValueError(f"got --crop {args.crop}, expected a multiple of {unit}")
    jobs, about = choose_source(args, data, unit)
    if twice := [name for name, times in Counter(job.name for job in jobs).items() if times > 1]:
        raise ValueError(f"got clips of one name, expected different ones: {some(twice)}")
    plain = {key: config.plain(settings).get(key) for key in ("networks", "flow", "method")}
    decisive = {"weights": checkpoint.sha256(file), "seed": args.seed, "samples": args.samples, "source": about}
    manifest = {"settings": decisive | {"card": plain}, "weights": str(file), "versions": versions()}
    record = args.output / "manifest.json"
    compare_manifest(record, manifest)
    latent_clips.remove_partial(args.output)
    kinds = ("gt", "lq", "latent", *(["sample"] * args.samples))
    left = [job for job in jobs if not latent_clips.is_written(args.output, job.name, kinds)]
    for job in with_bar(left, f"{len(jobs)} clips"):
        content = make_clip(method, job, seed=args.seed, samples=args.samples)
        if not record.exists():  # before the first clip is written, but after one was made
            args.output.mkdir(parents=True, exist_ok=True)
            write_atomically(record, (json.dumps(manifest, indent=1) + "\n").encode())
        latent_clips.write_latent_clip(args.output, job.name, content)
    LOG.info("%s: %d clips, %d of them finished before", args.output, len(jobs), len(jobs) - len(left))


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add_trust(parser)
    add("-i", "--input", type=Path, metavar="CLIPS", help="sharp clips: sub-folders of pictures, videos, or one clip")
    add("--protocol", default="realbasicvsr", help="degradation: a name of configs/degradations or a YAML file")
    add("--gt", type=Path, metavar="CLIPS", help="sharp clips")
    add("--lq", type=Path, metavar="CLIPS", help="their degraded twins, of the same names and lengths")
    add("--data", nargs="+", metavar="YAML", help="training configuration, and key=value words that change it")
    add("-o", "--output", type=Path, required=True, help="folder to write")
    add("--weights", "--stage_one", type=Path, metavar="PLACE", help="stage-1 file, its folder, or the folder of a run "
        "of main.py (default: what --data names, else the small model)")  # fmt: skip
    add("--card", type=Path, metavar="YAML", help="the model's configuration (default: beside the weights)")
    add("--flow", help="dis, raft or spynet (default: of the card)")
    add("--scale", type=positive_int, default=4, help="times that sharp clips are larger (default 4)")
    add("--seed", type=non_negative_int, default=23, help="of degradations and noise (default 23)")
    add("--crop", type=positive_int, help="side of the squares that clips are cut into (released: 512)")
    add("--step", type=positive_int, default=256, help="from one square to the next (default 256)")
    add("--part", type=positive_int, default=100, help="frames that a clip may have before it is divided (default 100)")
    add("--count", type=positive_int, help="clips to make (default: all)")
    add("--samples", action="store_true", help="also write the frames that the image autoencoder decodes")
    add("--device", help="cpu, cuda ... (default: the graphics card where there is one)")
    return parser.parse_with_overrides(words)


def main(words: list[str] | None = None) -> int:
    stopped = "interrupted; the same command resumes"
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped=stopped, level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
