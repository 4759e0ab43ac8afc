"""Ablation study: a benchmark of clips in which each row adds a part of the method.

python scripts/ablate.py -i clips/ -o results/ablation
python scripts/ablate.py -i a.mkv frames/ -o results/ablation --protocol realbasicvsr --seeds 5 --max_frames 32

Clips are shrunk, cropped and degraded; configs/ablation.yaml describes the rows and the claims about them. This is
scripts/benchmark.py with --ablation; it writes the same files, and a document with the table, the findings and a
picture of one line over time. An interrupted run resumes. Words like method.params.sampling.params.steps=8 change
settings of the model.
"""

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs without being installed

import cv2
import numpy as np

from ldm import video
from ldm.benchmark.tables import document
from ldm.engine import provenance
from ldm.engine.assemble import EMBEDDED
from ldm.engine.finished import is_finished
from ldm.files import write_atomically
from ldm.picture import png, strips
from scripts import benchmark
from scripts.command import (
    DEVICE,
    Parser,
    add_trust,
    exit_status,
    integer_from,
    non_negative_int,
    positive_int,
    size_from,
)
from scripts.degrade import find_protocol, names_of

PROGRAM = "ablate.py"
log = logging.getLogger("scripts.ablate")
SCALE, SMALLEST = 4, 64  # ratio of the truth to the input; shortest side of the truth in pixels
PICTURE = """
## One line over time

{link}

Left a detail of the middle frame, right the marked line over time (time downward): smooth where the clip is steady,
combed where it flickers.
"""
DRY = {"seeds": 1, "max_frames": 3, "gt_size": (64, 64)}


def text_of(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise argparse.ArgumentTypeError(f"got {path!r}, expected a text file") from None


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(PROGRAM, __doc__)
    add_trust(parser)
    add, size = parser.add_argument, size_from(SMALLEST, "WIDTHxHEIGHT like 320x180, from 64x64")
    add("-i", "--input", nargs="+", required=True, metavar="CLIP", help="videos or folders of images or clips")
    add("-o", "--output", type=Path, help="folder (default: results/ablation; results/ablation_dry with --dry)")
    add("--rows", type=Path, default=benchmark.SETS.parent / "ablation.yaml", help="default: configs/ablation.yaml")
    add("--protocol", default="realbasicvsr_mild", help="degradation: a file of configs/degradations, or a path")
    add("--seeds", type=positive_int, default=3, help="noise seeds per row (default: 3)")
    add("--seed", type=non_negative_int, default=42, help="the first one, and that of the degradation (default: 42)")
    add("--max_frames", type=integer_from(2), default=16, help="of each clip (default: 16)")
    add("--gt_size", type=size, default=(320, 180), metavar="WxH", help="the truth (default: 320x180)")
    add("--weights", nargs="+", default=[], metavar="PATH", help="folder or weight files (default: the embedded model)")
    add("--config", nargs="+", default=[], metavar="YAML", help="model configuration (default: that of the weights)")
    add("--device", help=DEVICE)
    add("--doc", type=Path, help="the document (default: OUTPUT/ABLATION.md)")
    add("--about", type=text_of, metavar="FILE", help="text for the document, such as the source of the clips")
    add("--picture", help="name of the clip in the document's picture (default: the first)")
    add("--dry", action="store_true", help="dry run: 3 frames of 64x64, one seed, one step")
    args = parser.parse_with_overrides(words, ("input", "weights", "config"))
    if args.dry:
        vars(args).update(DRY)
        args.overrides.append("+method.params.sampling.params.steps=1")
    args.output = args.output or Path("results/ablation_dry" if args.dry else "results/ablation")
    args.doc = args.doc or args.output / "ABLATION.md"
    return args


def find_clips(paths: list[str]) -> dict[str, Path]:
    """Return clips by name. Raises ValueError for two clips of the same name, VideoError for other files."""
    found = {}
    for path in (clip for given in paths for clip in video.clips_in(Path(given))):
        name = names_of([path])[path]
        if name in found:
            raise ValueError(f"got two clips named {name} ({found[name]} and {path}); rename one")
        found[name] = path
    return found


def make_truth(path: Path, output: Path, *, size: tuple[int, int], count: int) -> None:
    """Write the first `count` frames of a clip, shrunk and cropped to `size` (w, h), as a folder of PNGs.

    Raises ValueError for a clip with fewer than two frames, or frames that are too small.
    """
    source = video.probe(path)
    made_of = {"input": {"sha256": provenance.digest(path, source.names)}, "size": list(size), "frames": count}
    if is_finished(output, made_of):
        return
    frames = [fitted(frame, size) for frame in video.read(source, 0, count, as_rgb8=True)]
    if len(frames) < 2:
        raise ValueError(f"{path}: got {len(frames)} frame, expected at least 2 for temporal metrics")
    if min(frames[0].shape[:2]) < SMALLEST:
        raise ValueError(f"{path}: got frames with less than {SMALLEST} pixels a side, expected larger ones")
    with video.open_writer(output, size=frames[0].shape[:2], overwrite=True) as writer:
        for frame in frames:
            writer.write(frame)
    provenance.write_record(output, made_of)


def fitted(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink a frame until it just covers `size` (w, h), and crop its centre to sides that are multiples of 4."""
    height, width = frame.shape[:2]
    factor = max(size[0] / width, size[1] / height)
    if factor < 1:
        shrunk = max(round(width * factor), size[0]), max(round(height * factor), size[1])
        frame = cv2.resize(frame, shrunk, interpolation=cv2.INTER_AREA)
    height, width = frame.shape[:2]
    w, h = (min(side, wanted) // SCALE * SCALE for side, wanted in zip((width, height), size, strict=True))
    top, left = (height - h) // 2, (width - w) // 2
    return np.ascontiguousarray(frame[top : top + h, left : left + w])


def named_in(card: Path, clips: Mapping[str, Path]) -> list[str]:
    """Return the clips that a model card mentions, since the model may have been trained on them."""
    text, forms = card.read_text(encoding="utf-8") if card.is_file() else "", ("`{0.stem}`", "{0.parent.name}/{0.stem}")
    return [name for name, path in clips.items() if any(form.format(path) in text for form in forms)]


def picture_of(results: Mapping, folder: Path, name: str) -> bytes:
    """Return the picture of a clip as a PNG: each row with its first seed, and the truth."""
    clip, labels = next(clip for clip in results["clips"] if clip["name"] == name), results["labels"]
    places = {labels[row].replace("`", ""): [*clip["results"][row].values()][0] for row in labels}
    places["the truth"] = clip["gt"]
    return png(strips({title: list(video.read(folder / place, as_rgb8=True)) for title, place in places.items()}))


def write_document(args: argparse.Namespace, shown: str) -> None:
    """Write the document and its picture."""
    results = json.loads((args.output / "results.json").read_text(encoding="utf-8"))
    picture = args.doc.parent / args.doc.stem.lower() / f"{shown}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(picture, picture_of(results, args.output, shown))
    results["command"] = shlex.join(["python", "scripts/ablate.py", *args.words])
    if args.dry:
        results |= {"findings": [], "notes": [*results["notes"], "A dry run: its values allow no conclusions."]}
    link = f"![One line of the clip {shown}, row by row]({picture.parent.name}/{picture.name})"
    about = f"\n{args.about}\n" if args.about else ""
    write_atomically(args.doc, (document(results) + PICTURE.format(link=link) + about).encode())


def run(args: argparse.Namespace) -> int:
    clips = find_clips(args.input)
    if args.picture and args.picture not in clips:
        raise ValueError(f"got picture {args.picture!r}, expected one of {', '.join(clips)}")
    find_protocol(args.protocol)
    benchmark.try_output(args.output)
    card = Path(args.weights[0] if args.weights else EMBEDDED) / "README.md"
    for name in named_in(card, clips):
        log.warning("%s: named in %s; results on training clips are not meaningful", name, card)
    for name, path in clips.items():
        make_truth(path, args.output / "truth" / name, size=args.gt_size, count=args.max_frames)
    words = ["--dataset", "own", "--root", args.output / "truth", "-o", args.output, "--ablation", args.rows]
    words += ["--lq", args.protocol, "--lq_seed", args.seed, "--seed", args.seed, "--seeds", args.seeds]
    words += args.overrides
    words += ["--device", args.device] if args.device else []
    words += [word for module in args.trust for word in ("--trust", module)]
    for option in ("weights", "config"):
        words += [f"--{option}", *getattr(args, option)] if getattr(args, option) else []
    benchmark.run(benchmark.arguments([*map(str, words)]))
    write_document(args, args.picture or next(iter(clips)))
    log.info("%s", args.doc)
    return 0


def main(words: list[str] | None = None) -> int:
    return exit_status(PROGRAM, lambda: run(arguments(words)), stopped=benchmark.STOPPED, level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
